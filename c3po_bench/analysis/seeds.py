"""Runs that differ in nothing but their seed: how far they agree, and what is shown over seeds."""

import json
import logging
from collections.abc import Sequence
from itertools import combinations
from math import nan, sqrt
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from c3po_bench.analysis import statistics
from c3po_bench.analysis.arms import BASE, columns_of
from c3po_bench.analysis.pairing import Partners, identity, run_labels
from c3po_bench.analysis.scores import load_scores, score_of
from c3po_bench.errors import UserError
from c3po_bench.store.reader import Run

log = logging.getLogger("c3po_bench")

DRAWN = ("seed", "training", "reference_items", "train_data", "revisions")
"""Parts of a run's identity that its seed may decide."""
SEED_COLUMNS = ("arm", "title", "role", "label", "task", "seeds", "items", "accuracy", "accuracy_sd")
SEED_COLUMNS += ("lowest", "highest", "agreement", "unanimous", "difference", "diff_low", "diff_high", "p")
SEED_COLUMNS += ("both_low", "both_high")


def seed_agreement(runs: Sequence[Run]) -> pd.DataFrame:
    """How far runs that differ in nothing but their seed agree, in accuracy and answer by answer.

    There is a row for each arm (with its settings) and task that ran under several seeds. `accuracy` is the
    mean over seeds and `accuracy_sd` its standard deviation (n - 1). `agreement` is the share of items on
    which two seeds give the same prediction, averaged over pairs of seeds; `unanimous` is the share on which
    all do. Only items that every seed answered are counted.

    `difference` is to base, each seed's run to its own base over these items; `diff_low`, `diff_high` and p
    are of t with seeds - 1 degrees over the seeds' differences and generalize over training seeds, for these
    items. `both_low` and `both_high` generalize over items and seeds, which are crossed (see
    `statistics.crossed_variance`), with the degrees of the rarer. Two seeds have no interval: t would be
    12.7.

    Runs are repetitions where their identities differ only in the seed and what it draws. Where one of their
    seeds ran twice something else differs, and they are left out, with a warning. A run whose rows `compare`
    refuses is left out, too.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_repeated(run), []).append(run)
    labels = run_labels([group[0] for group in groups.values()], without=("seed",))
    partners = Partners(runs)
    rows: list[dict[str, Any]] = []
    for group in groups.values():
        seeds = {run.result["seed"] for run in group}
        if 1 < len(seeds) < len(group):
            log.warning(
                "%s: several runs of one seed, whose data differ; left out where seeds are compared",
                group[0].arm,
            )
        elif len(seeds) > 1:
            common = columns_of(group[0]) | {"label": labels[group[0].run_id]}
            rows += [common | row for row in _agreement(group, partners)]
    return pd.DataFrame(rows, columns=list(SEED_COLUMNS))


def _repeated(run: Run) -> str:
    """What a repetition under another seed has in common with `run`."""
    drawn = DRAWN
    if "seed" in run.provenance["identity"].get("scoring", {}):
        drawn += ("requests",)  # examples or options are drawn, too
    settings = {name: value for name, value in run.result["settings"].items() if name != "seed"}
    return json.dumps([identity(run, *drawn), settings], sort_keys=True, default=str)


def repeated(runs: Sequence[Run]) -> dict[str, tuple[str, int]]:
    """By run id what repetitions of one arm have in common, and their number of seeds.

    Only of two or more.
    """
    keys = {run.run_id: _repeated(run) for run in runs if run.arm != BASE}
    seeds: dict[str, set[int]] = {}
    for run in runs:
        if run.run_id in keys:
            seeds.setdefault(keys[run.run_id], set()).add(run.result["seed"])
    return {name: (key, len(seeds[key])) for name, key in keys.items() if len(seeds[key]) > 1}


def merged(
    rows: Sequence[dict[str, Any]], repetitions: dict[str, tuple[str, int]], margin: float
) -> list[dict[str, Any]]:
    """The rows of `compare` with those of one arm's training seeds as one row.

    Accuracy and difference are means over seeds; intervals and p are of t with seeds - 1 degrees over the
    seeds' paired differences to base, and generalize over training seeds, for these items. Two seeds have
    neither: t would be 12.7. `fixed` and `broken` are summed over seeds.

    Args:
        rows: of single runs.
        repetitions: from `repeated`.
        margin: of sameness.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        key = repetitions[row["run_id"]][0] if row["run_id"] in repetitions else row["run_id"]
        groups.setdefault((key, row["task"]), []).append(row)
    return [own[0] if len(own) == 1 else _one_row(own, margin) for own in groups.values()]


