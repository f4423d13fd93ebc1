"""The model card of a run: that of an export, with the numbers of the report and code for the folder at hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from vitlab.files import atomic_write, read_json
from vitlab.report.data import ReportData
from vitlab.report.export_card import Facts, model_card
from vitlab.report.page import load_code
from vitlab.report.task import ReportTask
from vitlab.report.verdict import verdict

if TYPE_CHECKING:
    from vitlab.models.artifact import ModelMeta

CARD_FILE = "model_card.md"


def write_card(folder: Path, data: ReportData, task: ReportTask) -> Path | None:
    """``model_card.md`` of the report's primary model, in the run's folder; None where its artifact is not at hand.

    Only the text of ``model.json`` is read, so that torch is not needed.
    """
    path = Path(data.run) / data.main.folder / "model.json"
    found = data.main.evaluation
    if not path.is_file() or found is None:
        return None
    meta = cast("ModelMeta", SimpleNamespace(**read_json(path)))
    facts = Facts(
        title=f"{data.main.name}, {data.title}",
        dataset=data.dataset.name,
        described=data.dataset.description,
        origin=data.dataset.origin,
        images=found.n,
        split=data.dataset.split,
        synthetic=data.dataset.synthetic,
        metrics=found.metrics(),
        intervals=found.intervals,
        extra=(*task.warnings(found), *verdict(data, task)[:1], *task.card_sentences(found), *data.notes),
        params=data.main.cost.params or 0,
        code=load_code(data, task),
    )
    atomic_write(folder / CARD_FILE, model_card(meta, facts, task))
    return folder / CARD_FILE
