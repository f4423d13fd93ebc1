"""Composition of overrides and YAML files, by Hydra, into one typed, checked configuration. No torch."""
