"""Arms beside their controls: which control belongs to which run, and what may be said of the difference."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from c3po_bench.analysis import compare, controls
from c3po_bench.analysis.compare import POOLED
from c3po_bench.analysis.controls import compare_controls
from c3po_bench.analysis.roles import role, title
from c3po_bench.analysis.verdict import verdict
from c3po_bench.errors import UserError
from tests import store_factory as factory

RANDOM, SHUFFLED = "ngd_random_neighbors", "ngd_shuffled_labels"


def run(root, arm, seed=0, number=0, identity=None, **options) -> factory.FakeRun:
    """A run of 40 items; `identity` goes into its provenance, as the harness writes it."""
    rows = factory.sample_rows(
        arm, "arc", factory.scores_of(arm, 40, 0.5, seed=10 * number + seed), details=False
    )
    made = factory.write_run(root, arm, rows, seed=seed, settings={"number": number}, **options)
    if identity is not None:
        made.provenance["identity"] = {"arm": arm, "seed": seed, **identity}
    return made


def test_every_control_that_ran_is_compared_with_its_arm(tmp_path):
    runs = factory.rewiring_store(tmp_path, items=60)
    settings = next(r for r in runs if r.arm == "ngd").result["settings"]
    tasks = {task: factory.scores_of(SHUFFLED + task, 60, 0.5) for task in ("arc_easy", "facts")}
    rows = [
        row
        for task, scores in tasks.items()
        for row in factory.sample_rows(SHUFFLED, task, scores, details=False)
    ]
    runs.append(factory.write_run(tmp_path, SHUFFLED, rows, settings=settings))
    frame = compare_controls(runs, draws=500)
    assert list(frame.columns) == list(controls.COLUMNS)
    assert frame.groupby("control")["level"].apply(list).to_dict() == dict.fromkeys(
        (RANDOM, SHUFFLED), ["task", "task", "pooled", "macro"]
    )
    correct = {r.arm: {(s["task"], s["doc_id"]): s["correct"] for s in r.samples()} for r in runs}
    for name in (RANDOM, SHUFFLED):
        row = frame[(frame["control"] == name) & (frame["task"] == POOLED)].iloc[0]
        gaps = np.array([correct["ngd"][key] - correct[name][key] for key in correct["ngd"]])
        assert row["difference"] == pytest.approx(gaps.mean())
        assert (row["fixed"], row["broken"]) == ((gaps > 0).sum(), (gaps < 0).sum())
    tests = frame[frame["level"] == "task"]
    assert len(tests) == 4 and tests["p_holm"].min() == pytest.approx(min(1, 4 * tests["p"].min()))
    pooled = frame[frame["level"] == "pooled"]
    assert len(pooled) == 2 and pooled["p_holm"].min() == pytest.approx(min(1, 2 * pooled["p"].min()))


def test_a_tuned_model_that_is_rewired_has_controls_that_are_tuned_too(tmp_path):
    chain, control = "c3po_then_ngd", f"c3po_then_{RANDOM}"
    frame = compare_controls(
        [run(tmp_path, arm) for arm in ("base", "ngd", RANDOM, chain, control)], draws=100
    )
    assert list(zip(frame["arm"], frame["control"], strict=True)) == [("ngd", RANDOM), (chain, control)]
    assert role(control) == "control" and title(control) == "C3PO then NGD with random neighbors"


def test_an_arm_is_compared_with_the_control_of_its_own_seed(tmp_path):
    runs = [run(tmp_path, "base")]
    runs += [run(tmp_path, arm, seed=seed) for seed in range(3) for arm in ("ngd", RANDOM)]
    seeds = {r.run_id: r.result["seed"] for r in runs}
    frame = compare_controls(runs, draws=100)
    assert [(seeds[a], seeds[b]) for a, b in zip(frame["run_id"], frame["control_run_id"], strict=True)] == [
        (0, 0),
        (1, 1),
        (2, 2),
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "alike"),
    [
        ({"references": {"tasks": ["sciq"]}}, {"references": {"tasks": ["sciq"]}}, True),
        ({"references": {"tasks": ["sciq"]}}, {"references": {"tasks": ["openbookqa"]}}, False),
        ({"method": {"tune": "none"}}, {"method": {"tune": "reference"}}, False),
        (
            {"method": {"neighbors": {"max_similarity": 0.95}}},
            {"method": {"neighbors": {"max_similarity": 0.9}}},
            False,
        ),
    ],
)
def test_a_control_differs_from_its_arm_in_nothing_else(tmp_path, ours, theirs, alike):
    runs = [
        run(tmp_path, "base", identity={}),
        run(tmp_path, "ngd", identity=ours),
        run(tmp_path, RANDOM, identity=theirs),
    ]
    assert len(compare_controls(runs, draws=100)) == alike


def test_a_control_that_answered_other_items_is_refused(tmp_path):
    runs = [run(tmp_path, "base"), run(tmp_path, "ngd"), run(tmp_path, RANDOM)]
    lines = (runs[2].path / "samples.jsonl").read_text().splitlines()
    (runs[2].path / "samples.jsonl").write_text("\n".join(lines[:30]) + "\n")
    with pytest.raises(UserError, match="other items"):
        compare_controls(runs)
    refused: dict[str, str] = {}
    assert compare_controls(runs, refused=refused).empty and len(refused) == 1


def row(columns: dict[str, str], **numbers) -> dict:
    common = {
        "task": "arc",
        "level": "task",
        "scope": "",
        "n": 1000,
        "fixed": 60,
        "broken": 20,
        "mde": 0.02,
        "p_holm": 0.001,
    }
    return {name: float("nan") for name in columns} | common | numbers


def said(over: dict, gain=(0.05, 0.02, 0.08), own=(0.005, -0.02, 0.03, 0.7)) -> str:
    """The verdict on NGD, which gains `gain` over base, with `over` against its control, which itself gains `own`."""
    names = ("difference", "diff_low", "diff_high", "p")
    arms = {"ngd": (*gain, 0.001), RANDOM: own}
    rows = [
        row(compare.COLUMNS, arm=a, label=a, run_id=a, **dict(zip(names, n, strict=True)))
        for a, n in arms.items()
    ]
    against = row(controls.COLUMNS, arm="ngd", run_id="ngd", control=RANDOM, control_run_id=RANDOM, **over)
    return verdict(
        pd.DataFrame(rows, columns=list(compare.COLUMNS)),
        pd.DataFrame([against], columns=list(controls.COLUMNS)),
    )


def gap(difference, low, high, p) -> dict:
    return {"difference": difference, "diff_low": low, "diff_high": high, "p": p, "p_holm": p}


def test_not_significant_against_a_control_is_no_evidence_that_it_does_as_well():
    words = said(gap(0.045, -0.001, 0.091, 0.06))
    assert "it cannot be told from random neighbors (difference +4.5 points [-0.1, 9.1])" in words
    assert "retrieval" not in words
    assert "cannot be told from random neighbors" in said(
        gap(0.045, 0.001, 0.091, 0.06)
    )  # interval and p disagree


def test_what_beats_its_control_and_what_loses_to_it():
    assert "; beats random neighbors by 2.0 [1.0, 3.0] (Holm p 0.01)." in said(gap(0.02, 0.01, 0.03, 0.01))
    assert "; loses to random neighbors by 2.0 [-3.0, -1.0]" in said(gap(-0.02, -0.03, -0.01, 0.01))


def test_a_control_gains_too_only_where_that_is_shown():
    tight, wide = gap(0.001, -0.008, 0.009, 0.9), gap(0.01, -0.02, 0.04, 0.5)
    as_much = "with random neighbors it gains as much (difference +0.1 points [-0.8, 0.9]): the gain is not retrieval."
    assert as_much in said(tight)
    assert "cannot be told from random neighbors" in said(
        tight, gain=(0.012, 0.004, 0.02)
    )  # as wide as the gain itself
    assert "cannot be told from random neighbors" in said(wide)
    too = "with random neighbors it gains, too (+4.0 points [1.0, 7.0] over base; difference +1.0 points [-2.0, 4.0]): "
    assert too in said(wide, own=(0.04, 0.01, 0.07, 0.01))
    assert "need not be retrieval" in said(wide, own=(0.04, 0.01, 0.07, 0.01))
