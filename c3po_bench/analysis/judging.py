"""How far a judge errs, and what its scores say once that is allowed for.

A model that judges answers makes two kinds of mistake: it misses answers that follow the feedback, and it
sees followers where there are none. Against rules, which most pieces of feedback have, both rates can be
counted; against human labels of a part of the answers, the mean of all can be estimated without a bias.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from c3po_bench.analysis.arms import columns_of
from c3po_bench.analysis.logs import field_of, rows_of
from c3po_bench.analysis.pairing import run_labels
from c3po_bench.analysis.statistics import NOTHING, Interval, Z
from c3po_bench.errors import UserError
from c3po_bench.store.reader import Run, load_experiments

JUDGE_COLUMNS = (
    "arm",
    "title",
    "role",
    "label",
    "run_id",
    "scope",
    "n",
    "judged",
    "calibrated",
    "sensitivity",
)
JUDGE_COLUMNS += ("specificity", "corrected", "corrected_low", "corrected_high")
JUDGE_COLUMNS += ("labelled", "estimate", "estimate_low", "estimate_high")


class Rate(NamedTuple):
    """How often a judge is right on `cases` of one kind."""

    right: float
    cases: int


def rogan_gladen(share: float, n: int, sensitivity: Rate, specificity: Rate) -> Interval:
    """The true share behind a judged one, (p + q0 - 1) / (q0 + q1 - 1), with its 95% interval.

    Rogan and Gladen (1978). The interval is that of Lee et al. (arXiv 2511.21140): p with z^2 / 2 successes
    of z^2 cases added, the judge's rates with one success of two, and a shift for the curvature. `share` of
    `n` answers is judged to follow; q1 is the judge's sensitivity, q0 its specificity. Nothing is known where
    q0 + q1 <= 1: the judge is no better than chance.
    """
    (q1, m1), (q0, m0) = sensitivity, specificity
    if not n or not m0 or not m1 or q0 + q1 <= 1:
        return NOTHING
    value, z2 = (share + q0 - 1) / (q0 + q1 - 1), Z * Z
    p, n_more = (n * share + z2 / 2) / (n + z2), n + z2
    q1, q0, m1, m0 = (m1 * q1 + 1) / (m1 + 2), (m0 * q0 + 1) / (m0 + 2), m1 + 2, m0 + 2
    gain = q0 + q1 - 1
    if gain <= 0:
        return Interval(min(max(value, 0.0), 1.0), 0.0, 1.0)
    centre = (p + q0 - 1) / gain
    errors = (1 - centre) ** 2 * q0 * (1 - q0) / m0 + centre**2 * q1 * (1 - q1) / m1
    half = Z * math.sqrt(p * (1 - p) / n_more + errors) / gain
    shift = 2 * z2 * (centre * q1 * (1 - q1) / m1 - (1 - centre) * q0 * (1 - q0) / m0)
    low, high = centre + shift - half, centre + shift + half
    return Interval(min(max(value, 0.0), 1.0), max(0.0, low), min(1.0, high))


def prediction_powered(
    labels: ArrayLike, judged: ArrayLike, unlabelled: ArrayLike, tuned: bool = True
) -> Interval:
    """The mean of labels, with the help of a judge's scores on more answers, and its 95% interval (PPI++).

    lambda mean(f_u) + mean(y - lambda f), unbiased however the judge errs (Angelopoulos, Duchi and Zrnic,
    arXiv 2311.01453). `tuned`: the lambda of least variance, cov(y, f) / ((1 + n / N) var f), within [0, 1];
    else 1.

    Args:
        labels: y, true scores of n answers.
        judged: f, the judge's scores of the same answers.
        unlabelled: f_u, its scores of N others.
        tuned: whether to choose lambda.
    """
    y, f, rest = (np.asarray(part, dtype=np.float64) for part in (labels, judged, unlabelled))
    n, more = len(y), len(rest)
    if n < 2:
        return NOTHING
    weight, everything = 0.0, np.concatenate([f, rest])
    if more and (spread := float(everything.var(ddof=1))) > 0:
        covariance = float(((y - y.mean()) * (f - f.mean())).mean())
        weight = min(1.0, max(0.0, covariance / ((1 + n / more) * spread))) if tuned else 1.0
    of_rest = weight**2 * float(rest.var()) / more if more else 0.0
    value = weight * float(rest.mean() if more else 0.0) + float((y - weight * f).mean())
    half = Z * math.sqrt(of_rest + float((y - weight * f).var()) / n)
    return Interval(value, value - half, value + half) if half > 0 else Interval(value, math.nan, math.nan)


Labels = dict[tuple[str, str, str], float]
"""People's scores by feedback, prompt and response."""


