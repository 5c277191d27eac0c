"""Logs of any harness, item by item: real ones against counts by hand, what is refused, what is doubtful, bad files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import c3po_bench
from c3po_bench import compare
from c3po_bench.analysis import statistics
from c3po_bench.analysis.harnesses import load_runs, read_logs
from c3po_bench.analysis.logs import normalized
from c3po_bench.analysis.matching import compare_runs
from c3po_bench.errors import UserError
from tests import store_factory as factory

LOGS = Path(__file__).parent / "logs"  # as the harnesses wrote them, but for paths of the machine
BASE, LORA = LOGS / "lm_eval" / "base", LOGS / "lm_eval" / "lora"


def lm_rows(folder: Path, task: str) -> list[dict]:
    (path,) = folder.glob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_two_runs_of_lm_eval_are_compared_task_by_task(metric):
    found = {row["task"]: row for row in compare_runs(LORA, BASE, metric=metric)}
    assert sorted(found) == ["facts_antonyms", "facts_capitals"]
    for task, row in found.items():
        ours, theirs = ([r[metric] for r in lm_rows(folder, task)] for folder in (LORA, BASE))
        up = sum(a > b for a, b in zip(ours, theirs, strict=True))
        down = sum(a < b for a, b in zip(ours, theirs, strict=True))
        assert (row["n"], row["n_a"], row["n_b"], row["fixed"], row["broken"]) == (40, 40, 40, up, down)
        assert row["difference"] == pytest.approx(np.mean(ours) - np.mean(theirs))
        assert row["interval"] == pytest.approx(statistics.tango(up, down, 40)[1:])
        assert row["p_value"] == float(statistics.mid_p(up, down))
        assert row["comparable"] == "yes" and "cannot be told from" in row["verdict"]


def test_the_order_of_rows_does_not_matter(tmp_path):
    shutil.copytree(BASE, tmp_path / "base")
    for path in (tmp_path / "base").glob("samples_*"):
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    ours = [row | {"flips": None} for row in compare_runs(LORA, BASE)]
    assert ours == [row | {"flips": None} for row in compare_runs(LORA, tmp_path / "base")]


def test_logs_of_inspect_as_archive_and_as_json():
    """By hand: base misses the second to the ninth, the other the eighth to the tenth."""
    for path in ("tuned.eval", "tuned.json"):
        (row,) = compare_runs(LOGS / "inspect" / path, LOGS / "inspect" / "base.eval")
        assert (row["n"], row["mean_a"], row["mean_b"]) == (20, 0.85, 0.6)
        assert row["flips"] == {"fixed": ["2", "3", "4", "5", "6", "7"], "broken": ["10"]}
        assert row["comparable"] == "yes" and row["metric"] == "choice"


def test_details_of_lighteval():
    (row,) = compare_runs(LOGS / "lighteval" / "seed_1.parquet", LOGS / "lighteval" / "seed_2.parquet")
    assert (row["mean_a"], row["mean_b"], row["fixed"], row["broken"]) == (pytest.approx(0.15), 0.1, 2, 1)


def test_two_harnesses_meet_in_what_is_asked():
    (row,) = compare_runs(LOGS / "lighteval" / "seed_1.parquet", LOGS / "inspect" / "base.eval")
    assert (row["n"], row["comparable"]) == (20, "with warnings")
    assert any("harnesses differ" in why for why in row["reasons"])
    assert row["verdict"].startswith("seed_1 loses to mockllm/base by 45.0 points")


def test_text_is_compared_without_its_frame():
    assert normalized("Question: Which is a metal?\nAnswer:") == normalized(" which is a METAL")


def changed(tmp_path: Path, edit, results=None) -> Path:
    """Base's log with `edit(row)` applied to each row, and `results(data)` to its results."""
    folder = tmp_path / "changed"
    shutil.copytree(BASE, folder)
    for path in folder.glob("samples_*"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            edit(row)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path,) = folder.glob("results_*")
    data = json.loads(path.read_text())
    if results:
        results(data)
    path.write_text(json.dumps(data))
    return folder


