"""Item-wise logs: which file is whose, and the readers of lm-evaluation-harness's and of our own runs.

Each makes of a file's rows what comparing needs: which item, what it asks and expects, under which prompt,
and its score under each metric.
"""

import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from c3po_bench.analysis.arms import BASE
from c3po_bench.analysis.foreign_logs import every_eval_ever, inspect_archive, inspect_log, lighteval, sidecar
from c3po_bench.analysis.logs import Log, Row, field_of, gold_hash, object_of, rows_of, text_hash
from c3po_bench.analysis.scores import score_of
from c3po_bench.errors import UserError, unknown
from c3po_bench.store import reader
from c3po_bench.store.identity import content_hash
from c3po_bench.store.reader import Run

log = logging.getLogger(__name__)

QUESTION_FIELDS = (
    "question",
    "query",
    "problem",
    "input",
    "prompt",
    "ctx",
    "sentence",
    "goal",
    "premise",
    "text",
)


def load_runs(path: str | Path) -> list[Any]:
    """The runs of one of our stores, as `store.reader.Run`; of any other log the `Log` of each task.

    `path` may be a store, a run's folder, a folder of logs or one log. Raises UserError where nothing can be
    read.
    """
    return reader.load_runs(path) if (Path(path) / "runs").is_dir() else read_logs(path)


def read_logs(path: str | Path, arm: str = "") -> list[Log]:
    """The log of each task of a file, a folder, a run or, with `arm` (its name or run id), a store.

    Raises:
        UserError: naming the file, and the row where one is at fault.
    """
    path = Path(path)
    if (path / "runs").is_dir():
        return logs_of_run(_run_of(path, arm))
    if (path / "result.json").exists() and not arm:
        return logs_of_run(Run(path))
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; a run, a store (STORE:ARM) or a log is expected")
    if arm:
        raise UserError(f"{path} is no store of runs: :{arm} names an arm of one")
    files = _files(path)
    if not files:
        raise UserError(
            f"{path} holds no log: lm-eval's samples_*.jsonl, Inspect's .eval or .json, lighteval's details "
            "(.parquet) or records of Every Eval Ever are read"
        )
    logs = [log.finished() for file in files for log in _logs_of(file)]
    if empty := next((log for log in logs if not log.rows), None):
        raise UserError(f"{empty.source} has no rows")
    return logs


def _logs_of(file: Path) -> list[Log]:
    """The logs in a file.

    Raises:
        UserError: for fields of other kinds than its harness writes, which any reader may stumble over.
    """
    try:
        return list(_reader(file)(file))
    except (AttributeError, TypeError, LookupError, ValueError, ArithmeticError, RecursionError) as error:
        log.debug("reading %s failed", file, exc_info=True)
        why = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        raise UserError(f"{file}: a field is of another kind than its harness writes ({why})") from error


def _run_of(store: Path, arm: str) -> Run:
    runs = reader.load_runs(store)
    matches = [run for run in runs if arm in (run.arm, run.run_id)] if arm else runs
    if len(matches) == 1:
        return matches[0]
    names = sorted({run.run_id if arm and matches else run.arm for run in matches or runs})
    if arm and not matches:
        raise unknown(f"arm of {store}", arm, names)
    raise UserError(
        f"{store} has {len(matches)} runs: name one of them, {store}:ARM ({', '.join(names[:9])})"
    )


def _files(path: Path) -> list[Path]:
    """The log files of a folder; of several of one task in one folder the newest by name."""
    if path.is_file():
        return [path]
    newest: dict[tuple[Path, str], Path] = {}
    patterns = ("samples_*.jsonl", "*_samples.jsonl", "*.eval", "details_*.parquet")
    for file in sorted(file for pattern in patterns for file in path.rglob(pattern)):
        task = re.sub(r"_\d{4}-\d\d-\d\dT[\d.-]+$", "", file.stem)
        newest[file.parent if file.suffix != ".parquet" else path, task] = file
    return list(newest.values())


def _reader(path: Path) -> Callable[[Path], Iterable[Log]]:
    """The function that reads a file, by its name and its first row."""
    if path.suffix in (".eval", ".parquet"):
        return {".eval": inspect_archive, ".parquet": lighteval}[path.suffix]
    if path.suffix == ".jsonl":
        first = next(rows_of(path), (0, {}))[1]
        return every_eval_ever if "evaluation_id" in first else _lm_eval
    if path.suffix != ".json":
        raise UserError(f"{path}: logs end in .jsonl, .json, .eval or .parquet")
    data = object_of(path.read_bytes(), str(path))
    if "evaluation_results" in data:
        return lambda file: every_eval_ever(sidecar(file, data))
    if "samples" in data or "eval" in data:
        return lambda file: [inspect_log(str(file), data, enumerate(data.get("samples") or (), start=1))]
    if "results" in data:
        return lambda file: [log for own in _samples_beside(file) for log in _lm_eval(own)]
    raise UserError(
        f"{path} is no log: neither Inspect's, nor lm-eval's results, nor a record of Every Eval Ever"
    )


