"""Numbers do not change while versions stay; what has another version than today is marked, and results-check says so."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from c3po_bench.analysis.compare import compare, compare_controls
from c3po_bench.analysis.frames import headlines, records
from c3po_bench.analysis.study import check, publish, stamp
from c3po_bench.analysis.tables import console_table
from c3po_bench.analysis.verdict import verdict
from c3po_bench.errors import UserError
from c3po_bench.feedback.arms import ARMS as FEEDBACK_ARMS
from c3po_bench.feedback.arms import split_name
from c3po_bench.report.tables import comparison_rows, marks
from c3po_bench.store import versions
from c3po_bench.store.reader import load_runs
from c3po_bench.store.versions import arm_version, outdated
from tests import store_factory as factory
from tests.versions import canary

RESULTS = Path(__file__).resolve().parents[2] / "results"


@pytest.fixture(scope="module")
def recorded():
    return json.loads(canary.RECORDED.read_text(encoding="utf-8"))


def changed(recorded: dict, now: dict, tolerance: float) -> list[str]:
    """What changed although its version did not, in words."""
    lines = []
    for name, own in recorded.items():
        if name not in now:
            lines.append(f"{name} is gone")
        elif own["version"] == now[name]["version"] and not alike(own, now[name], tolerance):
            lines.append(
                f"numbers of {name} changed and its version ({own['version']}) did not: raise it in "
                "c3po_bench/store/versions.py and record: python -m tests.versions.canary"
            )
        elif own["version"] != now[name]["version"]:
            lines.append(
                f"{name} has version {now[name]['version']}: record: python -m tests.versions.canary"
            )
    return [*lines, *(f"{name} is new: record it" for name in now.keys() - recorded.keys())]


def alike(old: dict, new: dict, tolerance: float) -> bool:
    """Whether two records say the same: numbers within the tolerance, predictions where they are clear."""
    if "predictions" in old:
        clear = [i for i, sure in enumerate(old["clear"]) if sure]
        same = [old["predictions"][i] for i in clear] == [new["predictions"][i] for i in clear]
        return same and old["p_gold"] == pytest.approx(new["p_gold"], abs=tolerance)
    if "curves" in old:
        near = pytest.approx
        return old["curves"].keys() == new["curves"].keys() and all(
            curve == near(new["curves"][name], rel=5 * tolerance, abs=tolerance)
            for name, curve in old["curves"].items()
        )
    return old == new


@pytest.mark.slow
def test_no_arm_changes_its_numbers_and_keeps_its_version(recorded, tmp_path):
    now = canary.rewiring_numbers(tmp_path)
    assert changed(recorded["rewiring"], now, 0.02) == []
    assert list(now) == canary.PLANTED_ARMS
    # and the canary does sing
    old = copy.deepcopy(recorded["rewiring"])
    old["ngd"]["p_gold"][0] += 0.05
    old["oracle"]["predictions"][0] += 1
    old["sft"]["version"] -= 1
    lines = changed(old, now, 0.02)
    assert len(lines) == 3
    assert any("numbers of ngd changed and its version (1) did not" in line for line in lines)
    assert any("numbers of oracle changed" in line for line in lines)
    assert any(line.startswith("sft has version 2") for line in lines)


def test_no_scoring_rule_metric_or_prompt_does(recorded, tmp_path):
    assert changed(recorded["scorers"], canary.scorer_numbers(tmp_path), 0.02) == []
    assert changed(recorded["metrics"], canary.metric_numbers(), 0.0) == []
    assert changed(recorded["prompts"], canary.prompt_numbers(), 0.0) == []


@pytest.mark.slow
def test_no_recipe_of_training_does(recorded, tmp_path):
    assert changed(recorded["recipes"], canary.recipe_numbers(tmp_path), 0.02) == []


def test_every_arm_has_a_canary(recorded):
    ours = {*recorded["prompts"], *recorded["recipes"]}
    assert {split_name(name)[0] for name in FEEDBACK_ARMS} == ours and set(canary.PLANTED_ARMS) == set(
        recorded["rewiring"]
    )


def test_versions_of_what_is_made_of_parts(monkeypatch):
    monkeypatch.setattr(versions, "ARMS", {"ngd": 3, "c3po": 2})
    monkeypatch.setattr(versions, "CONTROLS", {"random_neighbors": 2})
    assert [arm_version(name) for name in ("base", "ngd", "ngd_shuffled_labels", "ngd_random_neighbors")] == [
        1,
        3,
        3,
        4,
    ]
    assert [arm_version(name) for name in ("c3po_mix", "c3po_then_ngd", "c3po_no_near")] == [2, 4, 1]


def test_what_a_run_was_recorded_with_is_compared_with_today(monkeypatch):
    result = {"arm": "ngd", "arm_row": {}, "versions": {"arm": 1, "cloze": 1, "acc": 1}}
    assert (
        outdated(result) == "" and outdated({"arm": "sft", "arm_row": {}}) == "recorded with version 1, now 2"
    )
    monkeypatch.setattr(versions, "SCORERS", {"cloze": 2})
    assert outdated(result) == "cloze recorded with version 1, now 2"
    plugged = {"arm": "mine", "arm_row": {}, "versions": {"arm": 3}}
    assert outdated(plugged, plugins=True) == "" and outdated(plugged) == "recorded with version 3, now 1"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of NGD, its control and kernel regression, all of today's versions."""
    monkeypatch.setattr(versions, "ARMS", {})
    monkeypatch.setattr(versions, "CONTROLS", {})
    right = [0, 1] * 20
    better = [1] * 30 + right[30:]
    factory.store(
        tmp_path / "store", base=right, ngd=better, ngd_random_neighbors=right, kernel_regression=better
    )
    publish(tmp_path / "store", tmp_path / "study")
    stamp(tmp_path / "study", {})
    check(tmp_path / "study")
    return tmp_path / "study"


