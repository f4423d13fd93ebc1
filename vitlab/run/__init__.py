"""The run folder: identity, lock, stage markers, records. No torch."""
