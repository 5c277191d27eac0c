"""What a run takes and can show is said before; a budget chooses a limit once, and reruns take that."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from c3po_bench.config import BackendConfig, Config, ModelConfig
from c3po_bench.errors import UserError
from c3po_bench.evaluate import budget, forecast, rates
from c3po_bench.evaluate.budget import SweepPlace, fitting, written
from c3po_bench.evaluate.forecast import Forecast, Watch, detectable, size
from c3po_bench.evaluate.run import open_backend, run
from c3po_bench.evaluate.work import Rates, TaskSize, Work, works, works_of_cells
from c3po_bench.options import seconds_of
from c3po_bench.runtime.console import WHOLE
from tests.evaluate.conftest import config

ONE = Rates(1.0, 1.0, 1.0, "made up")


def rewiring(folder: Path, **changes: Any) -> Config:
    cfg = Config(
        name="tiny", model=ModelConfig(name="tiny", kind="tiny"), results_dir=str(folder / "results")
    )
    cfg.tasks, cfg.arms, cfg.limit = ["facts_capitals"], ["base", "ngd"], 4
    cfg.references.tasks, cfg.references.limit, cfg.references.only_correct = ["facts_capitals"], 12, False
    cfg.embedder.name, cfg.method.neighbors.max_similarity = "hidden_states", 1.01
    cfg.tracking.mode = "disabled"
    return replace(cfg, **changes)


def planted(folder: Path, limit: int) -> Config:
    cfg = Config(name="planted", model=ModelConfig(name="planted", kind="planted"), results_dir=str(folder))
    cfg.tasks, cfg.references.tasks, cfg.references.limit = ["planted"], ["planted"], None
    cfg.arms, cfg.limit, cfg.batch_size = (
        ["base", "base_again", "ngd", "oracle", "ngd_shuffled_labels"],
        limit,
        100,
    )
    cfg.method.layers, cfg.tracking.mode = "last:3", "disabled"
    return cfg


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A machine whose rates a test sets: seconds a token."""
    rate = [0.001]
    monkeypatch.setattr(rates, "measure", lambda *_: Rates(rate[0], rate[0], rate[0], "made up"))
    return rate


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10min", 600), ("10m", 600), ("2h", 7200), (" 1.5 h ", 5400), ("1d", 86400)],
)
def test_times_are_read(text: str, seconds: float):
    assert seconds_of("budget", text) == seconds


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("10", "10min"),
        ("10minutes", "10min"),
        ("2 hours", "2h"),
        ("-5min", "10min"),
        ("soon", "10min"),
        ("0s", "10min"),
        ("30seconds", "30s"),
        ("3x", "3min"),
    ],
)
def test_other_times_are_refused_with_the_nearest_form(text: str, near: str):
    with pytest.raises(
        UserError, match=f"^budget={text}: write a number and s, min or h, as in budget={near}$"
    ):
        seconds_of("budget", text)


