"""Stored and online teachers: random choices (draw), pixels (views), sparse targets, the store, the teachers."""
