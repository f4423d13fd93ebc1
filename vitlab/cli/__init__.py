"""The command line: entry point, help page, lists."""
