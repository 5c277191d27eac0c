"""Writes synthetic stores in the documented layout: any number of runs and items, without a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from c3po_bench.store.reader import Run
from c3po_bench.store.schema import SCHEMA_VERSION
from c3po_bench.store.versions import arm_version

HOSTILE = "<script>window.pwned=true</script><img src=x onerror='window.pwned=true'>"
CHOICES = ["copper", "granite", "oxygen", "wood"]
TITLES = {"ngd": "NGD", "knn_vote": "kNN vote", "icl": "ICL", "sft": "SFT", "dpo": "DPO", "c3po": "C3PO"}
CONTROLS = {  # the strictest first: what they change, and what a gain that they share is not due to
    "ngd_random_neighbors": ("random neighbors", "retrieval"),
    "ngd_shuffled_labels": ("shuffled labels", "the neighbors' labels"),
    "ngd_permuted_experts": ("permuted experts", "which experts get the weight"),
    "random_pathway": ("a random pathway", "where the pathway moves"),
}
ROLES = {"base": "base", "icl": "baseline", "oracle": "ceiling"} | dict.fromkeys(CONTROLS, "control")


def arm_row(arm: str) -> dict[str, Any]:
    """What a run copies of its arm's row in its backend's table."""
    row = {"name": arm, "title": TITLES.get(arm, arm.replace("_", " ")), "role": ROLES.get(arm, "method")}
    if arm in CONTROLS:
        change, not_due_to = CONTROLS[arm]
        row |= {"control_of": "ngd", "change": change, "not_due_to": not_due_to}
        row["place"] = list(CONTROLS).index(arm)
        if arm.startswith("ngd_"):
            row["title"] = f"NGD with {change}"
    return row | ({"losses_over": "shares"} if arm == "kernel_regression" else {})


def facts(arm: str) -> dict[str, str]:
    """The columns about an arm that every row of a table carries."""
    return {"arm": arm, "title": arm_row(arm)["title"], "role": arm_row(arm)["role"]}


def digest(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]


def scores_of(
    arm: str, items: int, accuracy: float, seed: int = 0, base: np.ndarray | None = None
) -> np.ndarray:
    """0/1 scores ``[items]``; with `base`, most items answer as the base does (as real arms do)."""
    rng = np.random.default_rng([seed, int(digest(arm), 16) % 2**32])
    own = (rng.random(items) < accuracy).astype(int)
    if base is None:
        return own
    return np.where(rng.random(items) < 0.85, base, own)


def rewiring_details(
    rng: np.random.Generator, layers: int, experts: int, steps: int, hostile: str
) -> dict[str, Any]:
    before = rng.dirichlet(np.ones(experts), size=layers).round(4)
    after = rng.dirichlet(np.ones(experts), size=layers).round(4)
    return {
        "neighbors": [
            {
                "id": f"openbookqa/{i}",
                "similarity": round(0.9 - 0.1 * i, 4),
                "question": f"Which metal is a good conductor of heat? ({i}) {hostile}",
                "answer": CHOICES[i % 4],
            }
            for i in range(3)
        ],
        "losses": np.sort(rng.random(steps))[::-1].round(4).tolist(),
        "pathway_change": round(float(np.abs(before - after).sum()), 4),
        "pathway_before": before.tolist(),
        "pathway_after": after.tolist(),
        "pathway_layers": list(range(25, 25 + layers)),
    }


def sample_rows(
    arm: str,
    task: str,
    correct: np.ndarray,
    *,
    details: bool,
    hostile: str = "",
    seed: int = 0,
    clusters: int = 0,
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for i, right in enumerate(correct):
        gold, mark = i % 4, hostile if i % 3 == 0 else ""
        row: dict[str, Any] = {
            "arm": arm,
            "task": task,
            "doc_id": i,
            "doc_hash": digest(task, i),
            "prompt_hash": digest("prompt", task, i),
            "question": f"Question {i} of {task}: which of these conducts electricity best? {mark}",
            "choices": [f"{c} {i} {mark}" for c in CHOICES],
            "gold": gold,
            "prediction": gold if right else (gold + 1) % 4,
            "correct": int(right),
            "loglikelihoods": rng.normal(-8, 2, 4).round(3).tolist(),
        }
        if clusters:
            row["cluster"] = f"passage-{i % clusters}"
        if details and arm == "base":
            row["rendered"] = [f"{row['question'].replace('Question', 'Question:', 1)}\nAnswer:"]
        if details and arm != "base":
            row |= rewiring_details(rng, 5, 16, 10, mark)
        rows.append(row)
    return rows


def feedback_rows(
    arm: str, scope: str, items: int, *, hostile: str = "", seed: int = 0
) -> list[dict[str, Any]]:
    rng = np.random.default_rng([seed, len(scope), int(digest(arm), 16) % 2**32])
    rows = []
    for i in range(items):
        right = int(rng.random() < (0.7 if scope == "in" and arm != "base" else 0.2))
        rows.append(
            {
                "arm": arm,
                "task": f"feedback_{scope}",
                "doc_id": i,
                "doc_hash": digest(scope, i),
                "prompt_hash": digest("prompt", scope, i),
                "question": f"Prompt {i} ({scope}) {hostile}",
                "choices": None,
                "gold": None,
                "prediction": "Dear all, thanks.",
                "correct": right,
                "loglikelihoods": None,
                "scope": scope,
                "feedback_id": f"emoji-{i % 5}",
                "prompt": f"Write a note about item {i}. {hostile}",
                "rendered": [f"<|im_start|>user\nWrite a note about item {i}. {hostile}<|im_end|>\n"],
                "response": f"Dear all, thanks for {i}! {hostile}",
                "baseline_response": f"Hello. This is note {i}.",
                "score": right,
                "drift": round(float(rng.random()), 4),
                "degeneration": {"repetition": 0.0, "length_ratio": 1.1},
            }
        )
    return rows


def write_run(
    root: Path,
    arm: str,
    rows: list[dict[str, Any]],
    *,
    settings: dict[str, Any] | None = None,
    backend: str = "rewiring",
    key: str = "key",
    seed: int = 0,
    seconds: float = 12.0,
    curves: dict[str, list[float]] | None = None,
    groups: dict[str, list[str]] | None = None,
    identity: dict[str, Any] | None = None,
    data_hashes: dict[str, str] | None = None,
    **changes: Any,
) -> Run:
    """Write one finished run folder and return it.

    `identity` is what its provenance says can change its numbers beside arm and seed, by default its settings;
    `changes` are of its result.
    """
    settings = settings or {}
    run_id = f"{arm}-{digest(arm, sorted(settings.items()), key, seed)[:12]}"
    folder = root / "runs" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    by_task: dict[str, list[float]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row["correct"])
    result = {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "arm": arm,
        "arm_row": arm_row(arm),
        "backend": backend,
        "model": "smolmoe",
        "tasks": sorted(by_task),
        "groups": groups or {t: [t] for t in by_task},
        "comparison_key": key,
        "limit": None,
        "seed": seed,
        "scoring": {"rule": "cloze", "num_fewshot": 0},
        "versions": {"arm": arm_version(arm), "cloze": 1, "acc": 1},
        "metrics": {t: {"acc": float(np.mean(v)), "n": len(v)} for t, v in by_task.items()},
        "settings": settings,
        "cost": {
            "phases": {
                "score": {"seconds": seconds * 0.25, "flops": 1e12},
                "optimize": {"seconds": seconds * 0.75, "flops": 3e12 if arm != "base" else None},
            },
            "peak_memory_bytes": 700 << 20,
            "seconds": seconds,
            "items": len(rows),
        },
        "counts": {"references": 200, "dropped_duplicates": 3},
        "curves": curves
        if curves is not None
        else {"surrogate_loss": np.linspace(1, 0.4, 11).round(3).tolist()},
        "notes": [],
    } | changes
    provenance = {
        "code_version": "0.1.0",
        "git_commit": "0" * 40,
        "libraries": {"torch": "2.13.0"},
        "model_hash": "abc",
        "data_hashes": data_hashes or {t: digest("data", t) for t in by_task},
        "identity": {"arm": arm, "seed": seed, **({"settings": settings} if identity is None else identity)},
        "seeds": {"seed": seed},
        "hardware": {"cpu": "test"},
        "command": "python -m c3po_bench +experiment=quickstart",
        "started": "2026-11-24T12:00:00",
        "finished": "2026-11-24T12:03:00",
    }
    config = {"name": "quickstart", "arms": ["base", arm], "seed": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "provenance.json").write_text(json.dumps(provenance))
    (folder / "log.txt").write_text("done\n")
    (folder / "result.json").write_text(json.dumps(result))
    return Run(folder)


def edit(run: Run, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite a run's sample rows through `change(row)`."""
    rows = run.samples()
    for row in rows:
        change(row)
    (run.path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def keep(run: Run, items: int) -> None:
    """Leave of a run's sample rows only so many."""
    lines = (run.path / "samples.jsonl").read_text().splitlines()
    (run.path / "samples.jsonl").write_text("\n".join(lines[:items]) + "\n")


def store(root: Path, task: str = "arc", **scores: Sequence[float]) -> list[Run]:
    """A run an arm, on one task, with these scores of its items."""
    return [
        write_run(root, arm, sample_rows(arm, task, np.array(own), details=False))
        for arm, own in scores.items()
    ]


def write_experiment(root: Path, name: str, runs: list[Run]) -> None:
    folder = root / "experiments"
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "config": {"name": name},
        "command": f"python -m c3po_bench +experiment={name}",
        "runs": [r.run_id for r in runs],
        "created": "2026-11-24T12:03:00",
    }
    (folder / f"{name}-{digest(name, *record['runs'])[:12]}.json").write_text(json.dumps(record))