def _one_row(rows: list[dict[str, Any]], margin: float) -> dict[str, Any]:
    """One row of a task for the rows of an arm's seeds."""
    few = len(rows) < 3
    row = {
        name: value for name, value in rows[0].items() if name not in ("spread", "flips", "p_mcnemar", "odd")
    }

    def over(*names: str) -> dict[str, float]:
        values = [each.get(names[0], nan) for each in rows]
        interval = statistics.t_interval(values)
        bounds = (nan, nan) if few else interval[1:]
        return dict(zip(names, (interval.value, *bounds), strict=False))

    gaps = [each.get("difference", nan) for each in rows]
    row |= over("accuracy", "low", "high") | over("difference", "diff_low", "diff_high")
    row |= {
        "label": f"{rows[0]['arm']} ({len(rows)} seeds)",
        "over": "seeds",
        "groups": len(rows),
        "test": "t",
    }
    row |= {"p": nan if few else statistics.t_test(gaps), "even": nan, "odd_low": nan, "odd_high": nan}
    tests = (statistics.t_test(part, above=-margin) for part in (gaps, [-gap for gap in gaps]))
    row |= {"p_same": nan if few else max(tests), "by_seed": " ".join(f"{100 * gap:+.1f}" for gap in gaps)}
    for name in ("fixed", "broken"):
        counts = [each[name] for each in rows if each.get(name) is not None]
        row[name] = sum(counts) if len(counts) == len(rows) else None
    if all("gold_difference" in each for each in rows):
        row |= over("gold_difference", "gold_low", "gold_high") | over("p_gold")
        row["gold_p"] = nan if few else statistics.t_test([each["gold_difference"] for each in rows])
    for name in ("seconds_per_item", "flops_per_item"):
        row[name] = float(np.mean([each[name] for each in rows]))
    return row


def _answers(run: Run) -> dict[tuple[str, Any], tuple[Any, float]]:
    """Prediction and score by item, where there is a score; empty for a run whose rows `compare` refuses."""
    try:
        load_scores(run)
    except UserError as reason:
        log.warning("left out where seeds are compared: %s", reason)
        return {}
    scored = ((row, score_of(row)) for row in run.samples())
    return {
        (row["task"], row["doc_id"]): (row["prediction"], score) for row, score in scored if score == score
    }


def _agreement(runs: list[Run], partners: Partners) -> list[dict[str, Any]]:
    """How far repetitions agree on each task, and differ from base: one row a task."""
    answered = [(run, own) for run in runs if (own := _answers(run))]
    if len(answered) < 2:
        return []
    answers = [own for _, own in answered]
    bases = [_answers(base) if (base := _base(run, partners)) else {} for run, _ in answered]
    shared = set(answers[0]).intersection(*answers[1:])
    rows = []
    for task in sorted({task for task, _ in shared}):
        items = sorted((key for key in shared if key[0] == task), key=lambda key: str(key[1]))
        scores = np.array([[own[key][1] for own in answers] for key in items])  # [items, seeds]
        accuracy = scores.mean(axis=0)
        pairs = [np.mean([a[key][0] == b[key][0] for key in items]) for a, b in combinations(answers, 2)]
        alike = [len({str(own[key][0]) for own in answers}) == 1 for key in items]
        row = {"task": task, "seeds": len(answers), "items": len(items), "unanimous": float(np.mean(alike))}
        row |= {"accuracy": float(accuracy.mean()), "accuracy_sd": float(accuracy.std(ddof=1))}
        row |= {"lowest": float(accuracy.min()), "highest": float(accuracy.max())}
        if all(base.keys() >= set(items) for base in bases):
            row |= over_seeds(scores - np.array([[base[key][1] for base in bases] for key in items]))
        rows.append(row | {"agreement": float(np.mean(pairs))})
    return rows


def _base(run: Run, partners: Partners) -> Run | None:
    return None if run.arm == BASE else partners.beside(run, BASE)


def over_seeds(gaps: np.ndarray) -> dict[str, float]:
    """Mean of differences ``[items, seeds]`` with its interval over seeds, and that over items and seeds."""
    items, seeds = gaps.shape
    by_seed = gaps.mean(axis=0)
    if seeds < 3:
        return {"difference": float(by_seed.mean())}
    value, low, high = statistics.t_interval(by_seed)
    row = {"difference": value, "diff_low": low, "diff_high": high, "p": statistics.t_test(by_seed)}
    spread = sqrt(statistics.crossed_variance(gaps)) if items > 1 else nan
    half = float(stdtrit(min(items, seeds) - 1, 0.5 + statistics.LEVEL / 2)) * spread if spread > 0 else nan
    return row | {"both_low": value - half, "both_high": value + half}
