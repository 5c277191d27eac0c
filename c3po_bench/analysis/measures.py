"""What is measured beside accuracy: feedback by scope, the share of a planted gap, agreement over seeds."""

import json
import logging
from collections.abc import Callable, Sequence
from itertools import combinations, compress
from math import nan
from typing import Any

import numpy as np
import pandas as pd

from c3po_bench.analysis import statistics
from c3po_bench.analysis.arms import BASE, columns_of
from c3po_bench.analysis.pairing import Partners, identity, run_labels
from c3po_bench.analysis.scores import MIN_CLUSTERS, load_scores, score_of
from c3po_bench.errors import UserError
from c3po_bench.store.reader import Run

log = logging.getLogger("c3po_bench")
SCOPES = {"in": "in scope", "near": "near scope", "out": "out of scope", "overall": "overall"}
MEASURES = ("score", "drift", "similarity", "repetition", "broken_ending", "length_ratio")
FEEDBACK_COLUMNS = ("arm", "title", "role", "label", "run_id", "scope", "feedback", "measure", "n", "mean")
FEEDBACK_COLUMNS += ("low", "high", "against", "difference", "diff_low", "diff_high")
OWN, GAP = ("mean", "low", "high"), ("difference", "diff_low", "diff_high")

Key = tuple[str, Any, Any]  # task, doc_id and doc_hash
Rows = dict[Key, dict[str, Any]]


