"""Answers to feedback that nobody could judge: no view shows a number of them, or that it is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from c3po_bench.analysis.compare import compare
from c3po_bench.analysis.live import live_line
from c3po_bench.analysis.tables import show_comparison
from c3po_bench.report.build import write_report
from tests import store_factory as factory


@pytest.mark.parametrize("which", ["all", "an arm's", "a scope's", "an arm's of a scope"])
def test_no_view_shows_that_a_number_is_none(which: str, tmp_path: Path, capsys):
    runs = []
    for arm in ("base", "c3po"):
        rows = [row for scope in ("in", "near", "out") for row in factory.feedback_rows(arm, scope, 6)]
        for row in rows:
            of_arm, of_scope = arm == "c3po" or which in ("all", "a scope's"), row["scope"] == "in"
            if of_arm and (of_scope or "scope" not in which):
                row["score"] = None
        runs.append(factory.write_run(tmp_path, arm, rows, backend="feedback"))
    factory.write_experiment(tmp_path, "feedback", runs)
    assert live_line(runs[1], runs[0]) == "c3po against base in scope: no answer of both was judged"
    show_comparison(runs, str(tmp_path), lambda *_: 0.0)
    shown = capsys.readouterr().out
    assert "none judged" in shown and "nan" not in shown
    page = re.sub(r"(?s)<script.*?</script>", "", write_report(tmp_path).read_text())
    assert "none judged" in page and not re.search(r"\bnan\b", page, re.IGNORECASE)


def test_nothing_is_tested_where_nothing_was_judged(tmp_path: Path):
    runs = []
    for arm in ("base", "c3po"):
        rows = [row | {"score": None} for row in factory.feedback_rows(arm, "in", 5)]
        runs.append(factory.write_run(tmp_path, arm, rows, backend="feedback"))
    frame = compare(runs)
    assert frame["p"].isna().all() and frame["difference"].isna().all() and (frame["n"] == 0).all()
