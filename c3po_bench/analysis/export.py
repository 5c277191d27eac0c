"""A store's records in the formats of other tools: Every Eval Ever, and lm-evaluation-harness."""

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from c3po_bench.analysis.arms import BASE, arm_of
from c3po_bench.analysis.scores import score_of
from c3po_bench.errors import UserError, unknown
from c3po_bench.store.files import write_json, write_jsonl
from c3po_bench.store.reader import Run, load_runs

EEE_SCHEMA = "0.3.0"


def export(results_dir: str | Path, form: str, output: str | Path) -> list[Path]:
    """Write the runs of a store under `output` in the format `form`; returns the written files.

    Raises:
        UserError: for an unknown format, or a store without questions (a published study), which others need.
    """
    if form not in FORMATS:
        raise unknown("format of --to", form, FORMATS)
    return [path for run in load_runs(results_dir) for path in FORMATS[form](run, Path(output))]


def _by_task(run: Run) -> dict[str, list[dict[str, Any]]]:
    """The scored rows of each task."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in run.samples():
        if "question" not in row and "prompt" not in row:
            raise UserError(
                f"{run.path}: its rows hold no questions, as in a published study; export from the store"
            )
        if score_of(row) == score_of(row):
            tasks.setdefault(row["task"], []).append(row)
    return tasks


def _metric(rows: list[dict[str, Any]]) -> tuple[str, bool]:
    """The name of a task's metric, and whether more of it is better."""
    scope = rows[0].get("scope")
    return ("acc", True) if scope is None else (f"feedback_{scope}_scope", scope == "in")


def _model(run: Run) -> str:
    return run.result["model"] if run.arm == BASE else f"{run.result['model']}-{run.arm}"


def _moment(run: Run) -> datetime:
    return datetime.fromisoformat(run.provenance["finished"])


def _options(row: Mapping[str, Any]) -> tuple[list[str], str]:
    """The options of a row, and the expected answer as text."""
    choices, gold = list(map(str, row.get("choices") or [])), row.get("gold")
    return choices, str(choices[gold] if choices and isinstance(gold, int) else "" if gold is None else gold)


def _every_eval_ever(run: Run, output: Path) -> list[Path]:
    """One aggregate record of a run, and beside it a row an item, as schema 0.3.0 has them."""
    name, model, moment = run.run_id, f"c3po_bench/{_model(run)}", _moment(run)
    number = uuid.UUID(
        bytes=hashlib.sha256(name.encode()).digest()[:16], version=4
    )  # the same when exported again
    folder = Path("data") / "c3po_bench" / model
    rows_path, whole_path = folder / f"{number}_samples.jsonl", folder / f"{number}.json"
    evaluation = f"c3po_bench/{model.replace('/', '_')}/{name}"
    results, rows = [], []
    for task, own in _by_task(run).items():
        metric, higher = _metric(own)
        scores = [score_of(row) for row in own]
        results.append(
            {
                "evaluation_result_id": f"{name}/{task}",
                "evaluation_name": task,
                "source_data": {"dataset_name": task, "source_type": "other"},
                "metric_config": {
                    "metric_id": "accuracy" if metric == "acc" else f"c3po_bench.{metric}",
                    "metric_name": metric,
                    "lower_is_better": not higher,
                    "score_type": "continuous",
                    "min_score": -1.0 if metric == "feedback_in_scope" else 0.0,
                    "max_score": 1.0,
                },
                "score_details": {
                    "score": sum(scores) / len(scores),
                    "uncertainty": {"num_samples": len(scores)},
                },
            }
        )
        rows += [
            _instance(row, score, evaluation, model, results[-1])
            for row, score in zip(own, scores, strict=True)
        ]
    write_jsonl(output / rows_path, rows)
    checksum = hashlib.sha256((output / rows_path).read_bytes()).hexdigest()
    details = {key: str(value) for key, value in run.result["settings"].items()} | {"arm": run.arm}
    details |= {"deployment_type": "self_deployed", "model_availability": "unknown"}
    record = {
        "schema_version": EEE_SCHEMA,
        "evaluation_id": evaluation,
        "evaluation_timestamp": str(moment.timestamp()),
        "retrieved_timestamp": str(moment.timestamp()),
        "source_metadata": {
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
        },
        "eval_library": {"name": "c3po_bench", "version": run.provenance["code_version"]},
        "model_info": {
            "name": f"{run.result['model']}, {arm_of(run).title}",
            "id": model,
            "additional_details": details,
        },
        "evaluation_results": results,
        "detailed_evaluation_results": {
            "format": "jsonl",
            "file_path": rows_path.as_posix(),
            "hash_algorithm": "sha256",
            "checksum": checksum,
            "total_rows": len(rows),
        },
    }
    write_json(output / whole_path, record)
    return [output / whole_path, output / rows_path]


