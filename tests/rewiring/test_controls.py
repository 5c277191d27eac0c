"""Permuted options and tuning on held-out references."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from rewiring_world import reference, tasks_of

from c3po_bench.analysis.compare import compare_controls
from c3po_bench.contract import Answer
from c3po_bench.errors import UserError
from c3po_bench.evaluate.run import run
from c3po_bench.rewiring import tune as tune_module
from c3po_bench.rewiring.backend import RewiringBackend
from c3po_bench.runtime.meter import Meter


def lls(run):
    return {row["doc_id"]: row["loglikelihoods"] for row in run.samples()}


def test_permuted_options_move_the_neighbors_letters_only(experiment):
    cfg = experiment(
        arms=["ngd", "ngd_permuted_options"], scoring__rule="letters", references__only_correct=False
    )
    base, ngd, permuted = run(cfg)
    counts = permuted.result["counts"]
    assert 0 < counts["references_reordered"] <= counts["references"] == ngd.result["counts"]["references"]
    answers = []
    for a, b in zip(ngd.samples(), permuted.samples(), strict=True):
        assert a["prompt_hash"] == b["prompt_hash"] and a["gold"] == b["gold"], (
            "the test's prompts are not touched"
        )
        assert [n["id"] for n in a["neighbors"]] == [n["id"] for n in b["neighbors"]], "the same neighbors"
        answers += [(x["answer"], y["answer"]) for x, y in zip(a["neighbors"], b["neighbors"], strict=True)]
    assert 0.4 < sum(x != y for x, y in answers) / len(answers) <= 1.0, "their letters are other ones"
    assert lls(ngd) != lls(permuted) and lls(base) != lls(permuted)


def test_permuted_options_without_listed_options_repeat_ngd_and_say_so(experiment):
    _, ngd, permuted = run(experiment(arms=["ngd", "ngd_permuted_options"]))
    a, b = lls(ngd), lls(permuted)
    assert max(abs(x - y) for key in a for x, y in zip(a[key], b[key], strict=True)) < 1e-4
    assert any("repeats ngd" in note for note in permuted.result["notes"])


def test_everything_permuted_is_a_comparison_of_its_own(experiment):
    plain = run(experiment(arms=["ngd"], scoring__rule="letters"))
    moved = run(experiment(arms=["ngd"], scoring__rule="letters", scoring__permute_options=True))
    assert {r.result["comparison_key"] for r in plain}.isdisjoint(r.result["comparison_key"] for r in moved)
    assert moved[0].result["comparison_key"] == moved[1].result["comparison_key"]
    with pytest.raises(UserError, match="ngd_permuted_options"):
        run(experiment(arms=["ngd_permuted_options"], scoring__permute_options=True))


def test_tuning_takes_the_best_on_held_out_references(experiment, monkeypatch):
    monkeypatch.setattr(tune_module, "RATES", (0.01, 0.5))
    monkeypatch.setattr(tune_module, "HELD_OUT", 6)
    seen = []

    class Spying(tune_module.Rewirer):
        def answer(self, items):
            seen.append((self.bank, items))
            return super().answer(items)

    monkeypatch.setattr(tune_module, "Rewirer", Spying)
    cfg = experiment(arms=["ngd", "oracle", "mode_finding"], method__tune="reference", references__limit=40)
    runs = {r.arm: r for r in run(cfg)}
    (path,) = Path(cfg.results_dir).glob("tuned/*.json")
    found = json.loads(path.read_text())
    losses = {name: loss for name, loss in found["losses"].items() if name != "base"}
    assert len(losses) == 4 and found["held_out"] == 6
    assert min(losses, key=losses.__getitem__) == f"lr={found['learning_rate']:g}, mixing={found['mixing']}"
    for arm in ("ngd", "oracle"):
        result = runs[arm].result
        assert (
            result["settings"]["lr"] == found["learning_rate"]
            and result["settings"]["mixing"] == found["mixing"]
        )
        (note,) = (note for note in result["notes"] if "tune=reference" in note)
        assert f"lr=0.5, mixing=dense: {found['losses']['lr=0.5, mixing=dense']:.3f}" in note
        assert result["cost"]["phases"]["tune"]["seconds"] > 0
    assert (
        "tune" not in runs["base"].result["cost"]["phases"]
        and "lr" not in runs["mode_finding"].result["settings"]
    )
    (task,) = tasks_of(cfg).load().values()
    tested = {tasks_of(cfg).question_text(task, dict(doc)) for doc in list(task.eval_docs)}
    for bank, asked in seen:
        hidden = {item.id for item in asked}
        assert not hidden & {entry.item.id for entry in bank.items}, "a held-out item was its own neighbor"
        assert all(item.gold is None for item in asked), "NGD was given a held-out label"
        assert not tested & {item.question for item in asked}
    count = len(seen)
    cfg.arms = ["ngd", "ngd_random_neighbors"]
    run(cfg)
    assert len(seen) == count, "the choice is made once"


def test_a_settings_loss_is_the_mean_cross_entropy_of_the_right_choices(monkeypatch):
    """By hand, over three held-out items in batches of two: the surer of the right choices, the smaller."""
    scores = [[-1.0, -2.0], [-3.0, -1.0], [-4.0, -1.0]]

    class Stub:
        def __init__(self, *_, **__):
            pass

        def answer(self, items):
            return [Answer(scores=tuple((score, False) for score in scores[item.id[1]])) for item in items]

    monkeypatch.setattr(tune_module, "Rewirer", Stub)
    backend = SimpleNamespace(
        cfg=SimpleNamespace(batch_size=2, method=None, seed=0),
        engine=None,
        tokenizer=None,
        question_embedder=None,
    )
    pairs = (("c", "a"), ("c", "b"))
    right, wrong = (
        tune_module._loss(
            backend, None, None, [reference(i, str(i), pairs, g) for i, g in enumerate(golds)], Meter()
        )
        for golds in ([0, 1, 1], [1, 0, 0])
    )
    gaps = [1.0, 2.0, 3.0]  # between the right choice's log-likelihood and the other's
    assert right == pytest.approx(sum(math.log1p(math.exp(-gap)) for gap in gaps) / 3)
    assert wrong == pytest.approx(sum(math.log1p(math.exp(gap)) for gap in gaps) / 3)


def test_too_few_references_to_hide_some_are_refused(experiment):
    """With nothing held out every loss is zero, and the largest rate would win."""
    with pytest.raises(UserError, match="at least 5 references"):
        run(experiment(arms=["ngd"], method__tune="reference", references__limit=4))


def test_baselines_stand_beside_tuned_arms(experiment):
    cfg = experiment(arms=["base", "icl", "ngd"], method__tune="reference", references__limit=40)
    base, icl, ngd = RewiringBackend(cfg, tasks_of(cfg)).arms()
    assert ngd.tuned and not base.tuned and icl.row.name == "icl"


def test_untuned_runs_are_not_tuned_ones(experiment):
    tasks = tasks_of(experiment())
    names = []
    for tune in ("none", "reference"):
        (_, ngd) = RewiringBackend(experiment(arms=["ngd"], method__tune=tune), tasks).arms()
        names.append(json.dumps(ngd.identity(), sort_keys=True))
    assert names[0] != names[1]


def test_the_control_of_mode_finding_takes_over_its_options_and_stands_beside_it(experiment):
    control, options = "mode_finding_random_neighbors", {"mode_finding": {"iterations": 3}}
    runs = {r.arm: r for r in run(experiment(arms=["mode_finding", control], arm_options=options))}
    settings = [runs[name].result["settings"] for name in ("mode_finding", control)]
    assert settings[0] == settings[1] and settings[1]["option_iterations"] == 3
    found = compare_controls(list(runs.values()))
    assert set(found["arm"]) == {"mode_finding"} and set(found["control"]) == {control}
    scores = [
        [row["loglikelihoods"] for row in runs[name].samples()] for name in ("base", "mode_finding", control)
    ]
    assert scores[0] != scores[1] != scores[2] != scores[0]


def test_the_control_of_kernel_regression_takes_over_its_options_and_draws_its_references(experiment):
    options = {"kernel_regression": {"search": "fixed", "alpha": 0.25}}
    control = "kernel_regression_random_neighbors"
    runs = {r.arm: r for r in run(experiment(arms=["kernel_regression", control], arm_options=options))}
    settings = [runs[name].result["settings"] for name in ("kernel_regression", control)]
    assert settings[0] == settings[1] and settings[1]["option_alpha"] == 0.25
    drawn = [
        [n["id"] for row in runs[name].samples() for n in row["neighbors"]] for name in runs if name != "base"
    ]
    assert len(drawn[0]) == len(drawn[1]) and drawn[0] != drawn[1]
    changed = experiment(arms=[control], arm_options={"kernel_regression": {"search": "fixed", "alpha": 0.5}})
    assert {r.arm: r.run_id for r in run(changed)}[control] != runs[control].run_id
