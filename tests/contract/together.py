"""A run in several gloo processes forked from this one, without the start-up time of the launcher's workers."""

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

TIMEOUT = 300
"""Seconds after which the processes of a command are killed."""


def run_ranks(output: Path, *words: str, processes: int = 2, setup: Callable[[int], object] | None = None) -> list[int]:
    """Exit codes of the processes of one command (``SMALL`` and ``words``).

    ``setup`` is called in each of them, with its rank, before the run.

    A process that fails ends the others, as with the launcher.
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
                become_rank(rank, processes, port)
                code = 1
                try:
                    if setup is not None:
                        setup(rank)
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
        return wait_for_all(children)
    finally:
        run.release()


def become_rank(rank: int, processes: int, port: int) -> None:
    """Set the environment and handlers of a worker of torch's launcher."""
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)
    torch.set_num_threads(1)
    interrupt._requests.clear()
    interrupt.install_signal_handlers(quiet=True)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "together"}
    os.environ.update({name: str(value) for name, value in (ranks | store).items()})


def wait_for_all(children: list[int]) -> list[int]:
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
