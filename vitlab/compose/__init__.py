"""Hydra's part: words and YAML files become one typed, checked configuration. No torch."""
