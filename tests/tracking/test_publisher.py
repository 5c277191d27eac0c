"""What is published to W&B, read back from its offline files; publishing twice; and W&B failing in every way."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from unittest.mock import MagicMock

import numpy as np
import pytest

from c3po_bench import publish as command
from c3po_bench import tracking
from c3po_bench.analysis.compare import compare
from c3po_bench.analysis.frames import COLUMNS, records
from c3po_bench.analysis.verdict import direction, summary_rows
from c3po_bench.store.reader import load_runs
from c3po_bench.tracking import TrackingConfig
from c3po_bench.tracking.tables import FEEDBACK, SAMPLES, samples_table
from c3po_bench.tracking.views import Line, intervals_svg
from tests import store_factory as factory

pytest.importorskip("wandb")
from c3po_bench.tracking.publisher import State, publish_store, wandb_id  # noqa: E402
from tests.tracking.wandb_log import offline_runs  # noqa: E402

JSON_TYPES = {str: str, float: int | float, bool: bool}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    runs = factory.rewiring_store(root, items=20, tasks=("arc_easy", "facts"), hostile=factory.HOSTILE)
    assert command.main([str(root), "--mode", "offline", "--project", "test"]) == 0
    return root, runs, offline_runs(root)


def column_types(table: dict, name: str) -> set[type]:
    at = table["columns"].index(name)
    return {type(row[at]) for row in table["data"]} - {type(None)}


def test_one_run_an_arm_with_its_own_hash(published):
    _, runs, wandb_runs = published
    assert {wandb_id(run) for run in runs} < wandb_runs.keys() and len(wandb_runs) == len(runs) + 1
    ngd = wandb_runs[wandb_id(next(r for r in runs if r.arm == "ngd"))].run
    base = wandb_runs[wandb_id(runs[0])].run
    assert (ngd.project, ngd.run_group, ngd.job_type, ngd.display_name) == (
        "test",
        "quickstart",
        "rewiring",
        "ngd",
    )
    assert base.job_type == "baseline" and "smolmoe" in ngd.tags
    assert all(run.finished for run in wandb_runs.values())


@pytest.mark.security
def test_samples_have_strict_types_all_rows_and_markup_as_text(published):
    _, runs, wandb_runs = published
    for run in runs:
        entry, table = wandb_runs[wandb_id(run)].table("samples")
        columns = {name: kind for name, kind in SAMPLES.items() if name not in FEEDBACK}
        assert (entry["_type"], entry["nrows"], entry["ncols"]) == ("table-file", 40, len(columns))
        assert table["columns"] == list(columns) and len(table["data"]) == 40, "no empty columns of feedback"
        for name, kind in columns.items():
            assert all(issubclass(t, JSON_TYPES[kind]) for t in column_types(table, name)), name
    questions = [row[table["columns"].index("question")] for row in table["data"]]
    assert any(factory.HOSTILE in question for question in questions)


def test_a_row_of_samples_holds_the_item_and_both_answers():
    neighbors = [
        {"similarity": 0.9, "question": "q1", "answer": "a1"},
        {"similarity": 0.8, "question": "q2", "answer": "a2"},
    ]
    row = {
        "task": "arc",
        "doc_id": 7,
        "question": "what?",
        "choices": ["x", "y", "z"],
        "gold": 2,
        "prediction": 1,
        "correct": 0.0,
        "neighbors": neighbors,
        "losses": [3.0, 2.0, 1.5],
        "pathway_change": 0.25,
    }
    feedback = {
        "task": "in_scope",
        "doc_id": 7,
        "prompt": "write",
        "gold": "",
        "prediction": "no",
        "correct": 1.0,
        "scope": "in",
        "response": "yes",
        "baseline_response": "no",
        "score": -1.0,
        "drift": float("nan"),
    }
    row["p_gold"] = 0.25
    others = [row | {"prediction": 2, "correct": 1.0}, feedback | {"doc_id": 8}]
    table = samples_table([row, feedback], others)
    first, second = (dict(zip(table.columns, cells, strict=True)) for cells in table.rows)
    assert first == dict.fromkeys(("scope", "response", "baseline_response", "score", "drift")) | {
        "task": "arc",
        "doc_id": 7.0,
        "question": "what?",
        "choices": "x\ny\nz",
        "gold": "z",
        "base_prediction": "z",
        "prediction": "y",
        "correct": 0.0,
        "p_gold": 0.25,
        "change": "broken",
        "neighbors": "0.9  q1  →  a1\n0.8  q2  →  a2",
        "loss_first": 3.0,
        "loss_last": 1.5,
        "pathway_change": 0.25,
    }
    shown = {
        name: second[name]
        for name in ("question", "scope", "response", "baseline_response", "score", "drift")
    }
    assert shown == {
        "question": "write",
        "scope": "in",
        "response": "yes",
        "baseline_response": "no",
        "score": -1.0,
        "drift": None,
    }
    assert second["base_prediction"] is second["change"] is second["choices"] is second["loss_last"] is None


def test_changes_in_the_samples_are_those_of_the_scores(published):
    _, runs, wandb_runs = published
    ngd = next(r for r in runs if r.arm == "ngd")
    base = {(s["task"], s["doc_id"]): s["correct"] for s in runs[0].samples()}
    expected = [
        {1: "fixed", 0: "same", -1: "broken"}[s["correct"] - base[s["task"], s["doc_id"]]]
        for s in ngd.samples()
    ]
    _, table = wandb_runs[wandb_id(ngd)].table("samples")
    at = table["columns"].index("change")
    assert [row[at] for row in table["data"]] == expected


def test_an_answer_that_no_judge_scored_is_neither_wrong_nor_changed():
    base = [{"task": "in_scope", "doc_id": i, "correct": 1.0, "scope": "in", "score": 1.0} for i in range(2)]
    table = samples_table([base[0] | {"correct": 0.0, "score": None}, base[1]], base)
    cells = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["score"], row["change"]) for row in cells] == [(None, None), (1.0, "follows")]


@pytest.mark.parametrize(
    ("scope", "score", "said"),
    [
        ("in", 1.0, "follows"),
        ("in", 0.0, "does not follow"),
        ("in", -1.0, "goes against it"),
        ("near", 1.0, "leaks"),
        ("out", -1.0, "leaks"),
        ("out", 0.0, "no leak"),
    ],
)
def test_outside_its_scope_what_follows_a_feedback_is_a_leak(scope, score, said):
    row = {"task": scope, "doc_id": 0, "scope": scope, "score": score, "response": "a"}
    row["correct"] = score if scope == "in" else abs(score)
    table = samples_table([row], [row | {"score": 0.0, "correct": 0.0}])
    assert dict(zip(table.columns, table.rows[0], strict=True))["change"] == said
    assert not {"correct", "choices", "neighbors"} & table.columns.keys()


def test_cross_run_tables_in_one_analysis_run(published):
    _, runs, wandb_runs = published
    (analysis,) = [run for run in wandb_runs.values() if run.run.job_type == "analysis"]
    entry, comparison = analysis.table("comparison")
    columns = [name for name in COLUMNS if name != "scope"]  # which feedback alone has
    assert entry["nrows"] == len(runs) * 4 and comparison["columns"] == columns
    assert column_types(comparison, "arm") == {str} and column_types(comparison, "prompt_differs") == {bool}
    assert column_types(comparison, "accuracy") <= {int, float}
    _, ablation = analysis.table("ablation")
    assert len(ablation["data"]) == len(runs) * 4
    assert column_types(ablation, "neighbors") <= {int, float} and column_types(ablation, "kernel") == {str}


def test_curves_histograms_and_files(published):
    _, runs, wandb_runs = published
    ngd = wandb_runs[wandb_id(next(r for r in runs if r.arm == "ngd"))]
    assert len(ngd.logged("curve/surrogate_loss")) == 11 and ngd.logged("step")[:11] == list(range(11))
    assert sum(ngd.logged("histogram/pathway_change/values")[0]) > 0
    (files,) = [a for a in ngd.artifacts if a.type == "run"]
    assert {entry.path for entry in files.manifest.contents} == {
        "result.json",
        "samples.jsonl",
        "provenance.json",
        "config.yaml",
    }


def test_dashboard_is_previewed_as_json(published):
    root, _, _ = published
    preview = json.loads((root / "wandb" / "dashboard.json").read_text())
    text = json.dumps(preview)
    assert {"report", "workspace"} == preview.keys()
    for part in ("comparison", "ablation", "samples", "Cost against gain", "cannot be told from base"):
        assert part in text


def test_every_axis_of_a_sweep_has_a_panel_over_values_that_runs_have(tmp_path):
    scores = factory.scores_of("base", 20, 0.5)
    cells = [("cloze", 0, "A", 20, "last:1"), ("letters", 5, "B", None, "last:5")]
    for rule, shots, model, limit, layers in cells:
        for arm in ("base", "ngd"):
            rows = factory.sample_rows(arm, "arc", scores, details=False)
            settings = {"layers": layers} if arm == "ngd" else {}
            changes = {"scoring": {"rule": rule, "num_fewshot": shots}, "model": model, "limit": limit}
            changes |= {"notes": ["one", "two"]}
            factory.write_run(tmp_path, arm, rows, key=f"{rule} {shots}", settings=settings, **changes)
    publish_store(tmp_path, TrackingConfig(mode="offline"))
    runs = [run.run for run in offline_runs(tmp_path).values() if run.run.job_type == "rewiring"]
    configs = [{item.key: json.loads(item.value_json) for item in run.config.update} for run in runs]
    values = [config["settings"] for config in configs]
    preview = (tmp_path / "wandb" / "dashboard.json").read_text()
    for axis in ("model", "limit", "num_fewshot", "rule", "layers"):
        assert f"config:settings.value.{axis}" in preview and any(axis in settings for settings in values)
    assert {settings.get("limit") for settings in values} == {20, None}
    assert {run.notes for run in runs} == {"one\ntwo"}


def wanted(view, found):
    """What the panels of a dashboard ask for, by the kind of panel: each key as W&B is asked for it."""
    config = view.get("config", {})
    match view.get("viewType"):
        case "Bar Chart":
            keys = [f"summary:{key}" for key in config["metrics"]]
        case "Scatter Plot":
            keys = [config["xAxis"], config["yAxis"]]
        case "Parallel Coordinates Plot":
            keys = [column["accessor"] for column in config["columns"]]
        case "Run History Line Plot":
            keys = [f"history:{key}" for key in (config["xAxis"], *config["metrics"])]
        case "Media Browser":
            keys = [f"media:{key}" for key in config["mediaKeys"]]
        case "Weave":
            keys = [f"table:{name}" for name in re.findall(r'"key".*?"val": "([a-z_]+)"', json.dumps(config))]
        case _:
            keys = []
    if keys:
        found.setdefault(view["viewType"], set()).update(keys)
    for inner in view.values():
        for part in inner if isinstance(inner, list) else [inner]:
            if isinstance(part, dict):
                wanted(part, found)
    return found


def has(run, key):
    """Whether an offline run's file has what a panel asks for."""
    kind, _, name = key.partition(":")
    if kind == "config":
        first, value, *path = name.split(".")
        assert value == "value", f"{key}: a config's values stand below `value`"
        found = {item.key: json.loads(item.value_json) for item in run.run.config.update}.get(first)
        for step in path:
            found = found.get(step) if isinstance(found, dict) else None
        return found is not None
    if kind == "history":
        return bool(run.logged(name))
    if kind == "media":
        return run.summary.get(f"{name}/_type") == "html-file"
    if kind == "table":
        return run.summary.get(f"{name}/_type") == "table-file"
    return isinstance(run.summary.get(name), int | float)


