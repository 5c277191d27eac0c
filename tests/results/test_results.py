"""Published studies say what their own runs say: `make results-check`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from c3po_bench.analysis.study import KEPT, check, publish
from c3po_bench.errors import UserError
from c3po_bench.report.build import write_report
from c3po_bench.store.files import read_jsonl
from c3po_bench.store.reader import load_runs
from tests import store_factory as factory

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted(path.parent for path in (ROOT / "results").glob("*/comparison.csv"))


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_tables_are_what_the_runs_say(study):
    check(study)
    assert (study / "README.md").exists()
    for samples in study.glob("runs/*/samples.jsonl"):
        for row in read_jsonl(samples):
            assert set(row) <= set(KEPT)  # no text of any question


@pytest.mark.parametrize("name", ["smolmoe_letters", "smolmoe_feedback"])
def test_a_study_has_a_report(name, tmp_path):
    page = write_report(ROOT / "results" / name, tmp_path).read_text(encoding="utf-8")
    assert "not kept: a published study" in page
    assert load_runs(ROOT / "results" / name)[0].run_id in page


def test_published_runs_say_what_was_asked_for():
    for run in (run for study in STUDIES for run in load_runs(study)):
        assert sorted(task for tasks in run.result["groups"].values() for task in tasks) == sorted(
            run.result["tasks"]
        )


def test_the_57_subjects_of_mmlu_are_one_benchmark_of_six():
    frame = pd.read_csv(ROOT / "results" / "smolmoe_six" / "comparison.csv", keep_default_na=False)
    assert set(frame.loc[frame["level"] == "group", "task"]) == {"mmlu"}
    base = frame[frame["arm"] == "base"].set_index("task")["accuracy"].astype(float)
    benchmarks = ["mmlu", "hellaswag", "arc_challenge", "arc_easy", "piqa", "winogrande"]
    assert base["mean of tasks"] == pytest.approx(base[benchmarks].mean(), abs=1e-4)


def test_a_changed_table_or_sample_is_found(tmp_path):
    assert STUDIES
    study = tmp_path / "study"
    shutil.copytree(STUDIES[0], study)
    table = study / "comparison.csv"
    head, first, *rest = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([head, first.replace("base", "best"), *rest]), encoding="utf-8")
    with pytest.raises(UserError, match=r"comparison\.csv is not what its runs say"):
        check(study)
    column = head.split(",").index("accuracy")
    cells = first.split(",")
    cells[column] = str(float(cells[column]) + 0.001)
    table.write_text("\n".join([head, ",".join(cells), *rest]), encoding="utf-8")
    with pytest.raises(UserError, match=r"comparison\.csv is not what its runs say.*accuracy"):
        check(study)
    table.unlink()
    with pytest.raises(UserError, match="missing"):
        check(study)


def test_publishing_again_leaves_no_run_or_table_of_an_earlier_store(tmp_path):
    store, study = tmp_path / "store", tmp_path / "study"
    kept = [
        factory.write_run(
            store, "base", factory.sample_rows("base", "arc", np.array([0, 1] * 5), details=False)
        )
    ]
    gone = [
        factory.write_run(store, arm, factory.sample_rows(arm, "arc", np.array([1, 1] * 5), details=False))
        for arm in ("ngd", "ngd_random_neighbors")
    ]
    publish(store, study)
    assert (study / "controls.csv").exists()
    for run in gone:
        shutil.rmtree(run.path)
    kept.append(factory.write_run(store, "mode_finding", kept[0].samples()))
    whole = study / "runs" / "whole"
    shutil.copytree(kept[0].path, whole)  # with config and log: of a store
    for path in (study / "README.md", study / "runs" / "notes" / "mine.md", study / "mine.csv"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine", encoding="utf-8")
    publish(store, study)
    assert {path.name for path in (study / "runs").iterdir()} == {
        *(run.run_id for run in kept),
        "notes",
        "whole",
    }
    assert sorted(path.name for path in study.iterdir() if path.is_file()) == [
        "README.md",
        "comparison.csv",
        "mine.csv",
    ]
    shutil.rmtree(whole)
    publish(store, study)
    check(study)
    assert set(pd.read_csv(study / "comparison.csv")["run_id"]) == {run.run_id for run in kept}


def test_publishing_leaves_out_text_and_machines(tmp_path):
    store = tmp_path / "store"
    shutil.copytree(STUDIES[0], store)
    run = next(store.glob("runs/*"))
    provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    command = "python -m c3po_bench data.root=~/somebody limit=4 model.path=/somebody/model seed=1"
    provenance |= {"hardware": {"host": "somebody"}, "command": command, "checksums": {}}
    (run / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    samples = run / "samples.jsonl"
    rows = [{**row, "question": "What does somebody ask?", "cluster": "1f"} for row in read_jsonl(samples)]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    publish(store, tmp_path / "study")
    check(tmp_path / "study")
    assert {
        row["cluster"] for row in read_jsonl(tmp_path / "study" / "runs" / run.name / "samples.jsonl")
    } == {"1f"}
    assert "data.root=DIR limit=4 model.path=DIR seed=1" in (
        tmp_path / "study" / "runs" / run.name / "provenance.json"
    ).read_text(encoding="utf-8")
    assert not [
        path
        for path in (tmp_path / "study").rglob("*")
        if path.is_file() and "somebody" in path.read_text(encoding="utf-8")
    ]
