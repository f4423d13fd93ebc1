"""``python -m vitlab``."""

from __future__ import annotations

import sys

from vitlab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
