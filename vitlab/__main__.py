"""``python -m vitlab``."""

from __future__ import annotations

from vitlab.cli.main import command

if __name__ == "__main__":
    command()
