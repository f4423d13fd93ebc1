"""Two machines, here two commands on one: they are one process; one is lost, the other stops, both continue."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.contract.story import the_run
from tests.contract.test_processes import WORDS, alone, until_trained, worker
from vitlab.compose.load import load
from vitlab.errors import UserError
from vitlab.launch.rendezvous import NodeInfo, node_info


def begin(output: Path, number: int, port: int, *words: str) -> subprocess.Popen[str]:
    """The command on one of two machines."""
    line = [sys.executable, "-m", "vitlab", *WORDS, *words, "hardware=cpu", "trainer.num_nodes=2", f"output={output}"]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(number), "VITLAB_NODE_SILENCE": "8"}
    return subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | where,
        start_new_session=True,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.mark.slow
def test_two_machines_are_one_process_and_a_lost_one_is_told(tmp_path: Path) -> None:
    one = alone(tmp_path / "one", "method=supervised")
    port = free_port()
    first, second = (begin(tmp_path / "two", number, port, "method=supervised") for number in range(2))
    until_trained(first, tmp_path / "two", 30)
    theirs = worker(1, the_run(tmp_path / "two"))  # in a session of its own
    os.kill(theirs, signal.SIGSTOP)  # a machine without power: silent, its connections open
    os.killpg(second.pid, signal.SIGSTOP)
    said = first.communicate(timeout=120)[0]
    os.kill(theirs, signal.SIGKILL)
    os.killpg(second.pid, signal.SIGKILL)
    second.communicate()
    assert first.returncode == 1, said
    assert "Node 2 of 2 stopped responding" in said and "Traceback" not in said
    two = the_run(tmp_path / "two")
    assert not (two / "finished.json").exists()

    port = free_port()
    first, second = (begin(tmp_path / "two", number, port, "method=supervised") for number in range(2))
    said, also = first.communicate(timeout=300)[0], second.communicate(timeout=300)[0]
    assert (first.returncode, second.returncode) == (0, 0), said + also
    assert "2 nodes × 1 process" in said
    whole, parts = (load_file(run / "train" / "model.safetensors") for run in (one, two))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.slow
def test_a_machine_that_is_lost_when_all_is_done_keeps_nobody_waiting(tmp_path: Path) -> None:
    port = free_port()
    first, second = (begin(tmp_path / "two", number, port, "method=supervised") for number in range(2))
    until_trained(first, tmp_path / "two", 30)
    os.killpg(second.pid, signal.SIGSTOP)  # the command alone: its worker, in a session of its own, does its part
    said = first.communicate(timeout=100)[0]  # torch's launcher would wait for 300 seconds
    os.killpg(second.pid, signal.SIGKILL)
    second.communicate()
    if first.returncode == 0:  # else the silence was noticed before the end, which the test above is about
        assert (the_run(tmp_path / "two") / "finished.json").exists(), said
    else:
        assert "stopped responding" in said


def test_where_a_machine_stands_is_in_the_environment() -> None:
    config = load(["method=supervised", "trainer.num_nodes=2", "hardware=cpu"]).config
    there = {"MASTER_ADDR": "a.b", "MASTER_PORT": "29500"}
    assert node_info(config, there | {"NODE_RANK": "1"}) == NodeInfo(1, 2, "a.b", 29500)
    assert node_info(config, {f"PET_{name}": value for name, value in there.items()} | {"PET_NODE_RANK": "0"}).is_main
    for rank, message in (
        (None, "no NODE_RANK"),
        ("one", "an invalid NODE_RANK"),
        ("2", "NODE_RANK=2 is out of range"),
    ):
        with pytest.raises(UserError, match=message):
            node_info(config, there | ({} if rank is None else {"NODE_RANK": rank}))
    assert node_info(load(["method=supervised"]).config, {}) == NodeInfo()
