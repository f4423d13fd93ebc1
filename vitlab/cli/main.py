"""Entry point: dispatch of the command line, and exit codes.

Exit codes: 0 done, 1 internal error (with a stack trace), 2 a mistake of the user, 130 interrupted.
Help and lists import neither Hydra nor torch; mistakes in overrides are reported without torch.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
import traceback

from vitlab._version import __version__
from vitlab.errors import Interrupted, StoppedAtOnce, UserError, printable, system_error


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (default: ``sys.argv``); the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    # Set before torch is imported: OpenMP threads wait without spinning. On shared cores a spinning wait makes a small
    # network ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):  # as standard error is: a name that cannot be shown ends no command
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _dispatch(words)
    except UserError as error:
        sys.stdout.flush()
        print(paragraph(str(error)), file=sys.stderr)
        return 2
    except (Interrupted, StoppedAtOnce, KeyboardInterrupt) as error:
        sys.stdout.flush()
        print(f"\n{error}" if str(error) else "\nInterrupted; the same command continues.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has closed the pipe
        sys.stderr.close()
        return 0
    except Exception as error:
        sys.stdout.flush()
        if (place := system_error(error)) is not None:
            print(paragraph(str(place)), file=sys.stderr)
            return 2
        traceback.print_exc()
        return 1


def paragraph(text: str) -> str:
    """``text`` filled to the width of the terminal (at most 100 columns), long words are not broken."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    lines = textwrap.wrap(text, max(width, 40), break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(printable, lines))


def _dispatch(words: list[str]) -> int:
    if {"--help", "-h", "help"} & set(words):
        from vitlab.cli.help import page

        print(page())
        return 0
    if {"--version", "-V"} & set(words):
        print(f"vitlab {__version__}")
        return 0
    if {"mode=list", "list", "--list"} & set(words):
        from vitlab.cli.help import answer_list

        print(answer_list([word for word in words if word not in ("mode=list", "list", "--list")]))
        return 0

    if {"-m", "--multirun"} & set(words):
        from vitlab.sweep.grid import sweep

        return sweep(words)

    from vitlab.compose.load import load

    composed = load(words)

    from vitlab.launch.start import start

    work = start(composed)
    return work()
