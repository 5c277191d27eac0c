"""`python -m c3po_bench.verify`: a sound store, one with a changed row, one whose model is gone, a published study."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from c3po_bench import verify
from c3po_bench.analysis.study import publish
from c3po_bench.config import Config
from c3po_bench.evaluate.run import run
from c3po_bench.report.build import write_report
from c3po_bench.store.records import file_checksum, write_sealed

ARMS = ["base", "base_again", "kernel_regression", "oracle"]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of four arms on the tiny model."""
    folder = tmp_path_factory.mktemp("verify") / "store"
    cfg = Config(name="tiny", results_dir=str(folder), limit=6, batch_size=4, log_level="error", arms=ARMS)
    cfg.tracking.mode = "disabled"
    cfg.model.name = cfg.model.kind = "tiny"
    cfg.model.path, cfg.model.device = "olmoe", "cpu"
    cfg.tasks = ["facts_capitals"]
    cfg.references.tasks, cfg.references.limit = ["facts_capitals"], 24
    cfg.embedder.name = "hidden_states"
    cfg.method.layers, cfg.method.experts, cfg.method.steps = "last:2", "top:5", 3
    cfg.method.neighbors.max_similarity = 0.9999
    run(cfg)
    return folder


@pytest.fixture
def store(made, tmp_path):
    shutil.copytree(made, tmp_path / "store")
    return tmp_path / "store"


def samples_of(store: Path, arm: str) -> Path:
    return next(store.glob(f"runs/{arm}-*/samples.jsonl"))


def change(path: Path, number: int, *, sealed: bool, **fields) -> None:
    """Change one row; with `sealed` its checksum is made to fit."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[number] |= fields
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    if sealed:
        provenance = json.loads(path.with_name("provenance.json").read_text(encoding="utf-8"))
        provenance["checksums"] = {path.name: file_checksum(path)}
        path.with_name("provenance.json").write_text(json.dumps(provenance), encoding="utf-8")


def test_a_sound_store_holds_and_is_answered_again(store, capsys):
    write_report(store)
    assert verify.main([str(store), "--items", "3"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        "checked: 4 runs with their hashes; 24 rows by themselves, of 4 runs also by their journals"
    )
    assert "aggregates; the report's comparison; the report's verdict; the verdict from the records" in last
    assert last.endswith("12 answers of 4 arms given again on this machine, 12 alike: all hold")


def test_a_report_with_differences_to_another_arm_holds(store, capsys):
    write_report(store, against="kernel_regression")
    assert verify.main([str(store), "--items", "0"]) == 0
    table = store / "tables" / "comparison.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("kernel_regression", "ngd"), encoding="utf-8")
    assert verify.main([str(store), "--items", "0"]) == 2
    assert "comparison.csv" in capsys.readouterr().err


def test_a_changed_row_is_named(store, capsys):
    path = samples_of(store, "kernel_regression")
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[2])
    change(path, 2, sealed=False, correct=1.0 - row["correct"])
    assert verify.main([str(store), "--items", "0"]) == 2
    said = capsys.readouterr()
    name = path.parent.name
    assert f"{path} is damaged" in said.out  # by its checksum
    assert f"{name}: facts_capitals/2: correct" in said.out  # by what it says itself
    assert f"{name}: facts_capitals has acc" in said.out  # by the aggregate
    assert said.out.splitlines()[-1].startswith("checked: 4 runs") and "do not hold" in said.out
    assert said.err.count("\n") == 1 and "things do not hold, first" in said.err


def test_a_row_that_was_changed_with_care_is_found_by_the_journal_and_the_model(store, capsys):
    """Log-likelihoods, p_gold, checksum: all made to fit."""
    path = samples_of(store, "base")
    row = json.loads(path.read_text(encoding="utf-8").splitlines()[1])
    scores = [score - 1.0 for score in row["loglikelihoods"]]  # neither the ranking nor p_gold moves
    change(path, 1, sealed=True, loglikelihoods=scores)
    findings = verify.verify(store, items=0)
    assert findings.wrong == [
        f"{path.parent.name}: facts_capitals/1: its answer is none of its run's journal"
    ]
    for journal in store.glob("runs/*/journal*.jsonl"):
        journal.unlink()
    findings = verify.verify(store, items=6)
    assert findings.wrong == [
        f"{path.parent.name}: facts_capitals/1 is answered otherwise here: a log-likelihood is 1 off"
    ]
    assert "24 answers of 4 arms given again on this machine, 23 alike" in findings.checked
    capsys.readouterr()


def test_a_changed_result_or_report_is_found(store):
    write_report(store)
    result = next(store.glob("runs/oracle-*/result.json"))
    kept = result.read_text(encoding="utf-8")
    data = json.loads(kept)
    data["metrics"]["facts_capitals"]["acc"] += 0.01
    data.pop("crc")
    write_sealed(result, data)  # with care: a changed byte alone is found by the checksum
    assert [line.split(":")[1] for line in verify.verify(store, items=0).wrong] == [
        f" facts_capitals has acc {data['metrics']['facts_capitals']['acc'] - 0.01:.6f} of 6, result.json says "
        f"{data['metrics']['facts_capitals']['acc']} of 6"
    ]
    result.write_text(kept, encoding="utf-8")
    table = store / "tables" / "comparison.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    place = lines[0].split(",").index("accuracy")
    cells = lines[1].split(",")
    cells[place] = "0.99"
    table.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n", encoding="utf-8")
    page = store / "report.html"
    page.write_text(page.read_text(encoding="utf-8").replace("Noise floor", "No noise"), encoding="utf-8")
    wrong = verify.verify(store, items=0).wrong
    assert len(wrong) == 2 and "accuracy is" in wrong[0] and "does not say: Noise floor" in wrong[1]
    shutil.move(result.parent, result.parent.with_name("oracle-000000000000"))
    assert any(
        "its name is not the hash of its identity" in line for line in verify.verify(store, items=0).wrong
    )


def test_a_report_may_order_its_rows_as_it_likes(store):
    """Over several tasks a report's table begins with the row over all items, the records' with the tasks."""
    write_report(store)
    table = store / "tables" / "comparison.csv"
    head, *rows = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([head, *reversed(rows)]) + "\n", encoding="utf-8")
    assert not verify.verify(store, 0).wrong
    table.write_text("\n".join([head, *rows[1:]]) + "\n", encoding="utf-8")
    assert any("rows, the records give" in line for line in verify.verify(store, 0).wrong)


def test_a_store_whose_model_is_gone_is_checked_without_it(store, capsys):
    for path in store.glob("experiments/*.json"):
        experiment = json.loads(path.read_text(encoding="utf-8"))
        experiment["config"]["model"] |= {"kind": "hf", "path": str(store / "gone")}
        path.write_text(json.dumps(experiment), encoding="utf-8")
    assert verify.main([str(store), "--items", "3"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "all hold; not checked: answers of tiny:" in last and "gone" in last and "given again" not in last


def test_a_published_study_is_checked_without_a_model(store, tmp_path):
    publish(store, tmp_path / "study")
    findings = verify.verify(tmp_path / "study")
    assert not findings.wrong and "the study's tables" in findings.checked
    assert findings.skipped == ["answers: no configuration is kept with these records"]
    older = verify.verify(ROOT / "results" / "smollm_feedback")
    assert not older.wrong and "names of runs recorded with an older schema" in older.line()
