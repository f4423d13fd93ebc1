"""Entry point: dispatch of the command line, and exit codes.

Exit codes: 0 done, 1 internal error (with a stack trace), 2 a mistake of the user, 130 interrupted.
Help and lists import neither Hydra nor torch; mistakes in overrides are reported without torch.
"""

from __future__ import annotations

import atexit
import io
import os
import sys
from contextlib import suppress
from typing import NoReturn

from vitlab._version import __version__
from vitlab.errors import Interrupted, StoppedAtOnce, UserError, printable, system_error


def command() -> NoReturn:
    """The command ``vitlab``: :func:`main`, and the end of the process with its exit code.

    The process ends after the exit handlers of all libraries. Python would then take its modules apart, which takes
    1.7 s of CPU time after torch and Lightning were imported.
    """
    codes: list[int] = []
    atexit.register(_end, codes)  # the first handler that is registered is the last that is called
    codes.append(main())
    sys.exit(codes[0])


def _end(codes: list[int]) -> None:
    """End the process with the code in ``codes``. Python ends it where there is none, with a stack trace, and under a
    debugger or a measurement of coverage, whose handlers were registered before."""
    if codes and "torch" in sys.modules and sys.gettrace() is None:
        with suppress(AttributeError, OSError, ValueError):  # no stream, or a closed one
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(codes[0])


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
        import traceback

        traceback.print_exc()
        return 1


def paragraph(text: str) -> str:
    """``text`` filled to the width of the terminal (at most 100 columns), long words are not broken."""
    import shutil  # with textwrap a third of the time of --help, which fills no paragraph
    import textwrap

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