def test_the_command_line_refuses_in_one_line(warm: Any, tiny: tuple[str, ...], tmp_path: Path):
    done = warm(*tiny, "budget=10minutes", f"results_dir={tmp_path}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "budget=10minutes: write a number and s, min or h, as in budget=10min" in done.stderr


def test_what_arms_share_is_counted_once(tmp_path: Path):
    tasks = [TaskSize("facts", 100, 10.0)]
    base, ngd, control = works(rewiring(tmp_path, arms=["ngd", "ngd_shuffled_labels"]), tasks)
    assert base.total(tasks, None) == Work(1000.0)
    assert ngd.once == Work(120.0, embedded=12.0) and ngd.items[0].embedded == 1
    assert control.once == Work() and control.items[0] == replace(ngd.items[0], embedded=0.0)
    (again,) = works(rewiring(tmp_path, arms=["ngd", "random_pathway"]), tasks)[2:]
    assert again.items[0].read < control.items[0].read / 2
    assert ngd.items[0].read > 1.4 * base.items[0].read
    assert ngd.total(tasks, 5).read == 120.0 + 5 * ngd.items[0].read


def test_steps_and_training_cost(tmp_path: Path):
    tasks, usual = [TaskSize("facts", 100, 10.0)], rewiring(tmp_path)
    more = replace(usual, method=replace(usual.method, steps=50))
    assert works(more, tasks)[1].items[0].read > 3 * works(usual, tasks)[1].items[0].read
    (_, trained) = works(rewiring(tmp_path, arms=["sft"]), tasks)
    longer = works(rewiring(tmp_path, arms=["sft"], arm_options={"sft": {"steps": 60}}), tasks)[1]
    assert longer.once.read == 2 * trained.once.read > 0
    seeded = works(rewiring(tmp_path, arms=["sft"], seeds=[1, 2, 3]), tasks)
    assert [part.arm for part in seeded] == ["base", "sft", "sft", "sft"]


def test_feedback_is_trained_and_answers_in_tokens(tmp_path: Path):
    cfg = config(tmp_path, tmp_path, ["in_context", "c3po", "c3po_then_ngd"])
    tasks = [TaskSize("in_scope", 4, 20.0, 4.0, True), TaskSize("facts_capitals", 9, 10.0)]
    base, asked, tuned, chain = works(cfg, tasks)
    assert base.items[1] == Work(10.0) and base.once == Work()
    assert asked.items[0].written == 3.0 and asked.once == Work()
    assert tuned.once.read > tuned.once.written > 0
    assert chain.once.embedded == 12


def test_cells_of_a_sweep_share_base(tmp_path: Path):
    cfg, tasks = rewiring(tmp_path), [TaskSize("facts", 100, 10.0)]
    cells = [replace(cfg, method=replace(cfg.method, steps=steps)) for steps in (1, 10, 10)]
    assert [part.arm for part in works_of_cells(cells, tasks)] == ["base", "ngd", "ngd"]


def test_the_limit_fits_and_is_round(tmp_path: Path):
    tasks = [TaskSize("one", 1000, 1.0), TaskSize("few", 3, 1.0)]
    found = Forecast(
        rewiring(tmp_path, arms=["base"], budget="1min"),
        tasks,
        works(rewiring(tmp_path, arms=["base"]), tasks),
        ONE,
    )
    for seconds in (10, 100, 500, 999):
        limit = fitting(found, seconds)
        assert limit is not None and found.seconds(limit) <= seconds < found.seconds(int(1.6 * limit))
    assert fitting(found, 100) == 80 and fitting(found, 90) == 80
    assert fitting(found, 2000) is None
    with pytest.raises(UserError, match="budget=1min is too short: .* the nearest that fits is budget=30s"):
        fitting(found, 2)


def test_round_times_are_written_as_the_key_takes_them():
    assert [written(s) for s in (30, 60, 5400, 7200, 90000)] == ["30s", "1min", "90min", "2h", "25h"]


def test_a_rerun_takes_the_same_limit_whatever_the_machine_does(steady: list[float], tmp_path: Path):
    cfg = rewiring(tmp_path, budget="10s", limit=None)
    first = run(cfg)
    limit = first[0].result["limit"]
    assert 1 <= limit < 60
    (path,) = (tmp_path / "results" / "budgets").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["budget"], record["limit"], record["items"]) == ("10s", limit, limit)
    assert first[0].provenance["budget"] == {"time": "10s", "limit": limit}
    assert first[0].config["budget"] == "10s" and first[0].config["limit"] == limit
    steady[0] = 1.0  # now so slow that nothing would fit
    again = run(replace(cfg, limit=7))
    assert [r.run_id for r in again] == [r.run_id for r in first]
    with pytest.raises(UserError, match="is too short"):
        run(replace(cfg, budget="11s"))


def test_a_run_without_a_budget_says_nothing_of_one(tmp_path: Path):
    (base, _) = run(rewiring(tmp_path))
    assert base.provenance["budget"] is None and not (tmp_path / "results" / "budgets").exists()


def test_a_sweep_has_one_limit_and_its_cells_share_base(steady: list[float], tmp_path: Path):
    steady[0], cfg = 0.004, rewiring(tmp_path, budget="20s", limit=None)
    cells = [replace(cfg, method=replace(cfg.method, steps=steps)) for steps in (1, 2, 3)]
    runs = [run(cell, SweepPlace(number, 3, lambda: cells)) for number, cell in enumerate(cells)]
    assert len({r.run_id for r in (each[0] for each in runs)}) == 1
    assert len(list((tmp_path / "results" / "budgets").glob("*.json"))) == 1
    alone = run(replace(cells[0], results_dir=str(tmp_path / "alone")))
    assert alone[0].result["limit"] > runs[0][0].result["limit"]


