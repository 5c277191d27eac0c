"""Runs under several seeds: how far they agree, and what is shown over seeds."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy import stats

from c3po_bench.analysis import statistics
from c3po_bench.analysis.seeds import merged, over_seeds, seed_agreement
from c3po_bench.report.tables import seed_rows
from c3po_bench.store.reader import Run
from tests import store_factory as factory

TOST = ((-0.01, "greater"), (0.01, "less"))


def seeded(root, *parts: dict) -> list[Run]:
    """A run of NGD for each of `parts`, which go into its identity; the seed is in there, too."""
    made = []
    for number, part in enumerate(parts):
        own = factory.scores_of("ngd", 20, 0.5, seed=number)
        rows = factory.sample_rows("ngd", "arc", own, details=False)
        identity = {"method": {"tune": "none"}, **part}
        made.append(factory.write_run(root / str(number), "ngd", rows, seed=part["seed"], identity=identity))
    return made


def test_seeds_agree_answer_by_answer(tmp_path):
    runs = []
    for seed in range(3):
        own = factory.scores_of("ngd", 40, 1.0)
        own[: 4 * seed] = 0
        rows = factory.sample_rows("ngd", "arc", own, details=False)
        runs.append(factory.write_run(tmp_path, "ngd", rows, seed=seed))
    row = seed_agreement(runs).iloc[0]
    assert (row["seeds"], row["items"]) == (3, 40)
    assert row["accuracy"] == pytest.approx(0.9) and row["accuracy_sd"] == pytest.approx(0.1)
    assert row["agreement"] == pytest.approx((0.9 + 0.8 + 0.9) / 3) and row["unanimous"] == pytest.approx(0.8)


def test_each_task_is_counted_by_itself_over_items_that_every_seed_answered(tmp_path):
    runs = []
    for seed, (arc, piqa) in enumerate([([1, 1, 1, 0], [0, 0]), ([1, 0, 1, 0], [1, 0]), ([0, 0, 1], [1, 1])]):
        tasks = {"arc": np.array(arc), "piqa": np.array(piqa)}
        rows = [row for task in tasks for row in factory.sample_rows("ngd", task, tasks[task], details=False)]
        runs.append(factory.write_run(tmp_path, "ngd", rows, seed=seed))
    first, second = seed_agreement(runs).to_dict("records")
    assert (first["task"], first["items"], second["task"], second["items"]) == ("arc", 3, "piqa", 2)
    assert (first["lowest"], first["highest"]) == pytest.approx((1 / 3, 1))
    assert first["accuracy"] == pytest.approx(2 / 3)
    assert (first["agreement"], first["unanimous"]) == pytest.approx(((2 / 3 + 1 / 3 + 2 / 3) / 3, 1 / 3))
    assert (second["accuracy"], second["accuracy_sd"]) == (0.5, 0.5)
    assert (second["agreement"], second["unanimous"]) == pytest.approx(((1 / 2 + 0 + 1 / 2) / 3, 0))


def test_what_a_seed_draws_differs_between_seeds(tmp_path):
    scoring = [{"num_fewshot": 5, "seed": seed} for seed in (0, 1)]
    drawn = [
        {"seed": s, "scoring": scoring[s], "requests": {"arc": s}, "reference_items": s, "train_data": s}
        for s in (0, 1)
    ]
    assert seed_agreement(seeded(tmp_path, *drawn))["seeds"].tolist() == [2]


@pytest.mark.parametrize(
    "other",
    [
        {"method": {"tune": "reference"}},
        {"references": {"tasks": ["sciq"]}},
        {"requests": {"arc": "with another prompt"}},
    ],
)
def test_what_differs_in_more_than_its_seed_is_no_repetition(tmp_path, other):
    assert seed_agreement(seeded(tmp_path, {"seed": 0}, {"seed": 1, **other})).empty


def test_two_runs_of_one_seed_are_not_two_seeds(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="c3po_bench"):
        assert seed_agreement(seeded(tmp_path, {"seed": 0}, {"seed": 0, "reference_items": 1})).empty
        assert not caplog.records
        twice = seeded(tmp_path, {"seed": 0}, {"seed": 0, "reference_items": 1}, {"seed": 1})
        assert seed_agreement(twice).empty
    assert "of one seed" in caplog.text


def test_rows_of_seeds_differ_by_their_settings_never_by_a_seed(tmp_path):
    runs = []
    for k, seeds in ((1, (0, 1)), (3, (1, 2)), (5, (0,))):
        for seed in seeds:
            own = factory.scores_of("ngd", 20, 0.5, seed=seed)
            rows = factory.sample_rows("ngd", "arc", own, details=False)
            settings = {"k": k, "seed": seed}
            runs.append(
                factory.write_run(tmp_path, "ngd", rows, settings=settings, seed=seed, identity={"k": k})
            )
    frame = seed_agreement(runs)
    assert frame["label"].tolist() == ["ngd (k=1)", "ngd (k=3)"]
    assert [row.cells[0].text for row in seed_rows(frame)] == ["NGD (k=1)", "NGD (k=3)"]
    assert set(seed_agreement(runs[:2])["label"]) == {"ngd"}


def test_a_run_without_all_scores_is_left_out_with_the_reason(tmp_path, caplog):
    runs = seeded(tmp_path, {"seed": 0}, {"seed": 1}, {"seed": 2})
    factory.edit(runs[1], lambda row: row.update(correct=None) if row["doc_id"] == 3 else None)
    assert seed_agreement(runs)["seeds"].tolist() == [2]
    assert "1 of 20 rows have no score" in caplog.text
    assert seed_agreement(runs[:2]).empty


def test_answers_that_no_judge_scored_are_left_out(tmp_path):
    runs = seeded(tmp_path, {"seed": 0}, {"seed": 1})
    for run in runs:
        factory.edit(run, lambda row: row.update(scope="in", score=1.0, correct=1.0))
    unjudged = {"score": None, "correct": 0.0}
    factory.edit(runs[0], lambda row: row.update(unjudged) if row["doc_id"] == 3 else None)
    frame = seed_agreement(runs)
    assert (frame["items"].tolist(), frame["accuracy"].tolist()) == ([19], [1.0])


def test_two_seeds_have_no_interval_and_three_have_students():
    gaps = np.array([[0.70, 0.76, 0.82]] * 4)
    assert over_seeds(gaps[:, :2]) == {"difference": pytest.approx(0.73)}
    row = over_seeds(gaps)
    assert (row["difference"], row["diff_low"], row["diff_high"]) == pytest.approx(
        (0.76, 0.610951737, 0.909048263), abs=1e-9
    )


def test_the_right_choices_probability_is_shown_over_seeds_too():
    gaps, common = (0.01, 0.02, 0.06), {"arm": "ngd", "task": "arc", "accuracy": 0.5}
    rows = [
        {
            "run_id": str(seed),
            **common,
            "fixed": 1,
            "broken": 1,
            "seconds_per_item": 1.0,
            "flops_per_item": 2.0,
        }
        | {"p_gold": 0.4 + gap, "gold_difference": gap, "difference": gap}
        for seed, gap in enumerate(gaps)
    ]
    (row,) = merged(rows, {str(seed): ("all", seed) for seed in range(3)}, margin=0.01)
    low, high = stats.t.interval(0.95, 2, 0.03, stats.sem(gaps))
    assert (row["gold_difference"], row["p_gold"]) == pytest.approx((0.03, 0.43))
    assert (row["gold_low"], row["gold_high"]) == pytest.approx((low, high))
    below, above = (stats.ttest_1samp(gaps, end, alternative=side).pvalue for end, side in TOST)
    assert row["p_same"] == pytest.approx(max(below, above))
    assert row["gold_p"] == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)
    assert (row["fixed"], row["broken"], row["groups"]) == (3, 3, 3)


def test_items_and_seeds_are_crossed():
    table = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1]])
    assert np.sqrt(statistics.crossed_variance(table)) == pytest.approx(0.175682092, abs=1e-9)
    items = statistics.standard_error(table.mean(axis=1))[1] * np.sqrt(
        5 / 6
    )  # as the note has it, without the factor
    assert items == pytest.approx(0.150445155, abs=1e-9)
    row = over_seeds(table)
    assert row["both_high"] - row["both_low"] > row["diff_high"] - row["diff_low"]
    noise = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 2]])  # all of it within cells
    assert statistics.crossed_variance(noise) == pytest.approx(noise.mean(axis=1).var(ddof=1) / 3)


def test_each_seed_is_compared_with_its_own_base(tmp_path):
    runs = []
    for seed, gains in enumerate((4, 6, 8)):
        base = np.array([0] * 10 + [1] * 10)
        arm = base.copy()
        arm[:gains] = 1
        for name, own in (("base", base), ("sft", arm)):
            rows = factory.sample_rows(name, "arc", own, details=False)
            runs.append(factory.write_run(tmp_path, name, rows, seed=seed, key=f"key-{seed}"))
    row = seed_agreement(runs).set_index("arm").loc["sft"]
    assert row["difference"] == pytest.approx(0.3) and row["seeds"] == 3
    assert (row["diff_low"], row["diff_high"]) == pytest.approx((0.3 - 0.2484, 0.3 + 0.2484), abs=1e-4)
    shown = next(row for row in seed_rows(seed_agreement(runs)) if row.role == "method")
    assert shown.cells[6].text == "+30.0" and "over items and seeds" in shown.cells[6].detail