def test_a_raised_version_is_found_by_results_check(study, monkeypatch):
    monkeypatch.setattr(versions, "ARMS", {"ngd": 2})
    runs = {run.arm: run.run_id for run in load_runs(study)}
    with pytest.raises(UserError) as found:
        check(study)
    message = str(found.value)
    assert (
        f"{runs['ngd']} (recorded with version 1, now 2)" in message
        and "comparison.csv does not mark" in message
    )
    assert runs["ngd_random_neighbors"] in message  # a control is made of its arm
    assert runs["kernel_regression"] not in message
    publish(study, study)  # marks them
    check(study)
    table = pd.read_csv(study / "comparison.csv")
    assert set(table.loc[table["outdated"].notna(), "arm"]) == {"ngd", "ngd_random_neighbors"}


def test_outdated_rows_leave_headlines_and_verdicts_and_are_marked_in_the_report(study, monkeypatch):
    assert "NGD beats base" in verdict(compare(load_runs(study)))
    monkeypatch.setattr(versions, "ARMS", {"ngd": 2})
    frame, over = compare(load_runs(study)), compare_controls(load_runs(study))
    assert "ngd" not in {row["arm"] for row in headlines(records(frame))}
    said = verdict(frame, over)
    assert "NGD beats" not in said and "Kernel regression beats base" in said
    assert (
        "Left out until they are recorded again: NGD (recorded with version 1, now 2), NGD with random"
        in said
    )
    assert "left out: ngd (recorded with version 1, now 2)" in str(console_table(frame).caption)
    cells = {row.cells[0].value: row.cells for row in comparison_rows(frame, over)}
    assert "recorded with version 1, now 2" in cells["ngd"][0].detail and "has changed since" in marks(frame)
    assert cells["ngd"][4].tone == "" and cells["kernel_regression"][4].tone == "up"


def test_a_control_of_another_version_is_still_a_control(tmp_path):
    """An arm and its controls have versions of their own, which are part of their identity."""
    runs = factory.store(tmp_path, base=[0, 1] * 20)
    for arm, version in (("ngd", 1), ("ngd_random_neighbors", 2)):
        rows = factory.sample_rows(arm, "arc", [0, 1] * 20, details=False)  # pyright: ignore[reportArgumentType]
        runs.append(factory.write_run(tmp_path, arm, rows, identity={"version": version, "engine": "suffix"}))
    assert compare_controls(runs)["control"].tolist() == ["ngd_random_neighbors"]


def test_older_studies_are_stamped_and_their_numbers_stay(tmp_path):
    shutil.copytree(RESULTS / "smolmoe_tuned", tmp_path / "study")
    before = {}
    for path in (tmp_path / "study").glob("runs/*/result.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        del result["versions"]
        before[path] = result
        path.write_text(json.dumps(result), encoding="utf-8")
    stamp(tmp_path / "study", {"random_pathway": 2})
    for path, result in before.items():
        now = json.loads(path.read_text(encoding="utf-8"))
        assert now.pop("versions") == {
            "arm": 2 if result["arm"] == "random_pathway" else 1,
            "cloze": 1,
            "acc": 1,
        }
        assert now == result


def test_published_runs_say_their_versions():
    for run in (run for study in RESULTS.glob("*/comparison.csv") for run in load_runs(study.parent)):
        assert run.result["versions"]["arm"] >= 1, run.run_id
