"""The command line: the words that were typed, the help page, the lists."""
