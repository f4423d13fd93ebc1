"""Weights & Biases: a run is a group, each of its stages and each of its measured models a job of it.

=====================  =========================================================================================
a stage                config (the full tree, ``role``, ``sweep``), the record by ``step``, ``views``: the first
                       training batch as the network sees it; the artifact that it made, and those that it used
a model (evaluation)   summary: top1, nll, ece ..., params, macs, bytes, ``latency_ms_1`` ...; tables ``predictions``,
                       ``confusion`` and ``reliability`` with their pictures; the model that they are of
=====================  =========================================================================================

The step of W&B is ours, so that a continued job, which has the id of the first, goes on in the same curves.

W&B is a copy, so it never stops a run: where its server cannot be reached a job is logged offline, and a job that
fails later is given up, each with one line.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vitlab.config import Config
from vitlab.files import atomic_write, read_json
from vitlab.run.model_file import DIGEST
from vitlab.run.recorder import Recorder, Row, numbers
from vitlab.run.run import Run
from vitlab.stage import Stage
from vitlab.training.progress import print_line

if TYPE_CHECKING:
    import wandb
    from PIL.Image import Image

SWEEP_NAME = "VITLAB_SWEEP"
"""Environment variable by which a job of a sweep knows the sweep's name."""

VIEWS = "views.png"
"""What a training leaves of its first batch, in the stage's folder."""

CONNECT_SECONDS = 5.0
"""Until a server counts as unreachable."""

START_SECONDS, FINISH_SECONDS = 30.0, 600.0
"""Longest wait for a job to start, and for its uploads when it ends."""

PASSING = ("done.json", "checkpoint.ckpt", VIEWS)
"""Files of a stage that are not what it made."""


@dataclass
class Prediction:
    """One test image and what a model predicts for it."""

    key: str
    image: Image
    label: str
    predicted: str
    confidence: float


@contextmanager
def stage_job(config: Config, run: Run, stages: Sequence[Stage], stage: Stage, recorder: Recorder) -> Iterator[None]:
    """While ``stage`` runs, W&B gets every row of the record; what the stage made follows when it ends well."""
    import wandb

    views = run.folder / stage.name / VIEWS
    with _job(config, run, stage.name, stage.name, {"role": stage.role}) as job:
        for name, makes in ((one.name, one.makes) for one in stages if one.name in stage.needs):
            job.attempt(lambda to, name=name, makes=makes: _use(to, _artifact(run, name, config, makes)))  # type: ignore[misc]
        sent = False

        def copy_row(row: Row) -> None:
            nonlocal sent
            values: dict[str, Any] = {"step": row["step"], **numbers(row)}
            if not sent and views.exists():
                values["views"] = wandb.Image(str(views))
                sent = True
            job.attempt(lambda to: to.log(values, step=int(str(row["step"]))))

        recorder.listeners.append(copy_row)
        try:
            yield
        finally:
            recorder.listeners.remove(copy_row)
        if stage.makes != "report":
            job.attempt(lambda to: to.log_artifact(_artifact(run, stage.name, config, stage.makes)))


def model_job(
    config: Config,
    run: Run,
    stage: str,
    role: str,
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]],
    summary: Mapping[str, float],
    predictions: Sequence[Prediction],
    pictures: Mapping[str, Path],
) -> None:
    """What was measured of one model.

    Args:
        tables: of the task, name to heading and rows.
        summary: single numbers, by the names that the README's dashboard reads.
        predictions: test images that are shown.
        pictures: PNG files by name.
    """
    import wandb

    with _job(config, run, f"evaluation-{stage}", "evaluation", {"role": role, "stage": stage}) as job:
        job.attempt(lambda to: _use(to, _artifact(run, stage, config, "model")))
        columns: list[str | int] = ["key", "image", "label", "predicted", "confidence", "right"]
        rows = [
            [p.key, wandb.Image(p.image), p.label, p.predicted, p.confidence, p.label == p.predicted]
            for p in predictions
        ]
        values = {
            "predictions": wandb.Table(columns, rows),
            **{name: wandb.Table(list(head), [list(row) for row in body]) for name, (head, body) in tables.items()},
            **{f"pictures/{name}": wandb.Image(str(path)) for name, path in pictures.items()},
        }
        job.attempt(lambda to: to.log(values))
        job.attempt(lambda to: to.summary.update(dict(summary)))


_offline: set[Path] = set()  # folders of runs whose server failed in this process: their other jobs do not wait again


def _go_offline(folder: Path, reason: str) -> None:
    print_line(f"W&B: {reason}; the run is logged offline, and {_kept(folder)}.")
    _offline.add(folder)


class _Job:
    """A job of W&B that is given up at its first error, with one line; the run goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # of the run
        self.run: wandb.Run | None = None

    def attempt(self, call: Callable[[wandb.Run], object]) -> None:
        """``call`` with W&B's run, while there is one."""
        if self.run is None:
            return
        try:
            call(self.run)
        # The client raises whatever fails in it: of the network, its service process, its own types.
        except Exception as error:
            self.run = None
            print_line(f"W&B: logging of this job ended ({_short(error)}); the run goes on, and {_kept(self.folder)}.")


