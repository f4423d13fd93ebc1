"""One folder a paper. ``method.py`` tells the story in stages; the paper's ideas lie beside it, a file each."""