# lm-evaluation-harness


def _lm_eval(path: Path) -> Iterable[Log]:
    """`samples_TASK_DATE.jsonl`, with the results beside it; a log for each filter."""
    results = _results_beside(path)
    task = re.sub(r"^samples_|_\d{4}-\d\d-\d\dT[\d.-]+$", "", path.stem)
    config = results.get("config", {})
    facts = {
        "harness version": results.get("lm_eval_version"),
        "task version": results.get("versions", {}).get(task),
        "shots": results.get("n-shot", {}).get(task),
        "chat template": results.get("chat_template_sha") or "none",
        "system prompt": results.get("system_instruction_sha") or "none",
        "decoding": config.get("gen_kwargs") or {},
    }
    facts = facts if results else dict.fromkeys(facts)
    higher = results.get("higher_is_better", {}).get(task, {})
    logs: dict[str, Log] = {}
    for number, row in rows_of(path):
        where = f"{path}, row {number}"
        content = field_of(row, "doc_hash", where, "a row of samples as lm-eval 0.4.3 and later write it")
        names = field_of(row, "metrics", where, "a row of samples as lm-eval 0.4.3 and later write it")
        name = row.get("filter", "none")
        if name not in logs:
            model = str(
                config.get("model_args", {}).get("peft") if isinstance(config.get("model_args"), dict) else ""
            )
            model = model if model not in ("", "None") else str(results.get("model_name", path.parent.name))
            named = task if name == "none" else f"{task}, {name}"
            logs[name] = Log(str(path), "lm-eval", "document", model, named, facts, dict(higher))
        given = [list(map(str, own.values())) for own in row.get("arguments", {}).values()]
        doc = row["doc"] if isinstance(row.get("doc"), dict) else {}
        question = next((doc[key] for key in QUESTION_FIELDS if isinstance(doc.get(key), str)), None)
        choices = [own[1] for own in given if len(own) > 1] if row.get("resps") else []
        answer = row.get("filtered_resps") or [""]
        logs[name].add(
            Row(
                item=str(row.get("doc_id", number)),
                content=str(content)[:16],
                question=text_hash(question if question is not None else given[0][0] if given else None),
                gold=gold_hash(row.get("target"), choices),
                prompt=content_hash(given, 16) if given else row.get("prompt_hash"),
                prediction=answer[0] if isinstance(answer[0], str) else "",
            ),
            {metric: row.get(metric) for metric in names},
        )
    return logs.values()


def _results_beside(path: Path) -> dict[str, Any]:
    """lm-eval's results of the same date as a file of samples; empty where there are none."""
    date = re.search(r"_(\d{4}-\d\d-\d\dT[\d.-]+)$", path.stem)
    results = path.parent / f"results_{date[1]}.json" if date else path
    return object_of(results.read_bytes(), str(results)) if date and results.exists() else {}


def _samples_beside(path: Path) -> list[Path]:
    date = path.stem.removeprefix("results_")
    if files := sorted(path.parent.glob(f"samples_*_{date}.jsonl")):
        return files
    raise UserError(f"{path}: no samples_*_{date}.jsonl beside it; run lm-eval with --log_samples")


# our own


def logs_of_run(run: Run) -> list[Log]:
    """The logs of one of our runs: its tasks, under their headline metric (`acc`; of feedback the score)."""
    result = run.result
    facts = {
        "harness version": run.provenance["code_version"],
        "shots": result["scoring"].get("num_fewshot"),
        "scoring rule": result["scoring"].get("rule"),
    }
    logs: dict[str, Log] = {}
    for row in run.samples():
        name = row["task"]
        if name not in logs:
            model = result["model"] if run.arm == BASE else f"{result['model']}, {run.arm}"
            logs[name] = Log(str(run.path), "c3po_bench", "document", model, name, facts)
        choices, gold = row.get("choices") or [], row.get("gold")
        metric = "score" if row.get("scope") else "acc"
        logs[name].higher[metric] = row.get("scope") in (None, "in")
        logs[name].add(
            Row(
                item=str(row["doc_id"]),
                content=str(row["doc_hash"])[:16],
                question=text_hash(row.get("question")),
                gold=None if gold is None else gold_hash(gold, choices),
                prompt=row.get("prompt_hash"),
                cluster=row.get("cluster") or row.get("feedback_id"),
                prediction=str(row.get("prediction", "")),
            ),
            {metric: score_of(row)},
        )
    return [log.finished() for log in logs.values()]
