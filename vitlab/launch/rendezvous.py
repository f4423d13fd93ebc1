"""Several nodes: the same command on each of them, distinguished by the environment variables of torchrun.

``MASTER_ADDR``, ``MASTER_PORT``: address of the store on the first node; ``NODE_RANK``: rank of this node, from 0 (or
``PET_MASTER_ADDR`` and so on, as Kubernetes operators set them). The first node holds the run's lock and publishes the
run's folder, which must be on a file system that all nodes share. Every node sends a heartbeat each second.
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
from vitlab.run.identity import differences

if TYPE_CHECKING:
    from torch.distributed import TCPStore

RENDEZVOUS_TIMEOUT = 900
"""Seconds that the nodes wait for each other at the start."""

HEARTBEAT_TIMEOUT = 60.0
"""Seconds without a heartbeat after which a node counts as lost; VITLAB_NODE_SILENCE overrides it."""


@dataclass(frozen=True)
class NodeInfo:
    """Rank of this node, number of nodes, and the address of the store."""

    rank: int = 0
    count: int = 1
    host: str = "127.0.0.1"
    port: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this node holds the run's lock."""
        return self.rank == 0

    def describe(self, rank: int | None = None) -> str:
        """``Node 2 of 4``, for messages; this node unless ``rank`` is given."""
        return f"Node {(self.rank if rank is None else rank) + 1} of {self.count}"


@dataclass
class Outcome:
    """How a worker process, or all processes of a node, ended."""

    kind: str  # "mistake" (UserError), "stopped" (by request), "failure" (an exception), "killed" (by a signal)
    text: str  # the message, or the stack trace
    cure: str = ""
    time: float = 0.0


def node_info(config: Config, environment: Mapping[str, str] = os.environ) -> NodeInfo:
    """Read the rank of this node and the address of the store from the environment.

    Raises:
        UserError: ``trainer.num_nodes`` is above 1, and a variable is missing or invalid.
    """
    count = config.trainer.num_nodes
    if count == 1:
        return NodeInfo()
    values = {}
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        value = environment.get(name) or environment.get(f"PET_{name}")
        if not value or (name != "MASTER_ADDR" and not value.isdecimal()):
            raise UserError(
                f"trainer.num_nodes={count}: the environment has {'no' if not value else 'an invalid'} {name}.",
                "Give the same command on every node, with MASTER_ADDR and MASTER_PORT of the first one and "
                f"NODE_RANK=0 to {count - 1}; or have hardware=slurm start them.",
            )
        values[name] = value
    rank = int(values["NODE_RANK"])
    if rank >= count:
        raise UserError(f"NODE_RANK={rank} is out of range for trainer.num_nodes={count}.", "Count from 0.")
    return NodeInfo(rank, count, values["MASTER_ADDR"], int(values["MASTER_PORT"]))


