"""``hardware=slurm``: the same command as a job submitted by submitit, requeued when it is preempted or times out.

The job runs the command on each of its nodes. Before the time limit or a preemption SLURM sends a signal: the run
saves and stops as on Ctrl-C, and the job is requeued. The run's folder and name are the same as without SLURM; the
job's logs are in its ``jobs/``.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlab.config import Config
from vitlab.errors import UserError
from vitlab.files import read_json, write_json
from vitlab.run.environment import now
from vitlab.run.run import Run

if TYPE_CHECKING:
    import submitit

JOB_VARIABLE = "VITLAB_JOB"
"""Environment variable of a command that runs inside a job: the id of the job."""

FINAL_STATES = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "OUT_OF_MEMORY",
    "NODE_FAIL",
    "FINISHED",
    "INTERRUPTED",
    "GONE",
)
"""Final states of a job; SLURM may append more to the word."""


def is_queued(config: Config) -> bool:
    """Whether the command is to be submitted as a job, and does not already run inside one."""
    return config.hardware.name == "slurm" and JOB_VARIABLE not in os.environ


@dataclass
class Job:
    """Callable that submitit runs on each node: the command, with the variables of :func:`node_info`."""

    words: list[str]

    def __call__(self) -> None:
        """Run the command and wait for its end.

        Raises:
            RuntimeError: its exit code is not 0; its own message is printed above.
        """
        import submitit

        job = submitit.JobEnvironment()
        environment = os.environ | {JOB_VARIABLE: str(job.job_id)}
        if job.num_nodes > 1:
            port = 20000 + int("".join(filter(str.isdigit, job.job_id)) or 0) % 20000
            environment |= {"MASTER_ADDR": job.hostnames[0], "MASTER_PORT": str(port), "NODE_RANK": str(job.node)}
        print(f"{now()}  {shlex.join(['python', '-m', 'vitlab', *self.words])}", flush=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vitlab", *self.words], env=environment, preexec_fn=_ignore_job_signal
        )
        if code := self.process.wait():
            raise RuntimeError(f"the command ended with exit code {code}")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Handler of SLURM's signal, called by submitit: have the run save and stop, and requeue the same command."""
        from submitit.helpers import DelayedSubmission

        self.process.send_signal(signal.SIGTERM)
        # Not process.wait(): this is a signal handler, and the call it interrupted holds the lock of wait().
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Job(self.words))


def _ignore_job_signal() -> None:
    """SLURM sends SIGUSR2 to every process of a step, and its default action ends the process."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def submit(run: Run, config: Config, words: list[str], command: str) -> int:
    """Submit the command as a job, unless its job is pending or running; print the job's id and logs.

    Raises:
        UserError: submitit or SLURM is missing, or the submission fails.
    """
    try:
        import submitit
    except ImportError:
        raise UserError(
            "hardware=slurm needs the package submitit, which is not installed.", 'pip install "vitlab[slurm]"'
        ) from None
    jobs = run.folder / "jobs"
    if (jobs / "job.json").exists():
        before = read_json(jobs / "job.json")
        if (state := _state(before)).split()[0] not in FINAL_STATES:
            print(f"job      {before['job']} of this run is {state.lower()}; its log is {before['log']}")
            return 0
    options = parameters(config, run.name)
    run.lock(command)
    try:
        executor = submitit.AutoExecutor(
            folder=jobs, cluster=config.slurm.executor, slurm_max_num_timeout=config.slurm.requeues
        )
        executor.update_parameters(**options)
        job = executor.submit(Job(words))
    except Exception as error:
        run.remove_if_empty(except_for=jobs)
        message = " ".join(str(error).split())
        raise UserError(f"The job could not be submitted: {message}.", "Its keys: mode=list key=slurm.") from None
    finally:
        run.release()
    log = str(job.paths.stdout)
    write_json(jobs / "job.json", {"job": job.job_id, "executor": config.slurm.executor, "log": log, "time": now()})
    print(f"job      {job.job_id} is submitted; its log is {log}, its errors are in {job.paths.stderr}")
    print(f"         The same command shows its state; the run is {run.folder}.")
    return 0


def parameters(config: Config, name: str) -> dict[str, Any]:
    """Resources of the job as submitit's parameters: one task per node, which starts a process per device.

    Raises:
        UserError: ``trainer.devices`` is not a number, so it is not known before the job runs.
    """
    trainer, slurm = config.trainer, config.slurm
    if not isinstance(trainer.devices, int):
        raise UserError(
            f"trainer.devices={trainer.devices}: a job requests a number of devices per node.",
            "Give their number, for instance trainer.devices=8.",
        )
    options: dict[str, Any] = {
        "name": name,
        "nodes": trainer.num_nodes,
        "tasks_per_node": 1,
        "cpus_per_task": slurm.cpus * trainer.devices,
        "timeout_min": slurm.minutes,
        "slurm_signal_delay_s": slurm.warning,
    }
    if slurm.executor == "local":
        options = {"nodes": trainer.num_nodes, "tasks_per_node": 1, "timeout_min": slurm.minutes}
    if trainer.accelerator not in ("cpu", "mps"):
        options["gpus_per_node"] = trainer.devices
    if slurm.executor == "slurm":
        if slurm.memory is not None:
            options["mem_gb"] = slurm.memory
        for key in ("partition", "account", "qos", "constraint"):
            if (value := getattr(slurm, key)) is not None:
                options[f"slurm_{key}"] = value
        if slurm.extra:
            options["slurm_additional_parameters"] = dict(slurm.extra)
    return options


def _state(before: dict[str, Any]) -> str:
    """State of a job, as SLURM names it."""
    if before["executor"] == "local":
        try:
            os.kill(int(before["job"]), 0)
        except ProcessLookupError:
            return "GONE"
        return "RUNNING"
    import submitit

    return str(submitit.SlurmJob(folder=Path(before["log"]).parent, job_id=before["job"]).state) or "GONE"
