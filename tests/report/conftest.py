"""The sample report, written once for all tests here."""

from __future__ import annotations

import pytest

from tests.report.sample import make
from vitlab.report.write import ReportData, ReportPaths, write_report
from vitlab.tasks.classification import Classification

TASK = Classification()


@pytest.fixture(scope="session")
def data() -> ReportData:
    return make()


@pytest.fixture(scope="session")
def written(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> ReportPaths:
    return write_report(tmp_path_factory.mktemp("report"), data, TASK)