ARMS = {
    "base": 0.45,
    "mode_finding": 0.46,
    "kernel_regression": 0.48,
    "ngd": 0.62,
    "ngd_random_neighbors": 0.45,
    "oracle": 0.9,
}


def rewiring_store(
    root: Path,
    *,
    items: int = 60,
    tasks: tuple[str, ...] = ("arc_easy", "facts"),
    hostile: str = "",
    details: bool = True,
) -> list[Run]:
    """An experiment of six arms on `tasks`, with neighbors, losses and pathways in the rows."""
    runs, base = [], {t: scores_of("base" + t, items, ARMS["base"]) for t in tasks}
    for i, (arm, accuracy) in enumerate(ARMS.items()):
        rows = []
        for t in tasks:
            correct = base[t] if arm == "base" else scores_of(arm + t, items, accuracy, base=base[t])
            rows += sample_rows(arm, t, correct, details=details, hostile=hostile, seed=i)
        settings = (
            {}
            if arm in ("base",)
            else {"layers": 5, "experts": 20, "k": 3, "kernel": "gaussian", "steps": 10}
        )
        runs.append(write_run(root, arm, rows, settings=settings, seconds=10.0 + 20 * i))
    write_experiment(root, "quickstart", runs)
    return runs


def feedback_store(root: Path, *, items: int = 40, hostile: str = "") -> list[Run]:
    """An experiment of four arms on the in / near / out of scope tasks."""
    runs = []
    for i, arm in enumerate(["base", "icl", "dpo", "c3po"]):
        rows = [
            row
            for s in ("in", "near", "out")
            for row in feedback_rows(arm, s, items, hostile=hostile, seed=i)
        ]
        settings = {"prompt_differs": True} if arm == "icl" else {}
        runs.append(write_run(root, arm, rows, settings=settings, backend="feedback", seconds=30.0 + i))
    write_experiment(root, "feedback", runs)
    return runs


