"""Runs that differ in nothing but their seed: which those are, and what is said of them."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from c3po_bench.analysis.seeds import seed_agreement
from c3po_bench.report.tables import seed_rows
from tests import store_factory as factory


def runs_of(root, *parts: dict) -> list[factory.FakeRun]:
    """A run of NGD for each of `parts`, which go into its identity; the seed is in there, too."""
    made = []
    for number, part in enumerate(parts):
        rows = factory.sample_rows(
            "ngd", "arc", factory.scores_of("ngd", 20, 0.5, seed=number), details=False
        )
        run = factory.write_run(root / str(number), "ngd", rows, seed=part["seed"])
        run.provenance["identity"] = {"arm": "ngd", "method": {"tune": "none"}, **part}
        made.append(run)
    return made


def test_each_task_is_counted_by_itself_over_items_that_every_seed_answered(tmp_path):
    runs = []
    for seed, (arc, piqa) in enumerate([([1, 1, 1, 0], [0, 0]), ([1, 0, 1, 0], [1, 0]), ([0, 0, 1], [1, 1])]):
        scores = {"arc": np.array(arc), "piqa": np.array(piqa)}
        rows = [
            row for task in scores for row in factory.sample_rows("ngd", task, scores[task], details=False)
        ]
        runs.append(factory.write_run(tmp_path, "ngd", rows, seed=seed))
    first, second = seed_agreement(runs).to_dict("records")
    assert (first["task"], first["items"], second["task"], second["items"]) == ("arc", 3, "piqa", 2)
    assert (first["lowest"], first["highest"]) == pytest.approx((1 / 3, 1)) and first[
        "accuracy"
    ] == pytest.approx(2 / 3)
    assert (first["agreement"], first["unanimous"]) == pytest.approx(((2 / 3 + 1 / 3 + 2 / 3) / 3, 1 / 3))
    assert (second["accuracy"], second["accuracy_sd"]) == (0.5, 0.5)
    assert (second["agreement"], second["unanimous"]) == pytest.approx(((1 / 2 + 0 + 1 / 2) / 3, 0))


def test_what_a_seed_draws_differs_between_seeds(tmp_path):
    scoring = [{"num_fewshot": 5, "seed": seed} for seed in (0, 1)]
    drawn = [
        {"seed": s, "scoring": scoring[s], "requests": {"arc": s}, "reference_items": s, "train_data": s}
        for s in (0, 1)
    ]
    assert seed_agreement(runs_of(tmp_path, *drawn))["seeds"].tolist() == [2]


@pytest.mark.parametrize(
    "other",
    [
        {"method": {"tune": "reference"}},
        {"references": {"tasks": ["sciq"]}},
        {"requests": {"arc": "with another prompt"}},
    ],
)
def test_what_differs_in_more_than_its_seed_is_no_repetition(tmp_path, other):
    assert seed_agreement(runs_of(tmp_path, {"seed": 0}, {"seed": 1, **other})).empty


def test_two_runs_of_one_seed_are_not_two_seeds(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="c3po_bench"):
        assert seed_agreement(runs_of(tmp_path, {"seed": 0}, {"seed": 0, "reference_items": 1})).empty
        assert not caplog.records
        twice = runs_of(tmp_path, {"seed": 0}, {"seed": 0, "reference_items": 1}, {"seed": 1})
        assert seed_agreement(twice).empty
    assert "of one seed" in caplog.text


def test_rows_are_told_apart_by_their_settings_never_by_a_seed(tmp_path):
    runs = []
    for k, seeds in ((1, (0, 1)), (3, (1, 2)), (5, (0,))):
        for seed in seeds:
            rows = factory.sample_rows(
                "ngd", "arc", factory.scores_of("ngd", 20, 0.5, seed=seed), details=False
            )
            runs.append(factory.write_run(tmp_path, "ngd", rows, settings={"k": k, "seed": seed}, seed=seed))
    found = seed_agreement(runs)
    assert found["label"].tolist() == ["ngd (k=1)", "ngd (k=3)"]
    assert [row.cells[0].text for row in seed_rows(found)] == ["NGD (k=1)", "NGD (k=3)"]
    assert set(seed_agreement(runs[:2])["label"]) == {"ngd"}


def test_a_run_without_all_scores_is_left_out_with_the_reason(tmp_path, caplog):
    runs = runs_of(tmp_path, {"seed": 0}, {"seed": 1}, {"seed": 2})
    rows = runs[1].samples()
    rows[3]["correct"] = None
    (runs[1].path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert seed_agreement(runs)["seeds"].tolist() == [2]
    assert "1 of 20 rows have no score" in caplog.text
    assert seed_agreement(runs[:2]).empty


def test_answers_that_no_judge_scored_are_left_out(tmp_path):
    runs = runs_of(tmp_path, {"seed": 0}, {"seed": 1})
    for run in runs:
        rows = [row | {"scope": "in", "score": 1.0, "correct": 1.0} for row in run.samples()]
        rows[3] |= {"score": None, "correct": 0.0} if run is runs[0] else {}
        (run.path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = seed_agreement(runs)
    assert (found["items"].tolist(), found["accuracy"].tolist()) == ([19], [1.0])