def test_other_prompts_are_compared_with_warnings(tmp_path):
    def shots(row):
        row["arguments"]["gen_args_0"]["arg_0"] = (
            "Q: 1 + 1?\nA: 2\n\n" + row["arguments"]["gen_args_0"]["arg_0"]
        )

    other = changed(tmp_path, shots, lambda data: data["n-shot"].update(facts_capitals=1))
    rows = {row["task"]: row for row in compare_runs(LORA, other)}
    assert "prompts differ on 40 of 40 items" in rows["facts_capitals"]["reasons"]
    assert "shots differs (0 against 1)" in rows["facts_capitals"]["reasons"]
    assert rows["facts_capitals"]["comparable"] == "with warnings" and rows["facts_capitals"]["n"] == 40


def other_gold(row):
    row["target"] = str((int(row["target"]) + 1) % 4) if row["doc_id"] == 7 else row["target"]


def other_documents(row):
    if row["doc_id"] < 3:
        row["doc_hash"], row["doc"]["question"] = (
            "0" * 64 + str(row["doc_id"]),
            f"Another one, {row['doc_id']}",
        )


def other_metric(row):
    row["metrics"] = ["f1"]
    row["f1"] = row.pop("acc")


REFUSED = {
    "the expected answer differs on 1 of 40 items, first facts_antonyms/7": (other_gold, None),
    "37 items are shared of 40 and 40, under 95%": (other_documents, None),
    "metrics differ (acc, acc_norm against f1)": (other_metric, None),
    "acc: more is better in one, worse in the other": (
        lambda row: None,
        lambda data: data["higher_is_better"].update(facts_antonyms={"acc": False}),
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_the_same_is_refused(reason, tmp_path, capsys):
    other = changed(tmp_path, *REFUSED[reason])
    row = compare_runs(LORA, other, task="facts_antonyms")[0]
    assert (row["comparable"], row["reasons"], row["difference"]) == ("refused", [reason], None)
    assert compare.main([str(LORA), str(other), "--task", "facts_antonyms", "--json"]) == 2
    out, err = capsys.readouterr()
    assert reason in err and err.count("\n") == 1
    assert json.loads(out.splitlines()[-1])["verdict"] == f"refused: {reason}"


def test_a_document_whose_other_fields_differ_is_joined_by_its_question(tmp_path):
    other = changed(tmp_path, lambda row: row.update(doc_hash=f"{row['doc_id']:064x}"))
    rows = compare_runs(LORA, other)
    assert all(row["n"] == 40 and row["comparable"] == "with warnings" for row in rows)


def test_the_same_document_under_two_filters_is_two_comparisons(tmp_path):
    folder = changed(tmp_path, lambda row: None)
    for path in folder.glob("samples_*"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows += [row | {"filter": "strict", "acc": 1.0} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    means = {log.task: float(log.scores["acc"].mean()) for log in read_logs(folder)}
    assert means["facts_capitals"] == 0.575 and means["facts_capitals, strict"] == 1.0
    assert [row["task"] for row in compare_runs(folder, BASE)] == ["facts_antonyms", "facts_capitals"]


def test_our_own_runs_and_a_store_with_an_arm(tmp_path):
    base = np.array([0] * 30 + [1] * 30)
    arm = base.copy()
    arm[:8] = 1
    runs = factory.store(tmp_path, base=base, ngd=arm)
    (row,) = compare_runs(f"{tmp_path}:ngd", f"{tmp_path}:base")
    assert (row["fixed"], row["broken"], row["metric"], row["a"]) == (8, 0, "acc", "smolmoe, ngd")
    assert row["verdict"].startswith("smolmoe, ngd beats smolmoe by 13.3 points")
    assert compare_runs(runs[1], runs[0]) == [row] == compare_runs(runs[1].path, str(runs[0].path))
    with pytest.raises(UserError, match="has 2 runs: name one of them"):
        compare_runs(tmp_path, f"{tmp_path}:base")
    with pytest.raises(UserError, match="did you mean 'ngd'"):
        compare_runs(f"{tmp_path}:ng", f"{tmp_path}:base")


def test_our_run_meets_lm_evals_in_the_hash_of_the_document(tmp_path):
    theirs = lm_rows(BASE, "facts_capitals")
    rows = factory.sample_rows("base", "facts_capitals", np.zeros(40, dtype=int), details=False)
    for row, other in zip(rows, theirs, strict=True):
        row.update(
            doc_hash=other["doc_hash"][:16], choices=other["doc"]["choices"], gold=other["doc"]["answer"]
        )
    run = factory.write_run(tmp_path, "base", rows)
    (row,) = compare_runs(BASE, run)
    assert row["n"] == 40 and row["difference"] == pytest.approx(0.575)


def test_items_that_share_a_passage_are_clusters(tmp_path):
    base = factory.scores_of("base", 80, 0.4)
    runs = factory.store(tmp_path, base=base, ngd=factory.scores_of("ngd", 80, 0.6, base=base))
    for run in runs:
        factory.edit(run, lambda row: row.update(cluster=f"passage {row['doc_id'] // 4}"))
    (row,) = compare_runs(runs[1], runs[0])
    assert (row["over"], row["test"]) == ("clusters", "sign-flip")


def test_a_score_of_which_less_is_better(tmp_path):
    rows = factory.feedback_rows("c3po", "out", 30)
    for row in rows:
        row["score"] = row["correct"] = 0.0
    ours = factory.write_run(tmp_path, "c3po", rows, backend="feedback")
    for row in rows:
        row["score"] = row["correct"] = 1.0
    theirs = factory.write_run(tmp_path, "dpo", rows, backend="feedback")
    (row,) = compare_runs(ours, theirs)
    assert (row["difference"], row["fixed"], row["broken"]) == (-1.0, 30, 0)
    assert row["verdict"].startswith("smolmoe, c3po beats smolmoe, dpo by 100.0 points")


def test_from_the_package_without_loading_it_early():
    code = (
        "import sys, c3po_bench; assert not {'pandas', 'scipy', 'torch'} & set(sys.modules);"
        "from c3po_bench import compare_runs, load_runs; assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert c3po_bench.load_runs is load_runs
    assert {log.task for log in load_runs(BASE)} == {"facts_antonyms", "facts_capitals"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = c3po_bench.nothing


def test_the_table_the_page_and_the_last_line(tmp_path, capsys):
    page = tmp_path / "folder" / "page.html"
    assert compare.main([str(LORA), str(BASE), "--html", str(page), "--json"]) == 0
    out = capsys.readouterr().out
    last = json.loads(out.splitlines()[-1])
    assert {
        "task",
        "metric",
        "n",
        "n_a",
        "n_b",
        "difference",
        "interval",
        "p_value",
        "fixed",
        "broken",
        "verdict",
    } <= set(last[0])
    assert "40 of 40, 40" in out and "cannot be told from" in page.read_text(encoding="utf-8")
    assert compare.main([str(LORA), str(BASE), "--task", "facts_capitals", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["task"] == "facts_capitals"


def test_text_of_a_log_is_no_markup(tmp_path, capsys):
    rows = factory.sample_rows("base", "[red]<script>", np.array([0, 1] * 5), details=False)
    run, page = factory.write_run(tmp_path, "base", rows), tmp_path / "page.html"
    assert compare.main([str(run.path), str(run.path), "--html", str(page)]) == 0
    assert "[red]<script>" in capsys.readouterr().out and "<script>" not in page.read_text(encoding="utf-8")


def written(tmp_path: Path, name: str, data: bytes) -> Path:
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


ROW = json.dumps({"doc_id": 0, "doc_hash": "a", "metrics": ["acc"], "acc": 1.0}).encode()
EEE = {
    "schema_version": "instance_level_eval_0.9.0",
    "evaluation_id": "x",
    "evaluation_name": "t",
    "sample_id": "1",
}
BAD = {
    "truncated.jsonl": (ROW + b"\n" + ROW[:20], r"truncated\.jsonl, row 2: no JSON"),
    "empty.jsonl": (b"", r"empty\.jsonl is empty"),
    "text.jsonl": (b"not JSON\n", r"text\.jsonl, row 1: no JSON"),
    "list.jsonl": (b"[1]\n", r"list\.jsonl, row 1: an object is expected, not list"),
    "old.jsonl": (b'{"doc_id": 0, "acc": 1.0}\n', r"old\.jsonl, row 1: no 'doc_hash'"),
    "later.jsonl": (
        json.dumps(EEE).encode(),
        r"later\.jsonl, row 1: .* schema 0\.2 and 0\.3 are read, not '0\.9\.0'",
    ),
    "version.json": (
        b'{"version": 7, "eval": {}, "samples": []}',
        r"version\.json: .* of version 2 is read, not 7",
    ),
    "broken.json": (
        b'{"version": 2, "status": "error", "eval": {}, "samples": []}',
        r"broken\.json: .* ended as 'error'",
    ),
    "none.json": (b'{"version": 2, "eval": {}, "samples": []}', r"none\.json has no rows"),
    "sample.json": (b'{"version": 2, "eval": {}, "samples": [{}]}', r"sample\.json, row 1: no 'id'"),
    "foreign.json": (b'{"a": 1}', r"foreign\.json is no log"),
    "cut.eval": (b"PK\x03\x04 cut", r"cut\.eval: no \.eval archive, or a damaged one"),
    "cut.parquet": (b"PAR1 cut", r"cut\.parquet: no parquet file, or a damaged one"),
    "notes.txt": (b"", r"notes\.txt: logs end in"),
    "results_2026.json": (b'{"results": {}}', r"results_2026\.json: no samples_\*_2026\.jsonl beside it"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_log_ends_in_one_line_that_names_file_and_row(name, tmp_path, capsys):
    data, message = BAD[name]
    path = written(tmp_path, name, data)
    with pytest.raises(UserError, match=message):
        read_logs(path)
    assert compare.main([str(path), str(BASE)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_truncated_archive_is_refused(tmp_path):
    whole = (LOGS / "inspect" / "base.eval").read_bytes()
    with pytest.raises(UserError, match="damaged"):
        read_logs(written(tmp_path, "cut.eval", whole[: len(whole) // 2]))
    whole = (LOGS / "lighteval" / "seed_1.parquet").read_bytes()
    with pytest.raises(UserError, match="damaged"):
        read_logs(written(tmp_path, "cut.parquet", whole[: len(whole) // 2]))


@pytest.mark.parametrize("missing", ["nowhere", "nowhere:arm"])
def test_what_is_not_there(missing, tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        compare_runs(str(tmp_path / missing), BASE)
    with pytest.raises(UserError, match="holds no log"):
        read_logs(tmp_path)
    with pytest.raises(UserError, match="is no store of runs"):
        compare_runs(f"{BASE}:ngd", BASE)
    with pytest.raises(UserError, match="unknown metric"):
        compare_runs(LORA, BASE, metric="accc")
    with pytest.raises(UserError, match="unknown task"):
        compare_runs(LORA, BASE, task="facts_capital")


@pytest.mark.slow
def test_a_log_of_100000_rows_takes_under_10_seconds_and_1_gib(tmp_path):
    row = lm_rows(BASE, "facts_capitals")[0]
    for name in ("a", "b"):
        with open(tmp_path / f"samples_{name}.jsonl", "w", encoding="utf-8") as file:
            for i in range(100_000):
                own = {"doc_id": i, "doc_hash": f"{i:064x}", "acc": float(i % (3 if name == "a" else 4) == 0)}
                file.write(json.dumps(row | own) + "\n")
    code = (
        "from c3po_bench.analysis.matching import compare_runs;"
        f"print(compare_runs({str(tmp_path / 'samples_a.jsonl')!r}, {str(tmp_path / 'samples_b.jsonl')!r})[0]['n'],"
        # not ru_maxrss, which begins with that of the process that started this one
        "*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, (n, kib) = time.perf_counter() - start, map(int, done.stdout.split())
    assert n == 100_000 and seconds < 2 * 10 and kib < 2**20