def _instance(
    row: dict[str, Any], score: float, evaluation: str, model: str, result: dict[str, Any]
) -> dict[str, Any]:
    choices, gold = _options(row)
    asked = {"raw": str(row.get("question") or row.get("prompt")), "reference": [gold] if gold else []}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    answer = str(choices[row["prediction"]] if choices else row.get("response", row["prediction"]))
    return {
        "schema_version": EEE_SCHEMA,
        "evaluation_id": evaluation,
        "model_id": model,
        "evaluation_name": result["evaluation_name"],
        "evaluation_result_id": result["evaluation_result_id"],
        "sample_id": f"{row['task']}/{row['doc_id']}",
        "sample_hash": digest,
        "interaction_type": "single_turn",
        "input": asked | ({"choices": choices} if choices else {}),
        "output": {"raw": [answer]},
        "answer_attribution": [],
        "evaluation": {"score": score, "is_correct": score == 1},
        "metadata": {"doc_hash": row["doc_hash"], "prompt_hash": row["prompt_hash"]},
    }


def _lm_eval(run: Run, output: Path) -> list[Path]:
    """A folder of a run, with lm-eval's results and a file of samples a task."""
    date = re.sub(r"[:+]", "-", _moment(run).isoformat())
    folder, tasks = output / run.run_id, _by_task(run)
    results: dict[str, Any] = {
        "results": {},
        "versions": {},
        "n-shot": {},
        "higher_is_better": {},
        "n-samples": {},
    }
    written = []
    for task, own in tasks.items():
        metric, higher = _metric(own)
        scores = [score_of(row) for row in own]
        rows = [_sample(row, metric, score) for row, score in zip(own, scores, strict=True)]
        written.append(folder / f"samples_{task}_{date}.jsonl")
        write_jsonl(written[-1], rows)
        results["results"][task] = {"alias": task, f"{metric},none": sum(scores) / len(scores)}
        results["n-shot"][task] = run.result["scoring"].get("num_fewshot", 0)
        results["higher_is_better"][task] = {metric: higher}
        results["n-samples"][task] = {"original": len(rows), "effective": len(rows)}
    config = {
        "model": "c3po_bench",
        "model_args": {"arm": run.arm, **run.result["settings"]},
        "gen_kwargs": {},
    }
    results |= {
        "config": config,
        "date": _moment(run).timestamp(),
        "model_name": _model(run),
        "model_source": "c3po_bench",
    }
    results["lm_eval_version"] = run.provenance["libraries"].get("lm_eval", "")
    write_json(folder / f"results_{date}.json", results)
    return [folder / f"results_{date}.json", *written]


def _sample(row: dict[str, Any], metric: str, score: float) -> dict[str, Any]:
    choices, gold = _options(row)
    question = str(row.get("question") or row.get("prompt"))
    likelihoods = row.get("loglikelihoods")
    given = [{"arg_0": question, "arg_1": f" {choice}"} for choice in choices] or [{"arg_0": question}]
    answers = [[str(value), ""] for value in likelihoods] if likelihoods else [str(row["prediction"])]
    return {
        "doc_id": row["doc_id"],
        "doc": {"question": question, "choices": choices, "gold": row.get("gold")},
        "target": str(row["gold"]) if choices else gold,
        "arguments": {f"gen_args_{place}": own for place, own in enumerate(given)},
        "resps": [[answer] for answer in answers],
        "filtered_resps": answers,
        "filter": "none",
        "metrics": [metric],
        "doc_hash": row["doc_hash"],
        "prompt_hash": row["prompt_hash"],
        "target_hash": hashlib.sha256(gold.encode()).hexdigest(),
        metric: score,
    }


FORMATS: dict[str, Callable[[Run, Path], list[Path]]] = {
    "every-eval-ever": _every_eval_ever,
    "lm-eval": _lm_eval,
}