KINDS = {
    "rewiring": {"Bar Chart", "Scatter Plot", "Run History Line Plot", "Media Browser", "Weave"},
    "sweep": {"Bar Chart", "Scatter Plot", "Parallel Coordinates Plot", "Media Browser", "Weave"},
    "feedback": {"Bar Chart", "Scatter Plot", "Run History Line Plot", "Media Browser", "Weave"},
    "feedback sweep": {"Bar Chart", "Scatter Plot", "Parallel Coordinates Plot", "Media Browser", "Weave"},
}


@pytest.fixture(scope="module")
def dashboards(tmp_path_factory, published):
    """By kind of store: its preview, and its offline runs."""
    root = tmp_path_factory.mktemp("dashboards")
    factory.sweep_store(root / "sweep", cells=10, items=10)
    factory.feedback_store(root / "feedback", items=40)
    for beta in (0, 0.1, 0.2):
        rows = [row for s in ("in", "near", "out") for row in factory.feedback_rows("c3po", s, 8)]
        arm, settings = ("c3po", {"beta": beta, "my.option": beta}) if beta else ("base", {})
        rows = [row | {"arm": arm} for row in rows]
        factory.write_run(
            root / "feedback sweep", arm, rows, backend="feedback", settings=settings, curves={}
        )
    roots = {"rewiring": published[0]}
    for name in ("sweep", "feedback", "feedback sweep"):
        publish_store(root / name, TrackingConfig(mode="offline"))
        roots[name] = root / name
    return {
        name: (json.loads((path / "wandb" / "dashboard.json").read_text()), offline_runs(path))
        for name, path in roots.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("view", ["workspace", "report"])
def test_every_panel_finds_what_it_asks_for_in_an_offline_run(dashboards, kind, view):
    preview, runs = dashboards[kind]
    asked = wanted(preview[view], {})
    assert asked.keys() == KINDS[kind]
    for panel, keys in asked.items():
        for key in keys:
            assert any(has(run, key) for run in runs.values()), f"{kind}: {panel} asks for {key}"
    if "sweep" in kind:
        assert any(key.startswith("config:settings.value.") for key in asked["Scatter Plot"])
    tables = (
        {"comparison", "ablation", "samples"}
        if "feedback" not in kind
        else {"feedback", "ablation", "samples"}
    )
    assert {f"table:{name}" for name in tables} == asked["Weave"]


def test_feedback_is_published_as_follows_and_leaks_with_intervals(dashboards):
    _, runs = dashboards["feedback"]
    (c3po,) = [run for run in runs.values() if run.run.display_name == "c3po"]
    for name in ("s_overall", "follows", "leaks_near", "leaks_out", "drift"):
        assert c3po.summary[f"{name}_low"] <= c3po.summary[name] <= c3po.summary[f"{name}_high"]
    assert "accuracy" not in c3po.summary and "leaks_out/feedback_out" in c3po.summary
    assert not [name for name in c3po.summary if name.startswith("acc")]
    assert {"c3po", "method", "follows"} <= set(c3po.run.tags)
    (analysis,) = [run for run in runs.values() if run.run.job_type == "analysis"]
    entry = {key: value for row in analysis.history for key, value in row.items()}
    picture = (analysis.folder / "files" / entry["figures/s_overall/path"]).read_text()
    assert picture.startswith("<svg") and "C3PO" in picture and "0.5: as base" in picture


def test_pictures_hold_names_as_text():
    lines = [Line(factory.HOSTILE, "method", 1.0, -1.0, 2.0)]
    assert "<script" not in intervals_svg(lines, "x", 0.0, "+.1f")


def test_tags_say_what_was_found(published):
    _, runs, wandb_runs = published
    found = {row["run_id"]: direction(row) for row in summary_rows(records(compare(runs)))}
    words = {1: "beats base", 0: "not told from base", -1: "loses to base"}
    roles = {"oracle": "ceiling", "ngd_random_neighbors": "control", "ngd": "method"}
    for run in runs:
        tags = set(wandb_runs[wandb_id(run)].run.tags)
        if run.arm in roles:
            assert {run.arm, roles[run.arm], words[found[run.run_id]]} <= tags


def test_a_store_that_is_none_is_said_before_a_login_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("wandb.api", MagicMock(api_key=None))
    assert command.main([str(tmp_path / "nowhere"), "--mode", "online"]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_publishing_twice_changes_nothing(published, capsys):
    root, _, _ = published
    before = sorted(p.name for p in (root / "wandb").iterdir())
    assert command.main([str(root), "--mode", "offline", "--project", "test"]) == 0
    assert "0 runs published" in capsys.readouterr().out
    assert sorted(p.name for p in (root / "wandb").iterdir()) == before


def test_a_completed_store_is_completed_and_a_changed_run_replaced(tmp_path, capsys):
    runs = factory.rewiring_store(tmp_path, items=5, tasks=("arc",))
    aside = tmp_path / "aside"
    shutil.move(runs[5].path, aside)
    assert command.main([str(tmp_path), "--mode", "offline"]) == 0
    shutil.move(aside, runs[5].path)
    runs[3].result["notes"] = ["scored again"]
    (runs[3].path / "result.json").write_text(json.dumps(runs[3].result))
    capsys.readouterr()
    assert command.main([str(tmp_path), "--mode", "offline"]) == 0
    assert "2 runs published (offline), 4 were already" in capsys.readouterr().out
    assert len(offline_runs(tmp_path)) == 7  # fails on an id with two folders


def grow(root):
    """A store of base and one arm, and what lets it grow: an arm that comes first by name, more cells, a later experiment."""
    scores = np.array([0, 1] * 20)

    def add(arm, fixed, **settings):
        own = scores.copy()
        own[: 2 * fixed : 2] = 1
        return factory.write_run(
            root, arm, factory.sample_rows(arm, "arc", own, details=False), settings=settings
        )

    runs = [add("base", 0), add("ngd", 7, k=1)]
    factory.write_experiment(root, "one", runs)

    def more():
        later = [*runs, add("adapter", 1), add("ngd", 0, k=3)]
        factory.write_experiment(root, "one", later)
        return later

    return runs, more


def test_a_grown_store_is_published_as_it_now_is_under_one_analysis(tmp_path, capsys):
    runs, more = grow(tmp_path)
    assert command.main([str(tmp_path), "--mode", "offline"]) == 0
    before = offline_runs(tmp_path)
    runs = more()
    assert command.main([str(tmp_path), "--mode", "offline"]) == 0
    assert "3 runs published (offline), 1 were already" in capsys.readouterr().out
    wandb_runs = offline_runs(tmp_path)
    for row in records(compare(load_runs(tmp_path))):
        run = wandb_runs[row["run_id"].rpartition("-")[2]]
        assert run.run.display_name == row["label"]
        assert row["arm"] == "base" or run.summary["p_holm"] == pytest.approx(row["p_holm"])
    (name,) = (name for name, run in wandb_runs.items() if run.run.job_type == "analysis")
    assert name in before and len(wandb_runs) == len(runs) + 1
    assert wandb_runs[wandb_id(runs[0])].folder == before[wandb_id(runs[0])].folder
    assert command.main([str(tmp_path), "--mode", "offline"]) == 0
    assert "0 runs published (offline), 4 were already" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "wandb")
    assert command.main([str(tmp_path), "--mode", "offline"]) == 0
    assert name in offline_runs(tmp_path)


def test_the_analysis_keeps_its_id_in_every_mode_and_project(tmp_path):
    State(tmp_path, "offline", "/one").put("analysis-first", "content")
    assert State(tmp_path, "online", "us/two").analysis_id("second") == "analysis-first"
    assert State(tmp_path / "other", "online", "us/two").analysis_id("second") == "analysis-second"


def test_online_what_w_and_b_has_is_not_logged_again(tmp_path, monkeypatch):
    started: dict[str, MagicMock] = {}

    def init(**options):
        run = started[options["id"]] = MagicMock(options=options, entity="us")
        run.__enter__.return_value = run
        return run

    monkeypatch.setattr("wandb.init", init)
    cfg = TrackingConfig(mode="online")
    runs, more = grow(tmp_path)
    publish_store(tmp_path, cfg, save_dashboard=False)
    ngd = wandb_id(runs[1])
    assert started[ngd].log.called
    more()
    started.clear()
    publish_store(tmp_path, cfg, analysis=False, save_dashboard=False)
    assert len(started) == 2 and ngd not in started
    publish_store(tmp_path, cfg, save_dashboard=False)
    assert started[ngd].options["name"] == "ngd (k=1)" and started[ngd].summary.update.called
    assert not started[ngd].log.called and not started[ngd].log_artifact.called


def test_end_of_run_publishes_and_reports_success(tmp_path):
    factory.rewiring_store(tmp_path, items=3, tasks=("arc",))
    assert tracking.publish(tmp_path, TrackingConfig(mode="offline"))
    assert len(offline_runs(tmp_path)) == 7


def test_disabled_does_nothing(tmp_path):
    assert tracking.publish(tmp_path, TrackingConfig(mode="disabled"))
    assert list(tmp_path.iterdir()) == []


def lines(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "c3po_bench.tracking"]


def test_unreachable_server_costs_the_time_limit_and_one_line(tmp_path, monkeypatch, caplog):
    factory.rewiring_store(tmp_path, items=3, tasks=("arc",))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert not tracking.publish(tmp_path, TrackingConfig(mode="online", time_limit=3.0))
    (line,) = lines(caplog)
    assert "not done within 3 s; the results are safe" in line and "\n" not in line


def test_not_logged_in_is_one_line(tmp_path, monkeypatch, caplog):
    factory.rewiring_store(tmp_path, items=3, tasks=("arc",))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not tracking.publish(tmp_path, TrackingConfig(mode="online"))
    (line,) = lines(caplog)
    assert "not logged in" in line


def test_missing_wandb_is_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    caplog.set_level(logging.INFO, logger="c3po_bench.tracking")
    assert not tracking.publish(tmp_path, TrackingConfig(mode="offline"))
    assert "pip install 'c3po-bench[wandb]'" in lines(caplog)[0]


def test_a_failure_of_the_publisher_is_one_line(tmp_path, caplog):
    (run, *_) = factory.rewiring_store(tmp_path, items=3, tasks=("arc",))
    (run.path / "result.json").write_text("{")
    assert not tracking.publish(tmp_path, TrackingConfig(mode="offline"))
    (line,) = lines(caplog)
    assert "result.json is damaged" in line and "\n" not in line


def test_command_line_says_what_is_missing(tmp_path, capsys):
    assert command.main([str(tmp_path / "nowhere"), "--mode", "offline"]) == 2
    assert "holds no results" in capsys.readouterr().err
