"""A pytest plugin that writes what happens to a file, one JSON object per line, for `twofold check` to follow."""

import json
import os
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import pytest

from twofold.cli.check import RECORD


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # under xdist every report reaches the controller, which alone writes
        config.pluginmanager.register(Reporter(os.environ[RECORD]), "twofold-reporter")


class Reporter:
    def __init__(self, path: str):
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open for the whole session)

    def write(self, **event: Any) -> None:
        self.file.write(json.dumps(event) + "\n")
        self.file.flush()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items:  # none at an xdist controller: its workers collect
            self.write(collected=len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        self.write(collected=len(ids))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._report(report, [value for name, value in report.user_properties if name == "ratio"])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome != "passed":
            self._report(report, [])

    def _report(self, report: Any, ratios: list[Any]) -> None:
        properties = dict(getattr(report, "user_properties", ()))
        chapter = properties.get("chapter") or _chapter(report.nodeid)
        skipped = report.outcome == "skipped" and isinstance(report.longrepr, tuple)  # (file, line, reason)
        message = report.longrepr[2].removeprefix("Skipped: ") if skipped else report.longreprtext
        side = properties.get("implementation")
        self.write(test=report.nodeid, chapter=chapter, outcome=report.outcome, message=message, ratios=ratios, side=side)


def _chapter(nodeid: str) -> str:
    """Where a file that could not even be collected belongs."""
    path = PurePath(nodeid.partition("::")[0])
    return "suite" if path.parent.name in ("suite", "conformance", "") else f"{path.parent.name}.{path.stem.removeprefix('test_')}"
