"""``python -m vitlab.launch.worker RUN FOLDER PARENT``: one of several processes of a run.

Started by :mod:`vitlab.launch.processes`.

It reads the finished configuration from the run's folder and never sees Hydra.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from pathlib import Path

from vitlab.compose.schema import from_tree
from vitlab.config.debug import apply_debug
from vitlab.errors import Interrupted, UserError, full_disk
from vitlab.files import read_json
from vitlab.launch.processes import LAUNCH, write_outcome
from vitlab.launch.rendezvous import Outcome
from vitlab.run.run import Run


def main(run_folder: str, folder: str, parent: str) -> int:
    """Do this process's share; the exit code tells the launcher whether to end the others."""
    from vitlab.training.interrupt import install_signal_handlers, stop_requested

    rank, talk = int(os.environ["RANK"]), Path(folder)
    install_signal_handlers(quiet=True)
    (talk / f"{rank}.pid").write_text(str(os.getpid()))
    threading.Thread(target=_exit_with_parent, args=(int(parent),), daemon=True).start()
    launch = read_json(Path(run_folder) / LAUNCH)
    try:
        from vitlab.launch.stages import run_method_on_rank

        run_method_on_rank(Run.at(Path(run_folder)), apply_debug(from_tree(launch["tree"])), launch["command"])
    except UserError as error:
        write_outcome(talk, rank, Outcome("mistake", error.what, error.cure))
        return 2
    except (Interrupted, KeyboardInterrupt) as error:
        write_outcome(talk, rank, Outcome("stopped", str(error)))
    except Exception as error:
        if (full := full_disk(error)) is not None:
            write_outcome(talk, rank, Outcome("mistake", full.what, full.cure))
            return 2
        if (
            stop_requested() and rank
        ):  # the leading process stopped first, and whoever waited for it hears that as an error
            write_outcome(talk, rank, Outcome("stopped", ""))
            return 0
        write_outcome(talk, rank, Outcome("failure", traceback.format_exc()))
        return 1
    return 0


def _exit_with_parent(parent: int) -> None:
    """End with the process that holds the run's lock: another start must not meet us at work."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    code = main(*sys.argv[1:4])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of a torn process group must not hold us up
