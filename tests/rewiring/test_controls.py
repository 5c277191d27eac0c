"""Permuted options and tuning on held-out references."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rewiring_world import reference, tasks_of

from c3po_bench.analysis.compare import compare_controls
from c3po_bench.config import Config
from c3po_bench.contract import Answer
from c3po_bench.errors import UserError
from c3po_bench.evaluate.run import run
from c3po_bench.rewiring import choices
from c3po_bench.rewiring import tune as tune_module
from c3po_bench.rewiring.arms import ARMS, options
from c3po_bench.rewiring.backend import RewiringBackend
from c3po_bench.rewiring.baselines.arm import training_set
from c3po_bench.rewiring.config import MethodConfig


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
    monkeypatch.setitem(choices.AXES, "ngd", FEW)
    monkeypatch.setitem(
        choices.AXES, "mode_finding", (choices.Axis("option.alpha", (0.0, 0.9), least=0, most=1),)
    )
    monkeypatch.setattr(tune_module, "HELD_OUT", 6)
    seen = []

    class Spying(tune_module.Rewirer):
        def answer(self, items):
            seen.append((self.bank, items))
            return super().answer(items)

    monkeypatch.setattr(tune_module, "Rewirer", Spying)
    arms = ["ngd", "oracle", "random_pathway", "ngd_random_neighbors", "mode_finding"]
    cfg = experiment(arms=arms, method__tune="reference", references__limit=40)
    runs = {r.arm: r for r in run(cfg)}
    files = {path.name.rpartition("-")[0]: path for path in Path(cfg.results_dir).glob("tuned/*.json")}
    assert set(files) == {"ngd", "ngd_random_neighbors", "mode_finding"}, "each chooses for itself"
    found = {name: json.loads(path.read_text()) for name, path in files.items()}
    for arm, whose in {"oracle": "ngd", "random_pathway": "ngd"}.items() | {
        name: name for name in files
    }.items():
        choice, result = found[whose], runs[arm].result
        tried = {name: value for name, value in choice["p_gold"].items() if name != "base"}
        assert choice["held_out"] == 6 and 0 < choice["p_gold"]["base"] < 1
        assert max(tried, key=tried.__getitem__) == choices.in_words(choice["chosen"])
        assert result["tuning"]["arm"] == whose and result["tuning"]["chosen"] == choice["chosen"]
        assert result["tuning"]["settings_tried"] == len(tried)
        low, high = result["tuning"]["interval"]
        assert low <= result["tuning"]["p_gold"] <= high
        gain, low, high = result["tuning"]["gain"]
        assert (
            gain == pytest.approx(max(tried.values()) - choice["p_gold"]["base"], abs=2e-6)
            and low <= gain <= high
        )
        (note,) = (note for note in result["notes"] if "tune=reference" in note)
        assert f"chosen for {whose} on 6 held-out references among {len(tried)} settings" in note
        assert result["cost"]["phases"]["tune"]["seconds"] > 0
    settings = {arm: runs[arm].result["settings"] for arm in runs}
    for arm in ("ngd", "oracle", "random_pathway"):
        assert settings[arm]["lr"] == found["ngd"]["chosen"]["learning_rate"]
        assert settings[arm]["mixing"] == found["ngd"]["chosen"]["mixing"]
    assert settings["mode_finding"]["option_alpha"] == found["mode_finding"]["chosen"]["option.alpha"]
    assert len(found["ngd"]["p_gold"]) == len(found["ngd_random_neighbors"]["p_gold"]), (
        "controls: the same budget"
    )
    assert "tune" not in runs["base"].result["cost"]["phases"] and "lr" not in settings["mode_finding"]
    (task,) = tasks_of(cfg).load().values()
    tested = {tasks_of(cfg).question_text(task, dict(doc)) for doc in list(task.eval_docs)}
    for bank, asked in seen:
        hidden = {item.id for item in asked}
        if bank is not None:
            assert not hidden & {entry.item.id for entry in bank.items}, (
                "a held-out item was its own neighbor"
            )
        assert all(item.gold is None for item in asked), "NGD was given a held-out label"
        assert not tested & {item.question for item in asked}
    count = len(seen)
    cfg.arms = ["ngd", "ngd_shuffled_labels"]
    monkeypatch.setitem(choices.AXES, "ngd_shuffled_labels", FEW[:1])
    run(cfg)
    asked_again = sum(bank is not None for bank, _ in seen[count:])
    assert asked_again == 6, "three rates of the control in two chunks; the choice of ngd is made once"


FEW = (choices.Axis("learning_rate", (0.03, 0.5)), choices.Axis("mixing", ("dense", "hard")))


def test_p_gold_is_the_right_options_share_under_the_tasks_rule():
    pairs = (("c", "a"), ("c", "bb"), ("c", "c"))
    item = replace(reference(0, "q", pairs, 1), n_choices=2)  # the third request belongs to a metric
    answer = Answer(scores=((-1.0, False), (-3.0, False), (0.0, True)))
    assert tune_module.p_gold(item, answer) == pytest.approx(1 / (1 + math.exp(2)))
    by_length = replace(item, lengths=(1.0, 2.0))
    assert tune_module.p_gold(by_length, answer) == pytest.approx(1 / (1 + math.exp(0.5)))


def test_an_interval_of_few_numbers_by_hand():
    half = 12.7062 * 0.1  # t of one degree of freedom, times the standard error
    found = tune_module.interval(np.array([0.2, 0.4]))
    assert found == [0.3, pytest.approx(0.3 - half, abs=1e-4), pytest.approx(0.3 + half, abs=1e-4)]
    assert tune_module.interval(np.array([0.5])) == [0.5, 0.5, 0.5]


class Curve(tune_module.Search):
    """A search whose settings have a known p_gold."""

    def __init__(self, best_rate: float, **more: float):
        backend = SimpleNamespace(cfg=SimpleNamespace(method=MethodConfig(), arm_options={}))
        super().__init__(backend, ARMS["ngd"], [None] * 3)
        self.best_rate, self.more = best_rate, more

    def run(self):
        asked = []
        self._answering = lambda trial, method, chosen: asked.append(method) or method
        self._p_gold = lambda trial, method: np.full(3, self._value(method))
        return super().run(), asked

    def _value(self, method) -> float:
        if not isinstance(method, MethodConfig):
            return 0.1
        far = abs(math.log10(method.learning_rate) - math.log10(self.best_rate))
        right = sum(getattr(method, key) == value for key, value in self.more.items())
        return 0.5 - 0.05 * far + 0.01 * right


@pytest.fixture
def no_model(monkeypatch):
    trial = SimpleNamespace(cfg=SimpleNamespace(method=None), engine=None, tokenizer=None)
    monkeypatch.setattr(tune_module, "without_held_out", lambda backend, held_out: trial)
    monkeypatch.setattr(tune_module, "Rewirer", lambda *_: SimpleNamespace(answer=None))


def test_every_axis_is_searched_within_the_budget(no_model):
    search = Curve(0.003, mixing="hard", preserve_total_weight=True, loss="choice")
    tuning, asked = search.run()
    assert tuning.chosen == {
        "learning_rate": 0.003,
        "mixing": "hard",
        "preserve_total_weight": True,
        "loss": "choice",
    }
    assert {1e-4, 0.01, 1.0} <= {method.learning_rate for method in asked} and not tuning.edges
    assert len(asked) == len(tuning.p_gold) - 1 <= tune_module.BUDGET
    assert tuning.gain[0] == pytest.approx(0.53 - 0.1)
    method = tuning.method(MethodConfig())
    assert (method.loss, method.learning_rate) == ("choice", 0.003) and MethodConfig().loss == "nll"


@pytest.mark.parametrize(("best", "side", "reached"), [(100.0, "highest", 10.0), (1e-9, "lowest", 1e-5)])
def test_a_choice_at_the_edge_extends_the_grid_or_is_told(no_model, best, side, reached):
    tuning, _ = Curve(best).run()
    assert tuning.chosen["learning_rate"] == pytest.approx(reached, rel=0.01), "two steps beyond the grid"
    (edge,) = tuning.edges
    assert (
        edge.startswith("learning_rate=")
        and side in edge
        and f"at the edge of what was tried: {edge}" in tuning.note
    )
    within, _ = Curve(3.0).run()
    assert within.chosen["learning_rate"] == pytest.approx(10**0.5) and not within.edges, (
        "extended once, and enough"
    )


def test_natural_bounds_are_no_edges():
    axis = choices.Axis("neighbors.k", (1, 2), least=1)
    assert axis.edge(1, [1, 2]) == "" and axis.edge(2, [1, 2]) == "highest"
    assert choices.Axis("loss", ("nll",)).edge("nll", ["nll"]) == ""
    assert choices.Axis("preserve_total_weight", (False, True)).edge(True, [False, True]) == ""


def test_every_method_control_and_baseline_chooses():
    for name, row in ARMS.items():
        whose = choices.chooser(row)
        if row.role in ("base", "ceiling") and row.references != "own" or name == "base_again":
            assert whose is None, name
            continue
        assert whose is not None, name
        takes = {"oracle": "ngd", "random_pathway": "ngd", "ngd_permuted_experts": "ngd"}
        assert whose.name == takes.get(name, name)
        if row.control_of:
            assert choices.axes_of(whose) == choices.axes_of(ARMS[row.control_of]), name
        for axis in choices.axes_of(whose):
            assert not axis.key.startswith("option.") or axis.key.removeprefix("option.") in options(
                Config(), whose
            )


def test_baselines_are_tuned_on_the_same_references(experiment, monkeypatch):
    monkeypatch.setattr(tune_module, "HELD_OUT", 6)
    for name, axis in {
        "icl": choices.Axis("option.shots", (1, 2), least=1),
        "router_tuning": choices.Axis("option.learning_rate", (1e-3, 0.1)),
        "routing_temperature": choices.Axis("option.temperature", (0.5, 2.0)),
    }.items():
        monkeypatch.setitem(choices.AXES, name, (axis,))
    trained = []
    kept = tune_module.without_held_out

    def spying(backend, held_out):
        trial = kept(backend, held_out)
        trained.append((trial, {item.id for item in held_out}))
        return trial

    monkeypatch.setattr(tune_module, "without_held_out", spying)
    arms = ["icl", "router_tuning", "routing_temperature"]
    options = {"router_tuning": {"steps": 2, "batch_size": 2}, "icl": {"shots": 1}}
    cfg = experiment(arms=arms, method__tune="reference", references__limit=40, arm_options=options)
    runs = {r.arm: r for r in run(cfg)}
    keys = {"icl": "option_shots", "router_tuning": "lr", "routing_temperature": "option_temperature"}
    for arm, key in keys.items():
        tuning = runs[arm].result["tuning"]
        assert runs[arm].result["settings"][key] == next(iter(tuning["chosen"].values()))
        assert tuning["settings_tried"] >= 2 and tuning["held_out"] == 6
    assert len(trained) == 3 and len({frozenset(hidden) for _, hidden in trained}) == 1
    for trial, hidden in trained:
        assert not hidden & {item.id for item in training_set(trial)[0]}
        assert not hidden & {entry.item.id for entry in trial.bank.items}


def test_too_few_references_to_hide_some_are_refused(experiment):
    """With nothing held out every loss is zero, and the largest rate would win."""
    with pytest.raises(UserError, match="at least 5 references"):
        run(experiment(arms=["ngd"], method__tune="reference", references__limit=4))


def test_baselines_stand_beside_tuned_arms(experiment):
    cfg = experiment(arms=["base", "icl", "ngd"], method__tune="reference", references__limit=40)
    base, icl, ngd = RewiringBackend(cfg, tasks_of(cfg)).arms()
    assert ngd.tuned and not base.tuned and icl.row.name == "icl"
    plain = list(RewiringBackend(experiment(arms=["base", "icl", "ngd"]), tasks_of(cfg)).arms())
    assert all(a.identity() != b.identity() for a, b in zip(plain[1:], (icl, ngd), strict=True))
    assert plain[0].identity() == base.identity()


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
