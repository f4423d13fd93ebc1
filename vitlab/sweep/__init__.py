"""Several runs of one command: grids, searches, their table."""