def feedback_measures(
    runs: Sequence[Run],
    against: str = BASE,
    *,
    pieces: bool = False,
    draws: int = statistics.DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """Every measure of every scope by run, with its difference to the run `against` over the same prompts.

    `score` is S_in (signed), S_near or S_out (absolute): the mean over feedbacks of their prompts' means. The
    row of scope `overall` has S_overall = (S_in + 1 - (S_near + S_out) / 2) / 2 (RLVF, section 5). Other
    measures are means over prompts. Intervals are bootstrap intervals over prompts, over feedbacks where
    there are ten or more. With `pieces`, there is also a row for each feedback (column `feedback`).

    Args:
        runs: of one store.
        against: an arm, or a run id.
        pieces: whether to add the rows by feedback.
        draws: resamples.
        seed: of the resamples.

    Raises:
        UserError: where several runs of the arm `against` could be meant.
    """
    labels, partners = run_labels(runs), Partners(runs)
    rows = {run.run_id: _by_scope(run) for run in runs}
    table: list[dict[str, Any]] = []
    for run in runs:
        own, beside = rows[run.run_id], partners.beside(run, against)
        other = {} if beside is None else rows[beside.run_id]
        names = sorted({_feedback(row) for items in own.values() for row in items.values()}) if pieces else []
        common = columns_of(run) | {"label": labels[run.run_id], "run_id": run.run_id, "against": against}
        for feedback in ["", *names]:
            measured = _measured(_only(own, feedback), _only(other, feedback), draws=draws, seed=seed)
            table += [common | {"feedback": feedback} | row for row in measured]
    return pd.DataFrame(table, columns=list(FEEDBACK_COLUMNS))


def _by_scope(run: Run) -> dict[str, Rows]:
    """The sample rows of feedback prompts by scope, all measures flat; near and out of scope absolute."""
    scopes: dict[str, Rows] = {}
    for row in run.samples():
        if row.get("scope"):
            score = row["score"]  # None: a judgement that could not be had
            if score is not None and row["scope"] != "in":
                score = abs(score)
            key = (row["task"], row["doc_id"], row["doc_hash"])
            scopes.setdefault(row["scope"], {})[key] = row | row.get("degeneration", {}) | {"score": score}
    return {scope: scopes[scope] for scope in SCOPES if scope in scopes}


def _only(scopes: dict[str, Rows], feedback: str) -> dict[str, Rows]:
    if not feedback:
        return scopes
    return {
        scope: {key: row for key, row in rows.items() if _feedback(row) == feedback}
        for scope, rows in scopes.items()
    }


def _measured(own: dict[str, Rows], other: dict[str, Rows], *, draws: int, seed: int) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = []
    scores: dict[str, tuple[float, np.ndarray]] = {}  # by scope: mean and its draws
    score_gaps: dict[str, tuple[float, np.ndarray]] = {}
    names = sorted({_feedback(row) for rows in own.values() for row in rows.values()}) or [""]
    shares = np.full(len(names), 1 / len(names))
    weights = np.random.default_rng(seed).multinomial(len(names), shares, size=draws)
    for place, (scope, rows) in enumerate(own.items()):
        theirs = other.get(scope, {})
        for measure in MEASURES:
            keys = [key for key, row in rows.items() if _is_number(row.get(measure))]
            if not keys:
                continue
            whose = np.searchsorted(names, [_feedback(rows[key]) for key in keys])
            values = [rows[key][measure] for key in keys]
            mean, means = _mean(values, whose, measure, weights, (seed, place))
            row = {"scope": scope, "measure": measure, "n": len(keys)} | _columns(OWN, mean)
            if measure == "score":
                scores[scope] = mean.value, means
            both = np.array([_is_number(theirs.get(key, {}).get(measure)) for key in keys])
            if both.any() and all(key in theirs for key in keys):
                gaps = [rows[key][measure] - theirs[key][measure] for key in compress(keys, both)]
                gap, means = _mean(gaps, whose[both], measure, weights, (seed, place))
                row |= _columns(GAP, gap)
                if measure == "score":
                    score_gaps[scope] = gap.value, means
            table.append(row)
    if scores.keys() >= {"in", "near", "out"}:
        scored = sum(row["n"] for row in table if row["measure"] == "score")
        row = {"scope": "overall", "measure": "score", "n": scored} | _columns(OWN, _overall(scores, 1.0))
        if score_gaps.keys() >= {"in", "near", "out"}:
            row |= _columns(GAP, _overall(score_gaps, 0.0))
        table.append(row)
    return table


def _columns(names: tuple[str, str, str], interval: statistics.Interval) -> dict[str, Any]:
    return dict(zip(names, interval, strict=True))


def _overall(scopes: dict[str, tuple[float, np.ndarray]], one: float) -> statistics.Interval:
    """S_overall of the scores of three scopes, with its interval; with `one` = 0, a difference of two."""
    (a, drawn_a), (b, drawn_b), (c, drawn_c) = (scopes[scope] for scope in ("in", "near", "out"))
    means = (drawn_a + one - (drawn_b + drawn_c) / 2) / 2
    return statistics.percentile_interval((a + one - (b + c) / 2) / 2, means)


def _mean(
    numbers: list[float], whose: np.ndarray, measure: str, weights: np.ndarray, seed: tuple[int, int]
) -> tuple[statistics.Interval, np.ndarray]:
    """The mean of `numbers`, one a prompt, with its interval; and its bootstrap means ``[draws]``.

    Prompts are drawn, or, of ten feedbacks or more, feedbacks. Scores are weighted so that their mean is the
    mean over feedbacks of the means over prompts. `whose` is the number of each prompt's feedback. `weights`
    says how often each feedback is drawn, ``[draws, feedbacks]``: the same for all scopes and measures.
    """
    values, counts = np.array(numbers, dtype=np.float64), np.bincount(whose, minlength=weights.shape[1])
    if measure == "score":
        values *= len(whose) / (np.count_nonzero(counts) * counts[whose])
    if np.count_nonzero(counts) < MIN_CLUSTERS:
        means = statistics.bootstrap_means(values, draws=len(weights), seed=seed)
    else:
        sums = weights @ np.bincount(whose, weights=values, minlength=weights.shape[1])
        means = sums / np.maximum(1, weights @ counts)
    return statistics.percentile_interval(float(values.mean()), means), means


def _feedback(row: dict[str, Any]) -> str:
    return str(row.get("feedback_id"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


OPTIMUM = "planted_optimum"


def share_recovered(
    runs: Sequence[Run],
    distance: Callable[[Sequence[Sequence[float]], Sequence[int], str], float],
    *,
    draws: int = statistics.DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """(arm - base) / (optimum - base) over all items of a planted testbed, with a paired bootstrap interval.

    Items are drawn together for arm, base and optimum; where few items leave draws without a gap, a bound may
    be infinite, and where there is no gap at all there is no share (NaN).

    Args:
        runs: of one experiment, the arm `planted_optimum` among them.
        distance: of an item's pathway ``[layers][experts]``, its layers and its question: the total variation
            from the planted pathway, 0 (the same) to 1 (disjoint). The column `distance` is its mean.
        draws: resamples.
        seed: of the resamples.
    """
    rows = {run.arm: {(row["task"], row["doc_id"]): row for row in run.samples()} for run in runs}
    keys = sorted(rows[BASE])
    correct = {arm: np.array([own[key]["correct"] for key in keys]) for arm, own in rows.items()}
    picks = np.random.default_rng(seed).integers(0, len(keys), (draws, len(keys)), dtype=np.int32)
    parts = np.array_split(picks, 20)
    means = {arm: np.concatenate([own[p].mean(axis=1) for p in parts]) for arm, own in correct.items()}
    table = []
    for arm, own in correct.items():
        moved = [item for key in keys if "pathway_after" in (item := rows[arm][key])]
        far = [distance(item["pathway_after"], item["pathway_layers"], item["question"]) for item in moved]
        row = {"arm": arm, "n": len(keys), "accuracy": own.mean(), "share": nan, "low": nan, "high": nan}
        if whole := correct[OPTIMUM].mean() - correct[BASE].mean():
            with np.errstate(divide="ignore", invalid="ignore"):
                shares = (means[arm] - means[BASE]) / (means[OPTIMUM] - means[BASE])
            shares = shares[~np.isnan(shares)]
            method = "linear" if np.isfinite(shares).all() else "nearest"
            row["share"] = (own.mean() - correct[BASE].mean()) / whole
            row["low"], row["high"] = map(float, np.quantile(shares, [0.025, 0.975], method=method))
        table.append(row | {"distance": float(np.mean(far)) if far else nan})
    return pd.DataFrame(table)


DRAWN = ("seed", "reference_items", "train_data", "revisions")
"""Parts of a run's identity that its seed may decide."""
SEED_COLUMNS = ("arm", "title", "role", "label", "task", "seeds", "items", "accuracy", "accuracy_sd")
SEED_COLUMNS += ("lowest", "highest", "agreement", "unanimous")


def seed_agreement(runs: Sequence[Run]) -> pd.DataFrame:
    """How far runs that differ in nothing but their seed agree, in accuracy and answer by answer.

    There is a row for each arm (with its settings) and task that ran under several seeds. `accuracy` is the
    mean over seeds and `accuracy_sd` its standard deviation (n - 1). `agreement` is the share of items on
    which two seeds give the same prediction, averaged over pairs of seeds; `unanimous` is the share on which
    all do. Only items that every seed answered are counted.

    Runs are repetitions where their identities differ only in the seed and what it draws. Where one of their
    seeds ran twice something else differs, and they are left out, with a warning. A run whose rows `compare`
    refuses is left out, too.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_repeated(run), []).append(run)
    labels = run_labels([group[0] for group in groups.values()], without=("seed",))
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
            rows += [common | row for row in _agreement(group)]
    return pd.DataFrame(rows, columns=list(SEED_COLUMNS))


def _repeated(run: Run) -> str:
    """What a repetition under another seed has in common with `run`."""
    drawn = DRAWN
    if "seed" in run.provenance["identity"].get("scoring", {}):
        drawn += ("requests",)  # examples or options are drawn, too
    settings = {name: value for name, value in run.result["settings"].items() if name != "seed"}
    return json.dumps([identity(run, *drawn), settings], sort_keys=True, default=str)


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


def _agreement(runs: list[Run]) -> list[dict[str, Any]]:
    """How far repetitions agree on each task: one row a task."""
    answers = [own for run in runs if (own := _answers(run))]
    if len(answers) < 2:
        return []
    shared = set(answers[0]).intersection(*answers[1:])
    rows = []
    for task in sorted({task for task, _ in shared}):
        items = sorted((key for key in shared if key[0] == task), key=lambda key: str(key[1]))
        accuracy = np.array([np.mean([own[key][1] for key in items]) for own in answers])
        pairs = [np.mean([a[key][0] == b[key][0] for key in items]) for a, b in combinations(answers, 2)]
        alike = [len({str(own[key][0]) for own in answers}) == 1 for key in items]
        row = {"task": task, "seeds": len(answers), "items": len(items), "unanimous": float(np.mean(alike))}
        row |= {"accuracy": float(accuracy.mean()), "accuracy_sd": float(accuracy.std(ddof=1))}
        row |= {"lowest": float(accuracy.min()), "highest": float(accuracy.max())}
        rows.append(row | {"agreement": float(np.mean(pairs))})
    return rows
