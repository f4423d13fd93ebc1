"""``python -m vitlab.launch.worker RUN FOLDER PARENT``: one rank of a run in several processes.

Started by :mod:`vitlab.launch.processes`. It reads the composed configuration from the run's folder, without Hydra.
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
from vitlab.data.decode import limit_pixels
from vitlab.errors import Interrupted, StoppedAtOnce, UserError, system_error
from vitlab.files import read_json
from vitlab.launch.imports import without_collections
from vitlab.launch.processes import LAUNCH, write_outcome
from vitlab.launch.rendezvous import Outcome
from vitlab.run.run import Run


def main(run_folder: str, folder: str, parent: str) -> int:
    """Run the method on this rank; a non-zero exit code makes the launcher end the other ranks.

    Args:
        run_folder: of the run.
        folder: for this rank's process id and :class:`Outcome`.
        parent: id of the process that holds the run's lock.
    """
    with without_collections():
        from vitlab.training.interrupt import install_signal_handlers, stop_requested

    rank, outcomes = int(os.environ["RANK"]), Path(folder)
    install_signal_handlers(quiet=True)
    (outcomes / f"{rank}.pid").write_text(str(os.getpid()))
    threading.Thread(target=_exit_with_parent, args=(int(parent),), daemon=True).start()
    launch = read_json(Path(run_folder) / LAUNCH)
    try:
        with without_collections():
            from vitlab.launch.stages import run_method_on_rank

        config = apply_debug(from_tree(launch["tree"]))
        limit_pixels(config.dataset.max_pixels)
        run_method_on_rank(Run.at(Path(run_folder)), config, launch["command"])
    except UserError as error:
        write_outcome(outcomes, rank, Outcome("mistake", error.what, error.cure))
        return 2
    except (Interrupted, StoppedAtOnce, KeyboardInterrupt) as error:
        write_outcome(outcomes, rank, Outcome("stopped", str(error)))
    except Exception as error:
        if (place := system_error(error)) is not None:
            write_outcome(outcomes, rank, Outcome("mistake", place.what, place.cure))
            return 2
        if stop_requested() and rank:  # rank 0 stopped first, and a collective that waited for it raised
            write_outcome(outcomes, rank, Outcome("stopped", ""))
            return 0
        write_outcome(outcomes, rank, Outcome("failure", traceback.format_exc()))
        return 1
    return 0


def _exit_with_parent(parent: int) -> None:
    """Exit when the process that holds the run's lock ends: the lock is free then, and another start may write here."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    code = main(*sys.argv[1:4])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without joining threads of a broken process group
