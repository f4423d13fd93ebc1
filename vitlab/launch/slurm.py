"""``hardware=slurm``: the same command, put into a cluster's queue by submitit; preempted, it goes on by itself.

The job types the command on each of its machines. When its time is up or somebody more important comes, SLURM warns
it: the run saves and stops as it does on Ctrl-C, and the job is put back into the queue. The run's folder and name
are what they are without a queue; what the job says is in its ``jobs/``.
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

INSIDE = "VITLAB_JOB"
"""Set in the environment of a command that a job types."""

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "FINISHED", "INTERRUPTED", "GONE")
"""States in which a job does nothing any more; SLURM may write more behind the word."""


def is_queued(config: Config) -> bool:
    """Whether the command is to be put into a queue, and is not yet in a job of it."""
    return config.hardware.name == "slurm" and INSIDE not in os.environ


@dataclass
class Job:
    """What the queue runs on each machine: the command, with the environment that tells the machines apart."""

    words: list[str]

    def __call__(self) -> None:
        """Type the command and wait for its end.

        Raises:
            RuntimeError: it ended with another code than 0; its last words stand above.
        """
        import submitit

        job = submitit.JobEnvironment()
        environment = os.environ | {INSIDE: str(job.job_id)}
        if job.num_nodes > 1:
            port = 20000 + int("".join(filter(str.isdigit, job.job_id)) or 0) % 20000
            where = {"MASTER_ADDR": job.hostnames[0], "MASTER_PORT": str(port), "NODE_RANK": str(job.node)}
            environment |= where
        print(f"{now()}  {shlex.join(['python', '-m', 'vitlab', *self.words])}", flush=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vitlab", *self.words], env=environment, preexec_fn=_leave_warnings_to_the_job
        )
        if code := self.process.wait():
            raise RuntimeError(f"the command ended with exit code {code}")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """submitit heard the queue's warning: have the run save and stop, and come again with the same command."""
        from submitit.helpers import DelayedSubmission

        self.process.send_signal(signal.SIGTERM)
        # Not process.wait(): this is a signal's handler, and what it interrupted is in there, holding its lock.
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Job(self.words))


def _leave_warnings_to_the_job() -> None:
    """SLURM sends its warning to every process of a step, and most programs die of it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def submit(run: Run, config: Config, words: list[str], command: str) -> int:
    """Put the command into the queue, unless it is there already; says which job it is and where it speaks.

    Raises:
        UserError: submitit or SLURM is missing, or the queue refuses.
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
        if (state := _state(before)).split()[0] not in OVER:
            print(f"job      {before['job']} of this run is {state.lower()}; it says in {before['log']}")
            return 0
    wanted = parameters(config, run.name)
    run.lock(command)
    try:
        executor = submitit.AutoExecutor(
            folder=jobs, cluster=config.slurm.executor, slurm_max_num_timeout=config.slurm.requeues
        )
        executor.update_parameters(**wanted)
        job = executor.submit(Job(words))
    except Exception as error:
        run.forget_if_empty(beside=jobs)
        said = " ".join(str(error).split())
        raise UserError(f"The queue did not take the job: {said}.", "Its keys: mode=list key=slurm.") from None
    finally:
        run.release()
    log = str(job.paths.stdout)
    write_json(jobs / "job.json", {"job": job.job_id, "executor": config.slurm.executor, "log": log, "time": now()})
    print(f"job      {job.job_id} is in the queue; it says in {log}, and what goes wrong in {job.paths.stderr}")
    print(f"         The same command asks how it is; the run is {run.folder}.")
    return 0


def parameters(config: Config, name: str) -> dict[str, Any]:
    """What the job asks for, in submitit's names: one task on each machine, which starts a process for each device.

    Raises:
        UserError: the number of devices cannot be known before the job runs.
    """
    trainer, asked = config.trainer, config.slurm
    if not isinstance(trainer.devices, int):
        raise UserError(
            f"trainer.devices={trainer.devices}: a queue is asked for so many devices of a machine.",
            "Give their number, for instance trainer.devices=8.",
        )
    found: dict[str, Any] = {
        "name": name,
        "nodes": trainer.num_nodes,
        "tasks_per_node": 1,
        "cpus_per_task": asked.cpus * trainer.devices,
        "timeout_min": asked.minutes,
        "slurm_signal_delay_s": asked.warning,
    }
    if asked.executor == "local":
        found = {"nodes": trainer.num_nodes, "tasks_per_node": 1, "timeout_min": asked.minutes}
    if trainer.accelerator not in ("cpu", "mps"):
        found["gpus_per_node"] = trainer.devices
    if asked.executor == "slurm":
        if asked.memory is not None:
            found["mem_gb"] = asked.memory
        for key in ("partition", "account", "qos", "constraint"):
            if (value := getattr(asked, key)) is not None:
                found[f"slurm_{key}"] = value
        if asked.extra:
            found["slurm_additional_parameters"] = dict(asked.extra)
    return found


def _state(before: dict[str, Any]) -> str:
    """What the queue says of a job."""
    if before["executor"] == "local":
        try:
            os.kill(int(before["job"]), 0)
        except ProcessLookupError:
            return "GONE"
        return "RUNNING"
    import submitit

    return str(submitit.SlurmJob(folder=Path(before["log"]).parent, job_id=before["job"]).state) or "GONE"
