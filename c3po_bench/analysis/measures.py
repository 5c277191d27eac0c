"""What is measured beside accuracy: feedback by scope, the share of a planted gap."""

from collections.abc import Callable, Sequence
from itertools import compress
from math import nan
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from c3po_bench.analysis import statistics
from c3po_bench.analysis.arms import BASE, columns_of
from c3po_bench.analysis.families import holm
from c3po_bench.analysis.pairing import Partners, run_labels
from c3po_bench.analysis.scores import MIN_CLUSTERS
from c3po_bench.analysis.seeds import repeated
from c3po_bench.store.reader import Run

SCOPES = {"in": "in scope", "near": "near scope", "out": "out of scope", "overall": "overall"}
MEASURES = ("score", "drift", "similarity", "repetition", "broken_ending", "length_ratio")
FEEDBACK_COLUMNS = ("arm", "title", "role", "label", "run_id", "scope", "feedback", "measure", "n", "mean")
FEEDBACK_COLUMNS += (
    "low",
    "high",
    "over",
    "varies",
    "against",
    "difference",
    "diff_low",
    "diff_high",
    "p",
    "p_holm",
)
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
    one_row: bool = False,
) -> pd.DataFrame:
    """Every measure of every scope by run, with its difference to the run `against` over the same prompts.

    `score` is S_in (signed), S_near or S_out (absolute): the mean over feedbacks of their prompts' means. The
    row of scope `overall` has S_overall = (S_in + 1 - (S_near + S_out) / 2) / 2 (RLVF, section 5). Other
    measures are means over prompts.

    Intervals are 95%, over `over`: prompts, or, where there are ten feedbacks or more, feedbacks (t). Scores
    that rules gave, all -1, 0 or 1, have score intervals over prompts (Tango's in scope and of differences,
    Wilson's of |score|), S_overall MOVER's of the three; judged scores and other measures t. Bounds are NaN
    where nothing varies; of judged scores `varies` is then false, and bounds are by the rule of three: at
    most 3 of n further prompts would be scored otherwise, and these by any score. p is mid-p where a
    difference is of rules, else of sign flips; Holm's correction runs over arms and scopes, measure by
    measure, and over the rows of single feedbacks apart.

    Args:
        runs: of one store.
        against: an arm, or a run id.
        pieces: whether to add the rows by feedback (column `feedback`).
        draws: sign flips.
        seed: of the flips.
        one_row: whether runs that differ in their training seed alone are one row: means over seeds, with
            intervals and p of t over them, as in `seeds.merged`.

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
            measured = _measured(_only(own, feedback), _only(other, feedback), draws, seed)
            if run.arm == BASE or beside is run:  # 0 by definition: nothing is estimated
                measured = [_certain(row, run.arm == BASE, beside is run) for row in measured]
            table += [common | {"feedback": feedback} | row for row in measured]
    if one_row:
        table = _merged(table, repeated(runs))
    families: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for row in table:
        families.setdefault((row["measure"], bool(row["feedback"])), []).append(row)
    for family in families.values():
        for row, p in zip(family, holm([row.get("p", nan) for row in family]), strict=True):
            row["p_holm"] = p
    return pd.DataFrame(table, columns=list(FEEDBACK_COLUMNS))


def _merged(rows: Sequence[dict[str, Any]], repetitions: dict[str, tuple[str, int]]) -> list[dict[str, Any]]:
    """The rows with those of one arm's training seeds as one."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = repetitions[row["run_id"]][0] if row["run_id"] in repetitions else row["run_id"]
        groups.setdefault((key, row["scope"], row["feedback"], row["measure"]), []).append(row)
    table = []
    for own in groups.values():
        row = dict(own[0])
        if len(own) > 1:
            row |= {"label": f"{row['arm']} ({len(own)} seeds)", "over": "seeds", "varies": True}
            for names in (OWN, GAP):
                interval = statistics.t_interval([each.get(names[0], nan) for each in own])
                row |= _columns(names, interval if len(own) > 2 else interval._replace(low=nan, high=nan))
            gaps = [each.get("difference", nan) for each in own]
            row["p"] = statistics.t_test(gaps) if len(own) > 2 else nan
        table.append(row)
    return table


def _certain(row: dict[str, Any], base: bool, itself: bool) -> dict[str, Any]:
    """A row of base, whose scores are against its own answers, or of the run that differences are to."""
    if base and row["measure"] == "score":
        row |= {"low": row["mean"], "high": row["mean"]}
    return row | (dict.fromkeys(GAP, 0.0) | {"p": nan} if itself else {})


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


class Prompts(NamedTuple):
    """Numbers of one measure in one scope, each ``[prompts]``, with the place of each prompt's feedback."""

    values: np.ndarray
    whose: np.ndarray

    def means(self) -> np.ndarray:
        """The mean of each feedback's prompts; NaN of one without any: ``[feedbacks]``."""
        counts = np.bincount(self.whose)
        with np.errstate(invalid="ignore"):
            return np.bincount(self.whose, weights=self.values) / counts

    def weights(self) -> np.ndarray:
        """What each prompt weighs in the mean over feedbacks of their means: ``[prompts]``, in sum 1."""
        counts = np.bincount(self.whose)
        return 1 / (np.count_nonzero(counts) * counts[self.whose])


