"""Two nodes, here two commands on one machine: the result of one process, also after one node is lost."""

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
from tests.contract.test_processes import WORDS, run_alone, wait_until_trained, worker
from vitlab.compose.load import load
from vitlab.errors import UserError
from vitlab.launch.rendezvous import NodeInfo, node_info


def start_node(output: Path, number: int, port: int, *words: str) -> subprocess.Popen[str]:
    """Start the command on one of two nodes."""
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
def test_two_nodes_give_the_result_of_one_process_and_a_lost_node_is_reported(tmp_path: Path) -> None:
    one = run_alone(tmp_path / "one", "method=supervised")
    port = free_port()
    first, second = (start_node(tmp_path / "two", number, port, "method=supervised") for number in range(2))
    wait_until_trained(first, tmp_path / "two", 30)
    remote = worker(1, the_run(tmp_path / "two"))  # in a session of its own
    os.kill(remote, signal.SIGSTOP)  # as a node without power: no heartbeat, connections open
    os.killpg(second.pid, signal.SIGSTOP)
    text = first.communicate(timeout=120)[0]
    os.kill(remote, signal.SIGKILL)
    os.killpg(second.pid, signal.SIGKILL)
    second.communicate()
    assert first.returncode == 1, text
    assert "Node 2 of 2 stopped responding" in text and "Traceback" not in text
    two = the_run(tmp_path / "two")
    assert not (two / "finished.json").exists()

    port = free_port()
    first, second = (start_node(tmp_path / "two", number, port, "method=supervised") for number in range(2))
    text, other = first.communicate(timeout=300)[0], second.communicate(timeout=300)[0]
    assert (first.returncode, second.returncode) == (0, 0), text + other
    assert "2 nodes × 1 process" in text
    single, double = (load_file(run / "train" / "model.safetensors") for run in (one, two))
    for name in single:
        torch.testing.assert_close(double[name], single[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.slow
def test_a_node_that_is_lost_after_the_end_does_not_block_the_other(tmp_path: Path) -> None:
    port = free_port()
    first, second = (start_node(tmp_path / "two", number, port, "method=supervised") for number in range(2))
    wait_until_trained(first, tmp_path / "two", 30)
    os.killpg(second.pid, signal.SIGSTOP)  # the command only: its worker, in its own session, continues
    text = first.communicate(timeout=100)[0]  # torch's launcher would wait for 300 seconds
    os.killpg(second.pid, signal.SIGKILL)
    second.communicate()
    if first.returncode == 0:  # else the node was lost before the end, as in the test above
        assert (the_run(tmp_path / "two") / "finished.json").exists(), text
    else:
        assert "stopped responding" in text


def test_rank_and_address_are_read_from_the_environment() -> None:
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