def sweep_store(root: Path, *, cells: int, items: int, skip: int = 0) -> int:
    """A sweep of `cells` runs over layers x experts x k x steps (every `skip`-th left out); light rows."""
    base = scores_of("base", items, 0.45)
    hashes = [(digest("arc", i), digest("prompt", i)) for i in range(items)]
    runs = [_light_run(root, "base", base, hashes, {})]
    for cell in range(cells):
        settings = {
            "layers": (1, 3, 5, 7, 9)[cell % 5],
            "experts": (4, 8, 12, 16)[cell // 5 % 4],
            "k": (1, 3, 5, 7, 10)[cell // 20 % 5],
            "steps": cell // 100,
            "kernel": "gaussian",
        }
        if skip and cell % skip == 0:
            continue
        runs.append(_light_run(root, "ngd", scores_of(f"ngd{cell}", items, 0.6, base=base), hashes, settings))
    write_experiment(root, "sweep", runs)
    return len(runs)


def _light_run(
    root: Path, arm: str, correct: np.ndarray, hashes: list[tuple[str, str]], settings: dict[str, Any]
) -> Run:
    rows = [
        {
            "arm": arm,
            "task": "arc_easy",
            "doc_id": i,
            "doc_hash": doc,
            "prompt_hash": prompt,
            "question": f"Question {i}: which of these conducts electricity best at room temperature?",
            "choices": CHOICES,
            "gold": i % 4,
            "prediction": i % 4 if right else (i + 1) % 4,
            "correct": int(right),
            "loglikelihoods": [-1.25, -2.5, -3.75, -5.0],
        }
        for i, (right, (doc, prompt)) in enumerate(zip(correct.tolist(), hashes, strict=True))
    ]
    return write_run(root, arm, rows, settings=settings, curves={})
