"""Base asked again about feedback: written anew in other batches, scored like every arm, its flips said in the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from c3po_bench.analysis.compare import compare
from c3po_bench.analysis.verdict import verdict
from c3po_bench.evaluate import run as harness
from tests.feedback.test_arms import config


def test_base_is_written_once_more_and_says_the_same(tiny: Path, tmp_path: Path):
    cfg = config(
        tiny, tmp_path, ["base", "base_again", "in_context"], tasks=["feedback", "facts_capitals"], limit=3
    )
    runs = {run.arm: run for run in harness.run(cfg)}
    base, again = runs["base"].samples(), runs["base_again"].samples()
    assert [row["doc_hash"] for row in base] == [row["doc_hash"] for row in again]
    assert [row["prediction"] for row in base] == [row["prediction"] for row in again]
    for row in again:
        if row["task"] == "facts_capitals":
            continue
        assert row["response"] == row["baseline_response"] and row["score"] == 0
        assert row["drift"] == pytest.approx(0.0, abs=1e-4)
    assert runs["base_again"].result["cost"]["phases"]["generate"]["seconds"] > 0  # not from the cache
    frame = compare(list(runs.values()))
    assert "Noise floor: base asked again in other batches changes 0 of" in verdict(frame)
    assert set(frame.loc[frame["arm"] == "in_context", "noise"].dropna()) == {0.0}