class Rendezvous(threading.Thread):
    """Exchange of the run's folder, heartbeats and outcomes between the nodes, over the store of torch's launcher.

    The thread sends this node's heartbeat and checks those of the other nodes until :meth:`close`.

    Attributes:
        peer_outcome: why another node ended early or counts as lost; None while all of them run.
        heartbeat_timeout: seconds without a heartbeat after which a node counts as lost.
    """

    def __init__(self, node: NodeInfo) -> None:
        super().__init__(daemon=True)
        self.node = node
        self.peer_outcome: Outcome | None = None
        self.heartbeat_timeout = float(os.environ.get("VITLAB_NODE_SILENCE", HEARTBEAT_TIMEOUT))
        self._folder: str | None = None
        self._tree: dict[str, Any] = {}
        self._closed = threading.Event()
        self._store: TCPStore | None = None

    def publish(self, folder: Path, tree: Mapping[str, Any]) -> None:
        """On the first node: the run's folder and configuration, stored for the other nodes once the thread runs."""
        self._folder, self._tree = str(folder.absolute()), dict(tree)

    def wait_for_main(self, tree: Mapping[str, Any]) -> Path:
        """On the other nodes: wait for the first one, and return the run's folder.

        Raises:
            UserError: the first node cannot be reached, the commands differ, or the folder does not exist here.
        """
        deadline = time.monotonic() + RENDEZVOUS_TIMEOUT
        while True:
            try:
                published = json.loads(self._connect(5.0).get("run"))
                break
            except Exception as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"The first node could not be reached at {self.node.host}:{self.node.port} within "
                        f"{RENDEZVOUS_TIMEOUT} seconds.",
                        "Start the same command there with NODE_RANK=0, and check that the port is open.",
                    ) from error
                time.sleep(0.5)
        if changed := differences(published["tree"], tree):
            key, (theirs, ours) = next(iter(changed.items()))
            raise UserError(
                f"The command on the first node differs from this one ({key}: {theirs} there, {ours} here).",
                "Give the same command on every node.",
            )
        folder = Path(published["folder"])
        if not (folder / "run.json").exists():
            raise UserError(
                f"The run's folder {folder} does not exist on {self.node.describe().lower()}.",
                "Choose output= on a file system that all nodes share.",
            )
        return folder

    def run(self) -> None:
        """Send heartbeats and check those of the other nodes, until :meth:`close`."""
        last: dict[int, tuple[bytes, float]] = {}
        try:
            self._store = store = self._connect(RENDEZVOUS_TIMEOUT)
            if self._folder is not None:
                store.set("run", json.dumps({"folder": self._folder, "tree": self._tree}))
        except Exception:
            return  # torch's launcher connects to the same store, and reports the failure
        beats = 0
        while not self._closed.wait(self._interval):
            beats += 1
            try:
                store.set(f"heartbeat {self.node.rank}", str(beats))
                self._check_peers(store, last)
            except Exception:
                if not self._closed.is_set():
                    self.peer_outcome = self.peer_outcome or self._lost(0)
                return

    def _check_peers(self, store: TCPStore, last: dict[int, tuple[bytes, float]]) -> None:
        """Set :attr:`peer_outcome` from the outcome in the store, or from a heartbeat that is overdue.

        Args:
            last: by rank, the last heartbeat and when it was seen first; updated.
        """
        now = time.monotonic()
        if self.peer_outcome is None and store.check(["outcome"]):
            record = json.loads(store.get("outcome"))
            if record.pop("node") != self.node.rank:
                self.peer_outcome = Outcome(**record)
        for rank in set(range(self.node.count)) - {self.node.rank}:
            if not store.check([f"heartbeat {rank}"]):
                continue  # not connected yet: torch's launcher has its own time limit for that
            beat = store.get(f"heartbeat {rank}")
            if rank not in last or last[rank][0] != beat:
                last[rank] = beat, now
            elif (
                self.peer_outcome is None
                and now - last[rank][1] > self.heartbeat_timeout
                and not store.check([f"closed {rank}"])
            ):
                self.peer_outcome = self._lost(rank)

    def _lost(self, rank: int) -> Outcome:
        return Outcome(
            "killed",
            f"{self.node.describe(rank)} stopped responding; the others were stopped. When it is back, the same "
            "command on every node continues from the last checkpoint.",
        )

    def wait_for_peer_outcome(self, seconds: float) -> Outcome | None:
        """Wait at most ``seconds`` for the outcome of another node; None if there is none by then."""
        deadline = time.monotonic() + seconds
        while self.peer_outcome is None and time.monotonic() < deadline and self.is_alive():
            time.sleep(0.1)
        return self.peer_outcome

    def close(self, outcome: Outcome | None) -> None:
        """Store this node's outcome for the other nodes (None: finished), and stop the heartbeat."""
        self._closed.set()
        self.join(5)
        try:
            store = self._store
            if store is None:
                return
            store.set(f"closed {self.node.rank}", "1")
            if outcome is not None and self.peer_outcome is None:
                record = {"node": self.node.rank, **asdict(outcome)}
                store.compare_set("outcome", "", json.dumps(record))
                # The store ends with the first node's process: the others need time to read it.
                time.sleep(3 * self._interval if self.node.is_main else 0)
        except Exception:
            return  # the store is gone

    @property
    def _interval(self) -> float:
        """Seconds between two heartbeats."""
        return min(1.0, self.heartbeat_timeout / 10)

    def _connect(self, seconds: float) -> TCPStore:
        from torch.distributed import TCPStore

        return TCPStore(self.node.host, self.node.port, None, False, timedelta(seconds=seconds), wait_for_workers=False)
