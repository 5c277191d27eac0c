"""Readers of the item-wise logs of Inspect, lighteval and Every Eval Ever.

See `harnesses`, which chooses among them.
"""

import logging
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from c3po_bench.analysis.logs import Log, Row, field_of, gold_hash, object_of, rows_of, text_hash
from c3po_bench.errors import UserError
from c3po_bench.store.identity import content_hash

log = logging.getLogger(__name__)
GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # Inspect's
ZSTANDARD = 93  # its compression in zip files, which the standard library does not read before 3.14


# Inspect


def inspect_archive(path: Path) -> list[Log]:
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
            return [inspect_log(str(path), header, rows)]
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


def inspect_log(source: str, data: dict[str, Any], samples: Iterable[tuple[Any, dict[str, Any]]]) -> Log:
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


def lighteval(path: Path) -> list[Log]:
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


def sidecar(path: Path, data: dict[str, Any]) -> Path:
    """The rows of an aggregate record: beside it, under the same name."""
    name = (data.get("detailed_evaluation_results") or {}).get("file_path") or f"{path.stem}_samples.jsonl"
    rows = path.parent / Path(name).name
    if not rows.exists():
        raise UserError(
            f"{path}: {rows.name}, its rows, is not beside it; aggregates have no items to compare"
        )
    return rows


def every_eval_ever(path: Path) -> Iterable[Log]:
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
