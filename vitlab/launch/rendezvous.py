"""Several machines: the same command on each of them, told apart by the environment as torchrun's are.

``MASTER_ADDR``, ``MASTER_PORT``: where the first machine is heard; ``NODE_RANK``: which one this is, from 0 (or
``PET_MASTER_ADDR`` and so on, as Kubernetes' operators set them). The first one holds the run; the others learn its
folder from it, which must lie on a file system that all of them see. They say every second that they are alive.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.config import Config
from vitlab.errors import UserError
from vitlab.run.run import differences

if TYPE_CHECKING:
    from torch.distributed import TCPStore

RENDEZVOUS_TIMEOUT = 900
"""Seconds that machines wait for each other at the start."""

HEARTBEAT_TIMEOUT = 60.0
"""Seconds without a word after which a machine is taken for lost; VITLAB_NODE_SILENCE gives others."""


@dataclass(frozen=True)
class NodeInfo:
    """Which machine this is among how many, and where they meet."""

    number: int = 0
    count: int = 1
    host: str = "127.0.0.1"
    port: int = 0

    @property
    def is_main(self) -> bool:
        """Whether the run is held here."""
        return self.number == 0

    def told(self, number: int) -> str:
        """A machine as people are told of it."""
        return f"Node {number + 1} of {self.count}"


@dataclass
class Outcome:
    """How a worker, or a whole machine, ended."""

    kind: str  # "mistake" (the user's), "stopped" (asked to), "failure" (ours), "killed" (from outside)
    text: str  # the paragraph, or the stack trace
    cure: str = ""
    time: float = 0.0


def node_info(config: Config, environment: Mapping[str, str] = os.environ) -> NodeInfo:
    """Where this machine stands.

    Raises:
        UserError: ``trainer.num_nodes`` asks for several, and the environment does not say which one this is.
    """
    count = config.trainer.num_nodes
    if count == 1:
        return NodeInfo()
    found = {}
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        value = environment.get(name) or environment.get(f"PET_{name}")
        if not value or (name != "MASTER_ADDR" and not value.isdecimal()):
            raise UserError(
                f"trainer.num_nodes={count}: the environment has {'no' if not value else 'a strange'} {name}.",
                "Give the same command on every machine, with MASTER_ADDR and MASTER_PORT of the first one and "
                f"NODE_RANK=0 to {count - 1}; or have hardware=slurm start them.",
            )
        found[name] = value
    number = int(found["NODE_RANK"])
    if number >= count:
        raise UserError(f"NODE_RANK={number} is none of the {count} machines of trainer.num_nodes.", "Count from 0.")
    return NodeInfo(number, count, found["MASTER_ADDR"], int(found["MASTER_PORT"]))


class Rendezvous(threading.Thread):
    """This machine's word to the others, over the store that torch's launcher keeps on the first one."""

    def __init__(self, here: NodeInfo) -> None:
        super().__init__(daemon=True)
        self.here = here
        self.trouble: Outcome | None = None  # why the others cannot go on
        self.silence = float(os.environ.get("VITLAB_NODE_SILENCE", HEARTBEAT_TIMEOUT))
        self._folder: str | None = None
        self._tree: dict[str, Any] = {}
        self._over = threading.Event()
        self._connected: TCPStore | None = None

    def hold(self, folder: Path, tree: Mapping[str, Any]) -> None:
        """On the first machine: what to tell the others when they come."""
        self._folder, self._tree = str(folder.absolute()), dict(tree)

    def meet(self, tree: Mapping[str, Any]) -> Path:
        """On the others: wait for the first one; the run's folder.

        Raises:
            UserError: nobody came, the commands differ, or the folder cannot be seen from here.
        """
        deadline = time.monotonic() + RENDEZVOUS_TIMEOUT
        while True:
            try:
                said = json.loads(self._store(5.0).get("run"))
                break
            except Exception as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"The first machine was not heard at {self.here.host}:{self.here.port} for "
                        f"{RENDEZVOUS_TIMEOUT} seconds.",
                        "Start the same command there with NODE_RANK=0, and see that the port can be reached.",
                    ) from error
                time.sleep(0.5)
        if unlike := differences(said["tree"], tree):
            key, (theirs, mine) = next(iter(unlike.items()))
            raise UserError(
                f"The first machine was given another command ({key}: {theirs} there, {mine} here).",
                "Give the same one everywhere.",
            )
        folder = Path(said["folder"])
        if not (folder / "run.json").exists():
            raise UserError(
                f"The run's folder {folder} cannot be seen from {self.here.told(self.here.number).lower()}.",
                "Choose output= on a file system that all machines share.",
            )
        return folder

    def run(self) -> None:
        """Say that we are alive and listen whether the others are, until :meth:`end`."""
        heard: dict[int, tuple[bytes, float]] = {}
        try:
            self._connected = store = self._store(RENDEZVOUS_TIMEOUT)
            if self._folder is not None:
                store.set("run", json.dumps({"folder": self._folder, "tree": self._tree}))
        except Exception:
            return  # torch's launcher, which waits for the same store, tells it
        beats = 0
        while not self._over.wait(min(1.0, self.silence / 10)):
            beats += 1
            try:
                store.set(f"beat {self.here.number}", str(beats))
                self._listen(store, heard)
            except Exception:
                if not self._over.is_set():
                    self.trouble = self.trouble or self._lost(0)
                return

    def _listen(self, store: TCPStore, heard: dict[int, tuple[bytes, float]]) -> None:
        now = time.monotonic()
        if self.trouble is None and store.check(["end"]):
            said = json.loads(store.get("end"))
            if said.pop("node") != self.here.number:
                self.trouble = Outcome(**said)
        for number in set(range(self.here.count)) - {self.here.number}:
            if not store.check([f"beat {number}"]):
                continue  # torch's launcher waits for those who have not come yet
            beat = store.get(f"beat {number}")
            if number not in heard or heard[number][0] != beat:
                heard[number] = beat, now
            elif self.trouble is None and now - heard[number][1] > self.silence and not store.check([f"bye {number}"]):
                self.trouble = self._lost(number)

    def _lost(self, number: int) -> Outcome:
        return Outcome(
            "killed",
            f"{self.here.told(number)} is not heard of any more; the others were stopped. When it is back, the same "
            "command on every machine continues from the last checkpoint.",
        )

    def reason(self, patience: float) -> Outcome | None:
        """Why another machine ended, if it is heard in so many seconds."""
        deadline = time.monotonic() + patience
        while self.trouble is None and time.monotonic() < deadline and self.is_alive():
            time.sleep(0.1)
        return self.trouble

    def end(self, outcome: Outcome | None) -> None:
        """Tell the others how it ended here (None: well), and be silent from now on."""
        self._over.set()
        self.join(5)
        try:
            store = self._connected
            if store is None:
                return
            store.set(f"bye {self.here.number}", "1")
            if outcome is not None and self.trouble is None:
                said = {"node": self.here.number, **asdict(outcome)}
                store.compare_set("end", "", json.dumps(said))
                time.sleep(3 * min(1.0, self.silence / 10) if self.here.is_main else 0)  # the store ends with us
        except Exception:
            return  # nobody is left to hear it

    def _store(self, seconds: float) -> TCPStore:
        from torch.distributed import TCPStore

        return TCPStore(self.here.host, self.here.port, None, False, timedelta(seconds=seconds), wait_for_workers=False)