def read_labels(path: str | Path | None) -> Labels:
    """People's scores of answers: JSON lines of `feedback_id`, `prompt`, `response` and `score`, -1 to 1.

    Raises:
        UserError: for a file that is not there, or a row that lacks one of these or has another score.
    """
    labels: Labels = {}
    if path is None:
        return labels
    if not Path(path).is_file():
        raise UserError(f"feedback.judge.labels={path}: no such file")
    for number, row in rows_of(Path(path)):
        where = f"{path}, row {number}"
        key = [str(field_of(row, name, where, "a label")) for name in ("feedback_id", "prompt", "response")]
        score = field_of(row, "score", where, "a label")
        if not isinstance(score, int | float) or not -1 <= score <= 1:
            raise UserError(f"{where}: score {score!r}: a number from -1 to 1 is expected")
        labels[key[0], key[1], key[2]] = float(score)
    return labels


def newest_labels(results_dir: str | Path) -> Labels:
    """People's scores from the file that the newest experiment of a store names; empty without one."""
    experiments = load_experiments(results_dir)
    section = experiments[-1]["config"].get("feedback", {}) if experiments else {}
    return read_labels(section.get("judge", {}).get("labels"))


def judge_measures(runs: Sequence[Run], labels: Labels | None = None) -> pd.DataFrame:
    """What is known of the judge by run and scope, of runs with answers that rules or people scored besides.

    `judged` is the share of answers that the judge says follow the feedback (in scope) or leak (elsewhere);
    `sensitivity` and `specificity` are counted against the rules on `calibrated` answers of this run over all
    scopes, as a judge may err differently on each arm; `corrected` is the share behind the judged one (Rogan
    and Gladen) and `estimate` the mean score by `labelled` answers and the judge together (PPI++).
    """
    names, table = run_labels(runs), []
    for run in runs:
        rows = [row for row in run.samples() if row.get("scope") and row.get("score") is not None]
        for row in rows if labels else ():
            key = (str(row["feedback_id"]), str(row.get("prompt")), str(row.get("response")))
            row |= {"label": labels[key]} if labels and key in labels else {}
        if any("rule_score" in row or "label" in row for row in rows):
            common = columns_of(run) | {"run_id": run.run_id, "label": names[run.run_id]}
            table += [common | row for row in _measured(rows)]
    return pd.DataFrame(table, columns=list(JUDGE_COLUMNS))


def _measured(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of one run's scopes."""
    known = [row for row in rows if "rule_score" in row]
    says, truth = (
        np.array([_size(row, name) > 0 for row in known], dtype=bool) for name in ("score", "rule_score")
    )
    sensitivity = Rate(float(says[truth].mean()) if truth.any() else math.nan, int(truth.sum()))
    specificity = Rate(float((~says[~truth]).mean()) if (~truth).any() else math.nan, int((~truth).sum()))
    for scope in dict.fromkeys(row["scope"] for row in rows):
        own = [row for row in rows if row["scope"] == scope]
        judged = np.array([_size(row, "score") for row in own])
        share = float((judged > 0).mean())
        labelled = np.array(["label" in row for row in own])
        people = [_size(row, "label") for row in own if "label" in row]
        row = {
            "scope": scope,
            "n": len(own),
            "judged": share,
            "labelled": len(people),
            "calibrated": len(known),
        }
        row |= {"sensitivity": sensitivity.right, "specificity": specificity.right}
        corrected = rogan_gladen(share, len(own), sensitivity, specificity)
        estimate = prediction_powered(people, judged[labelled], judged[~labelled])
        row |= dict(zip(("corrected", "corrected_low", "corrected_high"), corrected, strict=True))
        yield row | dict(zip(("estimate", "estimate_low", "estimate_high"), estimate, strict=True))


def _size(row: dict[str, Any], name: str) -> float:
    """A score as its scope takes it: signed in scope, its size elsewhere."""
    return float(row[name]) if row["scope"] == "in" else abs(float(row[name]))
