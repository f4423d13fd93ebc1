"""Modes that work on stored reinforcements."""
