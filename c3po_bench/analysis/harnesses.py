"""Readers of item-wise logs: lm-evaluation-harness, Inspect, lighteval, Every Eval Ever, and our own runs.

Each makes of a file's rows what comparing needs: which item, what it asks and expects, under which prompt,
and its score under each metric.
"""

import logging
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from c3po_bench.analysis.arms import BASE
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
GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # Inspect's
ZSTANDARD = 93  # its compression in zip files, which the standard library does not read before 3.14


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
        return {".eval": _inspect_archive, ".parquet": _lighteval}[path.suffix]
    if path.suffix == ".jsonl":
        first = next(rows_of(path), (0, {}))[1]
        return _every_eval_ever if "evaluation_id" in first else _lm_eval
    if path.suffix != ".json":
        raise UserError(f"{path}: logs end in .jsonl, .json, .eval or .parquet")
    data = object_of(path.read_bytes(), str(path))
    if "evaluation_results" in data:
        return lambda file: _every_eval_ever(_sidecar(file, data))
    if "samples" in data or "eval" in data:
        return lambda file: [_inspect(str(file), data, enumerate(data.get("samples") or (), start=1))]
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


# Inspect


def _inspect_archive(path: Path) -> list[Log]:
    """A `.eval`: a zip file with the header and a file for each sample and epoch."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.startswith("samples/")]
            if "header.json" not in archive.namelist():
                raise UserError(
                    f"{path}: no header.json, so the evaluation was cut short; run inspect eval-retry"
                )
            header = object_of(_member(archive, "header.json"), f"{path}, header.json")
            rows = ((name, object_of(_member(archive, name), f"{path}, {name}")) for name in names)
            return [_inspect(str(path), header, rows)]
    except (zipfile.BadZipFile, pa.ArrowInvalid, OSError, EOFError) as error:
        raise UserError(
            f"{path}: no .eval archive, or a damaged one ({' '.join(str(error).split())})"
        ) from None


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of a zip archive, compressed in any way that Inspect has used."""
    info = archive.getinfo(name)
    if info.compress_type != ZSTANDARD:
        return archive.read(name)
    with open(str(archive.filename), "rb") as file:
        file.seek(info.header_offset + 26)  # the lengths of name and extra field, then both, then the data
        lengths = np.frombuffer(file.read(4), dtype="<u2")
        file.seek(int(lengths.sum()), 1)
        packed = pa.BufferReader(file.read(info.compress_size))
    return pa.CompressedInputStream(packed, "zstd").read()


def _inspect(source: str, data: dict[str, Any], samples: Iterable[tuple[Any, dict[str, Any]]]) -> Log:
    """Samples by id, each the mean of its epochs; a scorer is a metric, C is 1, P a half, I and N 0."""
    if str(data.get("version")) != "2":
        raise UserError(f"{source}: a log of Inspect of version 2 is read, not {data.get('version')!r}")
    if data.get("status") not in (None, "success"):
        raise UserError(f"{source}: the evaluation ended as {data['status']!r}; run inspect eval-retry")
    run = data.get("eval", {})
    facts = {
        "harness version": run.get("packages", {}).get("inspect_ai"),
        "task version": run.get("task_version"),
        "decoding": run.get("model_generate_config", {}),
        "solver": data.get("plan", {}).get("steps"),
        "epochs": run.get("config", {}).get("epochs"),
    }
    log = Log(source, "Inspect", "Inspect", str(run.get("model", "")), str(run.get("task", "")), facts)
    epochs: dict[str, tuple[Row, dict[str, list[float]]]] = {}
    for name, sample in samples:
        where = f"{source}, {name if isinstance(name, str) else f'row {name}'}"
        item = str(field_of(sample, "id", where, "a sample of Inspect's"))
        asked = sample.get("input")
        text = asked if isinstance(asked, str) else " ".join(str(m.get("content")) for m in asked or ())
        choices = sample.get("choices") or []
        answers = sample.get("scores") or {}
        shown = next((str(score.get("answer") or "") for score in answers.values()), "")
        row = Row(
            item=item,
            content=f"{item} {text_hash([text, *choices])}",
            question=text_hash(text),
            gold=gold_hash(sample.get("target"), choices),
            prompt=content_hash([text, choices], 16),
            prediction=shown,
        )
        _, scores = epochs.setdefault(item, (row, {}))
        for scorer, score in answers.items():
            value = score.get("value")
            value = GRADES.get(value, value) if isinstance(value, str) else value
            if isinstance(value, int | float):
                scores.setdefault(scorer, []).append(float(value))
    for row, scores in epochs.values():
        log.add(row, {scorer: float(np.mean(values)) for scorer, values in scores.items()})
    return log


