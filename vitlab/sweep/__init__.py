"""Several runs of one command: grids, searches, the comparison of the runs."""