@contextmanager
def _job(config: Config, run: Run, name: str, kind: str, about: Mapping[str, str]) -> Iterator[_Job]:
    """A job of W&B under the id that the run keeps for it; finished when the block ends, in whatever way."""
    import wandb

    offline = config.logger.offline
    if offline is None:
        offline = not (os.environ.get("WANDB_API_KEY") or _has_key())
    if not offline and run.folder not in _offline and (reason := unreachable()):
        _go_offline(run.folder, reason)
    offline = offline or run.folder in _offline
    sweep = os.environ.get(SWEEP_NAME)

    def start(mode: str) -> wandb.Run:
        return wandb.init(
            project=config.logger.project,
            group=run.name,
            job_type=kind,
            name=f"{run.name}/{name}",
            id=_id(run, name),
            resume="allow",
            dir=str(run.folder),
            config={**run.tree, **about, **({"sweep": sweep} if sweep else {})},
            tags=[*config.logger.tags, *([sweep] if sweep else [])],
            mode=mode,  # type: ignore[arg-type]  # one of two of its literals
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=START_SECONDS,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )

    _wait_for_another_second(run.folder, _id(run, name))
    job = _Job(run.folder)
    try:
        job.run = start("offline" if offline else "online")
    except Exception as error:
        if offline:
            print_line(f"W&B: the job could not be started ({_short(error)}); the run goes on without it.")
        else:
            _go_offline(run.folder, f"the server did not start the job ({_short(error)})")
            with suppress(Exception):
                job.run = start("offline")
    staging = os.environ.get("WANDB_DATA_DIR")
    if staging is None:  # what waits to be uploaded belongs into the run's folder, not into the user's home
        os.environ["WANDB_DATA_DIR"] = str((run.folder / "wandb").resolve())
    failed = True
    try:
        job.attempt(lambda to: to.define_metric("step"))
        job.attempt(lambda to: to.define_metric("*", step_metric="step"))
        yield job
        failed = False
    finally:
        job.attempt(lambda to: to.finish(exit_code=int(failed)))
        if staging is None:
            del os.environ["WANDB_DATA_DIR"]


def _wait_for_another_second(folder: Path, job: str) -> None:
    """W&B names a session's folder by the second and the job: one that continues within the same second, as a short
    stage does, would fail on the folder of the one before."""
    made = [path.stat().st_mtime for path in folder.glob(f"wandb/*run-*-{job}")]
    time.sleep(min(1.1, max(0.0, max(made, default=0.0) + 1.1 - time.time())))


def unreachable() -> str:
    """Why no connection to W&B's server (``WANDB_BASE_URL``), or to the proxy before it, can be opened; empty: it can.

    The client itself retries for minutes in silence.
    """
    server = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")
    host = server.hostname or ""
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(server.scheme)
    to = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else server
    port = to.port or (443 if to.scheme == "https" else 80)
    try:
        socket.create_connection((to.hostname or "", port), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        return f"{to.hostname} cannot be reached ({getattr(error, 'strerror', None) or error})"
    return ""


def _short(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:120].rstrip(".") if text else type(error).__name__


def _kept(folder: Path) -> str:
    return f"its files are in {folder / 'wandb'} (wandb sync uploads them)"


def _artifact(run: Run, stage: str, config: Config, kind: str) -> wandb.Artifact:
    """The artifact of a stage: its files, or where there is too much of them, their place.

    Two descriptions of the same files are one version in W&B, which is how a job that uses them meets the job that
    made them.
    """
    import wandb

    folder = run.folder / stage
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    files = [path for path in files if path.relative_to(folder).parts[0] not in (*PASSING, "profile")]
    size = sum(path.stat().st_size for path in files)
    name = re.sub(r"[^\w.-]", "-", f"{run.name}-{stage}")[:128]
    made = wandb.Artifact(name, type=kind, metadata={"run": str(run.folder), "stage": stage, "bytes": size})
    if size > config.logger.upload_mb * 2**20:
        made.add_reference(folder.resolve().as_uri(), checksum=False)
    else:
        for path in files:
            name = str(path.relative_to(folder))
            if name == "model.json":  # it is given its metrics later, which make no other version of the model
                described = {key: value for key, value in read_json(path).items() if key != DIGEST}  # it covers them
                with made.new_file(name) as file:
                    json.dump({**described, "metrics": {}}, file, indent=2)
            else:
                made.add_file(str(path), name=name, policy="immutable", skip_cache=True)
    return made


def _use(job: wandb.Run, artifact: wandb.Artifact) -> None:
    """Say that this job reads an artifact."""
    # Run.use_artifact refuses to work offline, though all it does with files at hand is this.
    job._log_artifact(artifact, use_after_commit=True)


def _id(run: Run, name: str) -> str:
    path = run.folder / "wandb" / f"{name}.id"
    if not path.exists():
        atomic_write(path, secrets.token_hex(4))
    return path.read_text()


def _has_key() -> bool:
    import netrc

    try:
        found: Any = netrc.netrc().authenticators("api.wandb.ai")
    except (FileNotFoundError, netrc.NetrcParseError):
        return False
    return found is not None