def test_a_budget_of_feedback(steady: list[float], moe: Path, tmp_path: Path):
    cfg = replace(config(moe, tmp_path, ["c3po"]), backend=BackendConfig("feedback"), tasks=["feedback"])
    cfg = replace(cfg, budget="1h", limit=None)
    base, tuned = run(cfg)
    assert base.result["limit"] is None and tuned.provenance["budget"] == {"time": "1h", "limit": None}
    steady[0] = 0.1
    with pytest.raises(UserError, match="budget=30s is too short: .* what comes before the first included"):
        run(replace(cfg, budget="30s"))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [300])
def test_the_forecast_of_the_planted_model_is_within_a_factor_of_three(limit: int, tmp_path: Path):
    cfg = planted(tmp_path, limit)
    found = forecast.forecast(cfg, open_backend(cfg)).seconds(limit)
    start = time.monotonic()
    run(cfg)
    took = time.monotonic() - start
    assert took / 3 < found < took * 3, (found, took)


def test_long_experiments_say_what_they_take_and_can_show(
    steady: list[float], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(forecast, "log", logging.getLogger("told"))
    caplog.set_level(logging.INFO, logger="told")
    run(rewiring(tmp_path))
    assert [r.getMessage() for r in caplog.records] == [
        "tiny: 2 arms, 4 items of facts_capitals, model tiny (float32, auto)"
    ]
    steady[0], short = 0.5, len(caplog.records)
    run(rewiring(tmp_path, limit=5))
    heading, needs, shown = (r.getMessage() for r in caplog.records[short:][:3])
    assert heading.startswith("tiny: 2 arms, 5 items")
    assert "it will take about" in needs and "of memory" in needs and "of disk" in needs
    assert shown.startswith("5 items are too few") or "are detectable" in shown


def test_what_items_can_show(tmp_path: Path):
    cfg = rewiring(tmp_path)
    many = Forecast(cfg, [TaskSize("facts", 400, 1.0)], [], ONE)
    assert "400 items, only gains above about 4.4 points are detectable (power 80%, if 10% of" in detectable(
        many, None
    )
    assert "if 30% of them change" in detectable(many, 30)
    scoped = Forecast(
        cfg, [TaskSize("in_scope", 16, 1.0, 1.0, True), TaskSize("out_of_scope", 90, 1.0, 1.0, True)], [], ONE
    )
    assert "16 prompts in scope, only changes of S_in above about 0.37" in detectable(scoped, None)
    assert detectable(scoped, 4).startswith("4 prompts in scope are too few for any change of S_in")


def test_the_time_left_is_corrected_by_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(forecast.time, "monotonic", lambda: now[0])
    cfg, tasks = rewiring(tmp_path, arms=["base", "oracle"], limit=100), [TaskSize("facts", 100, 1.0)]
    watch = Watch()
    assert watch.left() is None
    with watch.over("base"):
        watch.begin(Forecast(cfg, tasks, works(cfg, tasks), ONE), 0)
        before = watch.left()
        now[0] += 303
        assert before is not None and before > 190
        assert watch.left(40.0) == 40.0 + watch.waiting[0][1]
    corrected = watch.left()
    assert corrected == pytest.approx(watch.waiting[0][1] * (303 + 10) / (101 + 10))
    with watch.over("oracle"):  # done before
        assert watch.left() is not None
    assert watch.left() == 0 and watch.measured == 303
    WHOLE.arm = ""


def test_arms_that_were_done_are_not_waited_for(tmp_path: Path):
    cfg, tasks = rewiring(tmp_path, arms=["base", "oracle", "ngd"], limit=100), [TaskSize("facts", 100, 1.0)]
    watch = Watch()
    for arm in ("base", "oracle"):
        with watch.over(arm):
            pass
    with watch.over("ngd"):
        watch.begin(Forecast(cfg, tasks, works(cfg, tasks), ONE), 2)
        assert watch.waiting == [] and watch.current > 100 and watch.cells == 2
    WHOLE.arm = ""


def test_sizes_are_said_in_the_unit_that_fits():
    assert [size(n) for n in (500, 22e6, 1.34e9, 62e9)] == ["1 kB", "22 MB", "1.3 GB", "62 GB"]


def test_budgets_keep_apart_what_is_not_the_same_experiment(tmp_path: Path):
    cfg = rewiring(tmp_path, budget="10min")
    same = replace(cfg, limit=3, threads=2, log_level="debug", shard="1/2")
    other = replace(cfg, seed=1)
    assert budget.path_of(cfg, [cfg]) == budget.path_of(same, [same]) != budget.path_of(other, [other])