# lighteval


def _lighteval(path: Path) -> list[Log]:
    """Details of lighteval 0.10 and later: columns `doc`, `metric` and `model_response`."""
    try:
        table = pq.read_table(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path}: no parquet file, or a damaged one ({' '.join(str(error).split())[:100]})"
        ) from None
    if lacking := {"doc", "metric", "model_response"} - set(table.column_names):
        raise UserError(f"{path}: no column {min(lacking)!r}; details of lighteval 0.10 and later are read")
    results = next(
        iter(sorted(path.parents[min(2, len(path.parents) - 1)].glob("results*/**/results_*.json"))), None
    )
    config = object_of(results.read_bytes(), str(results)) if results else {}
    log = Log(
        str(path),
        "lighteval",
        "lighteval",
        str(config.get("config_general", {}).get("model_name", path.stem)),
        "",
    )
    for batch in table.to_batches(max_chunksize=1000):
        for number, row in enumerate(batch.to_pylist(), start=len(log.rows) + 1):
            doc, where = row["doc"] or {}, f"{path}, row {number}"
            query = field_of(doc, "query", where, "a row of lighteval's details")
            log.task = log.task or str(doc.get("task_name"))
            log.facts.setdefault("decoding", {"generation_size": doc.get("generation_size")})
            log.facts.setdefault("shots", log.task.partition("|")[2] or None)
            choices, answer = doc.get("choices") or [], (row["model_response"] or {}).get("text") or [""]
            log.add(
                Row(
                    item=str(doc.get("id", number)),
                    content=f"{doc.get('id')} {text_hash([query, *choices])}",
                    question=text_hash(doc.get("original_query") or query),
                    gold=gold_hash(doc.get("gold_index"), choices),
                    prompt=content_hash(
                        [query, choices, doc.get("instruction"), doc.get("fewshot_samples")], 16
                    ),
                    prediction=str(answer[0]),
                ),
                row["metric"] or {},
            )
    return [log]


# Every Eval Ever


def _sidecar(path: Path, data: dict[str, Any]) -> Path:
    """The rows of an aggregate record: beside it, under the same name."""
    name = (data.get("detailed_evaluation_results") or {}).get("file_path") or f"{path.stem}_samples.jsonl"
    rows = path.parent / Path(name).name
    if not rows.exists():
        raise UserError(
            f"{path}: {rows.name}, its rows, is not beside it; aggregates have no items to compare"
        )
    return rows


def _every_eval_ever(path: Path) -> Iterable[Log]:
    """Instance records of schema 0.2 and 0.3, with the aggregate record beside them; a log an evaluation."""
    beside = path.with_name(path.name.replace("_samples.jsonl", ".json"))
    whole = object_of(beside.read_bytes(), str(beside)) if beside != path and beside.exists() else {}
    configs = {
        one.get("evaluation_result_id") or one.get("evaluation_name"): one.get("metric_config", {})
        for one in whole.get("evaluation_results", [])
    }
    library = whole.get("eval_library", {})
    facts = {"harness": library.get("name"), "harness version": library.get("version")}
    logs: dict[str, Log] = {}
    for number, row in rows_of(path):
        where = f"{path}, row {number}"
        version = str(
            field_of(row, "schema_version", where, "an instance record of Every Eval Ever")
        ).removeprefix("instance_level_eval_")
        if not re.match(r"0\.[23]\.", version):
            raise UserError(f"{where}: instance records of schema 0.2 and 0.3 are read, not {version!r}")
        name = str(field_of(row, "evaluation_name", where, "an instance record of Every Eval Ever"))
        config = configs.get(row.get("evaluation_result_id"), configs.get(name, {}))
        asked, score = row.get("input") or {}, row.get("evaluation") or {}
        item = str(field_of(row, "sample_id", where, "an instance record of Every Eval Ever"))
        metric = str(config.get("metric_id") or config.get("metric_name") or "score")
        log = logs.setdefault(
            name, Log(str(path), "Every Eval Ever", "Every Eval Ever", str(row.get("model_id")), name, facts)
        )
        if "lower_is_better" in config:
            log.higher[metric] = not config["lower_is_better"]
        output = (row.get("output") or {}).get("raw") or [""]
        log.add(
            Row(
                item=item,
                content=f"{item} {text_hash(asked.get('raw'))}",
                question=text_hash(asked.get("raw")),
                gold=gold_hash(asked.get("reference") or [], asked.get("choices") or []),
                prompt=content_hash(asked.get("formatted"), 16) if asked.get("formatted") else None,
                prediction=str(output[0] if isinstance(output, list) else output),
            ),
            {metric: score.get("score")},
        )
    return logs.values()


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