def _measured(own: dict[str, Rows], other: dict[str, Rows], draws: int, seed: int) -> list[dict[str, Any]]:
    """The rows of one run: every measure of every scope, and S_overall."""
    table: list[dict[str, Any]] = []
    names = sorted({_feedback(row) for rows in own.values() for row in rows.values()})
    scores: dict[str, Prompts] = {}
    gaps: dict[str, Prompts] = {}
    for scope, rows in own.items():
        theirs = other.get(scope, {})
        for measure in MEASURES:
            keys = [key for key, row in rows.items() if _is_number(row.get(measure))]
            if not keys:
                continue
            whose = np.searchsorted(names, [_feedback(rows[key]) for key in keys])
            prompts = Prompts(np.array([rows[key][measure] for key in keys], dtype=np.float64), whose)
            scored, gap = measure == "score", None
            both = np.array([_is_number(theirs.get(key, {}).get(measure)) for key in keys])
            if both.any() and all(key in theirs for key in keys):
                change = [rows[key][measure] - theirs[key][measure] for key in compress(keys, both)]
                gap = Prompts(np.array(change, dtype=np.float64), whose[both])
            row = {"scope": scope, "measure": measure, "n": len(keys), "over": _over(prompts)}
            row |= _columns(OWN, _interval(prompts, scored, signed=scope == "in"))
            row["varies"] = bool(np.ptp(prompts.values) > 0) or _of_rules(prompts, scored)
            if gap is not None:
                row |= _columns(GAP, _interval(gap, scored, signed=True)) | {
                    "p": _p(gap, scored, draws, seed)
                }
            if scored:
                scores[scope] = prompts
                if gap is not None:
                    gaps[scope] = gap
            table.append(row)
    if scores.keys() >= {"in", "near", "out"}:
        scored_items = sum(row["n"] for row in table if row["measure"] == "score")
        row = {"scope": "overall", "measure": "score", "n": scored_items, "over": _over(scores["in"])}
        row |= _columns(OWN, _overall(scores, 1.0)) | {"varies": True}
        if gaps.keys() >= {"in", "near", "out"}:
            parts = [
                gaps[s].values * gaps[s].weights() * w
                for s, w in (("in", 0.5), ("near", -0.25), ("out", -0.25))
            ]
            whose = np.concatenate([gaps[s].whose for s in ("in", "near", "out")])
            clusters = None if _over(gaps["in"]) == "prompts" else whose
            p = statistics.sign_flip(np.concatenate(parts), draws=draws, seed=seed, clusters=clusters)
            row |= _columns(GAP, _overall(gaps, 0.0)) | {"p": p}
        table.append(row)
    return table


def _columns(names: tuple[str, str, str], interval: statistics.Interval) -> dict[str, Any]:
    return dict(zip(names, interval, strict=True))


def _over(prompts: Prompts) -> str:
    """What an interval generalizes over: feedbacks where there are enough, else prompts for these ones."""
    return "feedbacks" if len(np.unique(prompts.whose)) >= MIN_CLUSTERS else "prompts"


def _of_rules(prompts: Prompts, scored: bool) -> bool:
    return scored and statistics.is_ternary(prompts.values)


def _interval(prompts: Prompts, scored: bool, *, signed: bool) -> statistics.Interval:
    """The mean with its interval, over prompts or feedbacks; of `scored` prompts the mean over feedbacks."""
    if _over(prompts) == "feedbacks":
        if scored:
            return statistics.t_interval(prompts.means()[np.unique(prompts.whose)])
        return statistics.t_interval(prompts.values, prompts.whose)
    counts = np.bincount(prompts.whose)
    sizes = counts[counts > 0]
    if scored and len(sizes) > 1 and np.ptp(sizes):  # feedbacks weigh alike, prompts then do not
        parts = [prompts.values[prompts.whose == one] for one in np.unique(prompts.whose)]
        return statistics.mean_interval([_of_prompts(part, signed) for part in parts])
    return _of_prompts(prompts.values, signed) if scored else statistics.t_interval(prompts.values)


def _of_prompts(values: np.ndarray, signed: bool) -> statistics.Interval:
    """The mean of scores; where judged ones are all alike, the bounds of the rule of three."""
    interval = statistics.score_interval(values, signed=signed)
    if interval.low == interval.low:
        return interval
    value, other = interval.value, min(1.0, 3 / len(values))  # the share that may be scored otherwise
    least = -1.0 if signed else 0.0
    return statistics.Interval(value, value - other * (value - least), value + other * (1 - value))


def _p(gap: Prompts, scored: bool, draws: int, seed: int) -> float:
    if _over(gap) == "feedbacks":
        return statistics.sign_flip(gap.values * gap.weights(), draws=draws, seed=seed, clusters=gap.whose)
    if _of_rules(gap, scored) and not np.ptp(np.bincount(gap.whose)[np.unique(gap.whose)]):
        return float(statistics.mid_p(int((gap.values > 0).sum()), int((gap.values < 0).sum())))
    weights = gap.weights() if scored else 1.0
    return statistics.sign_flip(gap.values * weights, draws=draws, seed=seed)


def _overall(scopes: dict[str, Prompts], one: float) -> statistics.Interval:
    """S_overall of the scores of three scopes, with its interval; with `one` = 0, a difference of two.

    Over feedbacks t of each one's own S_overall, where all have the three scopes; over prompts MOVER.
    """
    parts = [scopes[scope] for scope in ("in", "near", "out")]
    if _over(parts[0]) == "feedbacks" and len({tuple(np.unique(part.whose)) for part in parts}) == 1:
        places = np.unique(parts[0].whose)
        a, b, c = (part.means()[places] for part in parts)
        return statistics.t_interval((a + one - (b + c) / 2) / 2)
    signed = (True, one == 0, one == 0)
    within, near, out = (_interval(part, True, signed=s) for part, s in zip(parts, signed, strict=True))
    return statistics.overall_interval(within, near, out, one)


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
