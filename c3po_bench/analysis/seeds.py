"""Do runs that differ in nothing but their seed agree, in accuracy and answer by answer?"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from c3po_bench.analysis.pairing import identity, run_labels
from c3po_bench.analysis.scores import load_scores, score_of
from c3po_bench.errors import UserError

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run

log = logging.getLogger("c3po_bench")
DRAWN = (
    "seed",
    "reference_items",
    "train_data",
    "revisions",
)  # parts of a run's identity that its seed may decide
COLUMNS = (
    "arm",
    "label",  # the arm, with the settings that tell its rows apart
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
    on which all do. Only items that every seed answered are counted. Runs are repetitions where all that
    makes their identity is equal but the seed and what it draws; where one of their seeds ran twice,
    something else differs, and they are left out; so is, with a warning, a run whose rows `compare` refuses.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_repeated(run), []).append(run)
    labels = run_labels([group[0] for group in groups.values()], without=("seed",))
    rows: list[dict[str, Any]] = []
    for group in groups.values():
        seeds = {run.result.get("seed") for run in group}
        if len(seeds) < 2:
            continue
        if len(seeds) < len(group):
            log.warning(
                "%s: several runs of one seed, whose data differ; left out where seeds are compared",
                group[0].arm,
            )
            continue
        rows += _group(group, labels[group[0].run_id])
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _repeated(run: Run) -> str:
    """What a repetition under another seed has in common with `run`."""
    drawn = DRAWN
    if "seed" in ((run.provenance.get("identity") or {}).get("scoring") or {}):
        drawn += ("requests",)  # examples or options are drawn, too
    settings = {name: value for name, value in (run.result.get("settings") or {}).items() if name != "seed"}
    return json.dumps([identity(run, *drawn), settings], sort_keys=True, default=str)


def _answers(run: Run) -> dict[tuple[str, Any], tuple[Any, float]]:
    """Prediction and score by item that has one.

    Nothing of a run whose rows lack a score or are there twice.
    """
    try:
        load_scores(run)
    except UserError as reason:
        log.warning("left out where seeds are compared: %s", reason)
        return {}
    scored = ((row, score_of(row)) for row in run.samples())
    return {
        (row["task"], row["doc_id"]): (row.get("prediction"), score)
        for row, score in scored
        if score == score
    }


def _group(runs: list[Run], label: str) -> list[dict[str, Any]]:
    answers = [found for run in runs if (found := _answers(run))]
    if len(answers) < 2:
        return []
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
                "label": label,
                "task": task,
                "seeds": len(answers),
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
