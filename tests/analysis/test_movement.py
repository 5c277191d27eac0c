"""What table, verdict and report say of how far pathways move."""

from __future__ import annotations

import json

import numpy as np
import pytest

from c3po_bench.analysis.compare import compare
from c3po_bench.analysis.movement import movement_columns, movement_rows
from c3po_bench.analysis.tables import movement_table
from c3po_bench.analysis.verdict import verdict_sentences
from c3po_bench.store.reader import Run, load_runs
from tests import store_factory as factory
from tests.analysis.test_tables import text_of
from tests.analysis.test_verdict import GAIN, frame_of, row


def moved_run(store, arm: str, moved: float, spread: float | None = 0.01) -> Run:
    rows = factory.sample_rows(arm, "arc", np.array([0, 1] * 20), details=False)
    path = factory.write_run(store, arm, rows).path / "result.json"
    both = {"mass": 0.5, "entropy": 2.0}
    found = {f"{name}_{when}": [value, value] for name, value in both.items() for when in ("before", "after")}
    found |= {"layers": [3, 4], "total_variation": [moved, moved], "kept": [0.5, 1.0], "times_spread": None}
    found |= {"spread": spread and [spread, spread], "spread_between_tasks": None, "similarity": 0.4}
    found |= {"loss_first": 2.0, "loss_last": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"movement": found}))
    return Run(path.parent)


def test_columns_rows_and_table(tmp_path):
    factory.write_run(
        tmp_path, "base", factory.sample_rows("base", "arc", np.array([0, 1] * 20), details=False)
    )
    moved_run(tmp_path, "ngd", 0.55)
    moved_run(tmp_path, "mode_finding", 0.007)
    runs = load_runs(tmp_path)
    frame = compare(runs, draws=100).set_index("arm")
    assert frame.loc["ngd", ["moved", "natural_spread"]].tolist() == pytest.approx([0.55, 0.01])
    assert np.isnan(frame.loc["base", "moved"])
    rows = movement_rows(runs, {run.run_id: run.arm for run in runs})
    assert {r["arm"]: (r["still"], pytest.approx(r["times"])) for r in rows} == {
        "ngd": (False, 55),
        "mode_finding": (True, 0.7),
    }
    text = text_of(movement_table(rows))
    assert "hardly moved" in text and "0.550" in text and "75%" in text and "55" in text
    assert not movement_rows(runs, {})


def test_a_run_of_an_earlier_store_has_no_movement(tmp_path):
    run = factory.write_run(
        tmp_path, "ngd", factory.sample_rows("ngd", "arc", np.array([0, 1]), details=False)
    )
    assert all(np.isnan(value) for value in movement_columns(run).values())
    assert not movement_rows([run], {run.run_id: "ngd"})


def test_the_verdict_says_who_cannot_move_the_model_and_how_far_others_go():
    frame = frame_of(
        row("ngd", **GAIN, moved=0.55, natural_spread=0.01),
        row("mode_finding", 0.0, moved=0.007, natural_spread=0.01),
    )
    sentences = verdict_sentences(frame)
    assert (
        "Hardly moved this model's routing: mode finding (0.007 of the routing weight); items' own pathways lie 0.010 apart. "
        "That such an arm gains nothing says nothing of the method." in sentences
    )
    assert (
        "Of the routing weight, NGD moves 0.55 (55 times the natural spread); that spread is how far two items' own "
        "pathways lie apart." in sentences
    )
    assert not [s for s in verdict_sentences(frame_of(row("ngd", **GAIN))) if "routing weight" in s]
