"""A run in two gloo processes forked from this one: no start-up to pay, everything else as the launcher's workers."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from tests.contract.story import small
from tests.shared import skip_where_torch_is_not_forked
from vitlab.compose.load import load
from vitlab.errors import Interrupted, UserError
from vitlab.launch.stages import run_method_on_rank
from vitlab.launch.start import find_run
from vitlab.run.environment import environment
from vitlab.training import interrupt

PATIENCE = 300
"""Seconds that a story in two processes may take."""


def tell_together(
    output: Path, *words: str, processes: int = 2, meanwhile: Callable[[int], None] | None = None
) -> list[int]:
    """Exit codes of the processes of one command (``SMALL`` and ``words``).

    ``meanwhile`` is called in each of them, with its rank, before the work.

    A process that fails ends the others, as the launcher does.
    """
    skip_where_torch_is_not_forked()
    words = ("hardware=ddp_cpu", *words)
    composed = load([*small(*words), *words, f"output={output}"])
    run = find_run(composed)
    run.lock("together")
    run.note_environment(environment("together"))
    try:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        children = []
        for rank in range(processes):
            child = os.fork()
            if child == 0:
                _be(rank, processes, port)
                code = 1
                try:
                    if meanwhile is not None:
                        meanwhile(rank)
                    run_method_on_rank(run, composed.config, "together")
                    code = 0
                except UserError as error:
                    print(error, file=sys.stderr)
                    code = 2
                except (Interrupted, KeyboardInterrupt):
                    code = 130
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
            children.append(child)
        return _wait(children)
    finally:
        run.release()


def _be(rank: int, processes: int, port: int) -> None:
    """What torch's launcher says to a worker."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)  # who waits so long waits for nobody
    torch.set_num_threads(1)
    interrupt._requests.clear()
    interrupt.install_signal_handlers(quiet=True)
    here = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    talk = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "together"}
    os.environ.update({name: str(value) for name, value in (here | talk).items()})


def _wait(children: list[int]) -> list[int]:
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in children:
            if child in codes:
                continue
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
                if codes[child] not in (0, 130):
                    for other in set(children) - set(codes):
                        os.kill(other, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]
