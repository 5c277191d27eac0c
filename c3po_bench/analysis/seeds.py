"""Do runs that differ in nothing but their seed agree, in accuracy and answer by answer?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run

COLUMNS = (
    "arm",
    "task",
    "seeds",
    "items",
    "accuracy",
    "accuracy_sd",
    "lowest",
    "highest",
    "agreement",
    "unanimous",
)


def seed_agreement(runs: Sequence[Run]) -> pd.DataFrame:
    """One row an arm (with its settings) and task that ran under several seeds.

    `accuracy` is the mean over seeds and `accuracy_sd` its standard deviation (n - 1); `agreement` the share
    of items on which two seeds give the same prediction, averaged over pairs of seeds; `unanimous` the share
    on which all do. Only items that every seed answered are counted.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = {k: v for k, v in (run.result.get("settings") or {}).items() if k != "seed"}
        same = [
            run.arm,
            run.result.get("model"),
            run.result.get("scoring"),
            run.result.get("limit"),
            settings,
        ]
        groups.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(run)
    rows = [row for group in groups.values() if len(group) > 1 for row in _group(group)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _group(runs: list[Run]) -> list[dict[str, Any]]:
    answers: list[dict[tuple[str, Any], tuple[Any, float]]] = [
        {(row["task"], row["doc_id"]): (row.get("prediction"), float(row["correct"])) for row in run.samples()} for run in runs
    ]
    shared = set(answers[0]).intersection(*answers[1:])
    rows = []
    for task in sorted({task for task, _ in shared}):
        items = sorted((key for key in shared if key[0] == task), key=lambda key: str(key[1]))
        accuracy = np.array([np.mean([run[key][1] for key in items]) for run in answers])
        pairs = [np.mean([a[key][0] == b[key][0] for key in items]) for a, b in combinations(answers, 2)]
        unanimous = np.mean([len({str(run[key][0]) for run in answers}) == 1 for key in items])
        rows.append(
            {
                "arm": runs[0].arm,
                "task": task,
                "seeds": len(runs),
                "items": len(items),
                "accuracy": float(accuracy.mean()),
                "accuracy_sd": float(accuracy.std(ddof=1)),
                "lowest": float(accuracy.min()),
                "highest": float(accuracy.max()),
                "agreement": float(np.mean(pairs)),
                "unanimous": float(unanimous),
            }
        )
    return rows
