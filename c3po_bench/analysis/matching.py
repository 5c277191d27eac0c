"""Two logs of any harness, item by item: what may be compared, and what comparing shows."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from c3po_bench.analysis import statistics
from c3po_bench.analysis.families import holm
from c3po_bench.analysis.harnesses import logs_of_run, read_logs
from c3po_bench.analysis.logs import Log, Row
from c3po_bench.analysis.scores import many_clusters
from c3po_bench.analysis.verdict import direction, points, within
from c3po_bench.errors import UserError, unknown
from c3po_bench.store.reader import Run

SHARED = 0.95  # of the larger log's items must be in both
ALIKE = {"acc": "accuracy", "choice": "accuracy"}  # what harnesses call the share of right answers
FLIPS = 2000  # draws of sign flips


class Match(NamedTuple):
    """Which rows of two logs are the same items; whether they may be compared, why not, with what doubt."""

    own: np.ndarray  # places in the first log
    other: np.ndarray  # and in the second
    refusal: str
    warnings: list[str]


def compare_runs(
    a: Any, b: Any, *, task: str | None = None, metric: str | None = None, margin: float = statistics.MARGIN
) -> list[dict[str, Any]]:
    """Compare `a` with `b` item by item, task by task; differences are a - b.

    Args:
        a: a path of a run, a store (``STORE:ARM``) or a log, a `Run`, a `Log`, or a list of logs.
        b: the same.
        task: only this one.
        metric: by default the first that both have.
        margin: of sameness.

    Returns: for each task `task`, `metric`, `a`, `b`, `n` (shared items), `n_a`, `n_b`, `mean_a`, `mean_b`,
        `difference`, `interval` (95%; None where nothing varies), `over`, `p_value`, `p_holm` (over the
        tasks), `test`, `fixed` and `broken` (items that a does better and worse), `flips` (their names),
        `comparable` (yes, with warnings or refused), `reasons`, `verdict` (a sentence).

    Raises:
        UserError: where nothing can be read, or no task is in both.
    """
    ours, theirs = _logs(a), _logs(b)
    pairs = _pairs(ours, theirs, task)
    rows = [_compared(own, other, metric, margin) for own, other in pairs]
    known = [math.nan if row["p_value"] is None else row["p_value"] for row in rows]
    for row, p in zip(rows, holm(known), strict=True):
        if row["comparable"] != "refused":
            row["p_holm"] = float(p)
            row["verdict"] = _sentence(row, margin)
    for row in rows:
        for private in ("higher", "shares", "p_same"):
            row.pop(private)
    return rows


def _logs(source: Any) -> list[Log]:
    if isinstance(source, Run):
        return logs_of_run(source)
    if isinstance(source, Log):
        return [source]
    if isinstance(source, str | Path):
        path, _, arm = str(source).rpartition(":")
        whole = not path or Path(source).exists()
        return read_logs(str(source) if whole else path, "" if whole else arm)
    return [log for part in source for log in _logs(part)]


def _pairs(ours: Sequence[Log], theirs: Sequence[Log], task: str | None) -> list[tuple[Log, Log]]:
    """The logs of each task that is in both; of single logs these two, whatever they call the task."""
    first, second = ({log.task: log for log in logs} for logs in (ours, theirs))
    if task is not None:
        for own in (first, second):
            if task not in own and len(own) > 1:
                raise unknown("task", task, own)
            if task not in own and task not in first.keys() | second.keys():
                raise unknown("task", task, [*first, *second])
        first, second = ({task: own[task]} if task in own else own for own in (first, second))
    if len(first) == len(second) == 1:
        return [(next(iter(first.values())), next(iter(second.values())))]
    if not (shared := [name for name in first if name in second]):
        raise UserError(f"no task is in both: {', '.join(first)} against {', '.join(second)}")
    return [(first[name], second[name]) for name in shared]


def _metric(own: Log, other: Log, metric: str | None) -> tuple[str, str]:
    """The name of the metric in both logs; empty for the second where it lacks it."""
    if metric is not None and metric not in own.scores:
        raise unknown(f"metric of {own.source}", metric, own.scores)
    for name in own.scores if metric is None else [metric]:
        for theirs in other.scores:
            if ALIKE.get(name, name) == ALIKE.get(theirs, theirs):
                return name, theirs
    return metric or next(iter(own.scores), ""), ""


def match(own: Log, other: Log, metric: str, theirs: str) -> Match:
    """Join two logs by what their items ask, and say whether scores under these metrics may be compared.

    Logs of one family are joined by their own identity of items, else, and where that fails, by the
    normalized text of the question; repeated items by their order.
    """
    by_content = _joined([row.content for row in own.rows], [row.content for row in other.rows])
    by_question = _joined([row.question for row in own.rows], [row.question for row in other.rows])
    enough, warnings = SHARED * max(len(own.rows), len(other.rows)), []
    places = by_content if own.family == other.family else by_question
    if len(places) < enough and len(by_question) > len(places):
        places = by_question
        warnings.append("items are joined by their question: other fields of their documents differ")
    mine, yours = np.array(places, dtype=np.int64).reshape(-1, 2).T
    pairs = [(own.rows[i], other.rows[j]) for i, j in places]
    gold = [x.item for x, y in pairs if None not in (x.gold, y.gold) and x.gold != y.gold]
    higher = own.higher.get(metric), other.higher.get(theirs)
    refusal = ""
    if not theirs:
        refusal = (
            f"metrics differ ({', '.join(own.scores) or 'none'} against {', '.join(other.scores) or 'none'})"
        )
    elif None not in higher and higher[0] != higher[1]:
        refusal = f"{metric}: more is better in one, worse in the other"
    elif gold:
        differing = f"{len(gold):,} of {len(pairs):,} items, first {own.task}/{gold[0]}"
        refusal = f"the expected answer differs on {differing}"
    elif len(places) < enough:
        refusal = f"{len(places):,} items are shared of {len(own.rows):,} and {len(other.rows):,}, under 95%"
    if higher == (None, None) and ALIKE.get(metric, metric) != "accuracy":
        warnings.append(f"whether more {metric} is better is not said; it is taken to be")
    return Match(mine, yours, refusal, [*warnings, *_doubts(own, other, pairs)])


def _joined(own: Sequence[str | None], other: Sequence[str | None]) -> list[tuple[int, int]]:
    """Places of equal keys; the k-th of several equal ones with the k-th."""

    def numbered(keys: Sequence[str | None]) -> dict[tuple[str, int], int]:
        seen: Counter[str] = Counter()
        places = {}
        for place, key in enumerate(keys):
            if key is not None:
                places[key, seen[key]] = place
                seen[key] += 1
        return places

    first, second = numbered(own), numbered(other)
    return [(place, second[key]) for key, place in first.items() if key in second]


def _doubts(own: Log, other: Log, pairs: Sequence[Any]) -> list[str]:
    """What differs, or is not said, besides the items themselves."""
    doubts = []
    if own.task != other.task:
        doubts.append(f"task names differ ({own.task} against {other.task})")
    if own.harness != other.harness:
        doubts.append(f"harnesses differ ({own.harness} against {other.harness})")
    prompts = [x.prompt == y.prompt for x, y in pairs if None not in (x.prompt, y.prompt)]
    if own.family != other.family or not prompts:
        doubts.append("prompts are not known to be the same")
    elif not all(prompts):
        doubts.append(f"prompts differ on {prompts.count(False):,} of {len(prompts):,} items")
    if pairs and not any(None not in (x.gold, y.gold) for x, y in pairs) and own.family != "document":
        doubts.append("expected answers are not said")
    if own.harness == other.harness:
        for name in own.facts:
            ours, theirs = own.facts[name], other.facts.get(name)
            if ours is None and theirs is None:
                doubts.append(f"{name} is not said")
            elif ours != theirs:
                doubts.append(f"{name} differs ({_short(ours)} against {_short(theirs)})")
    return doubts


def _short(value: Any) -> str:
    text = "not said" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _compared(own: Log, other: Log, metric: str | None, margin: float) -> dict[str, Any]:
    """One task of two logs; the verdict is written when all are there."""
    name, theirs = _metric(own, other, metric)
    matched = match(own, other, name, theirs)
    row: dict[str, Any] = {
        "task": own.task,
        "metric": name,
        "a": own.model or own.source,
        "b": other.model or other.source,
    }
    if row["a"] == row["b"]:
        row |= {"a": own.source, "b": other.source}
    row |= {"n": len(matched.own), "n_a": len(own.rows), "n_b": len(other.rows)}
    empty = "mean_a mean_b difference interval over p_value p_holm test fixed broken"
    row |= dict.fromkeys(empty.split()) | {"flips": {}, "higher": True, "shares": True, "p_same": math.nan}
    if matched.refusal:
        return row | {
            "comparable": "refused",
            "reasons": [matched.refusal],
            "verdict": f"refused: {matched.refusal}",
        }
    warned = "with warnings" if matched.warnings else "yes"
    row |= {"comparable": warned, "reasons": matched.warnings}
    higher = own.higher.get(name) is not False and other.higher.get(theirs) is not False
    scores = own.scores[name][matched.own], other.scores[theirs][matched.other]
    return row | {"higher": higher} | _statistics([own.rows[i] for i in matched.own], *scores, higher, margin)


def _statistics(rows: list[Row], x: np.ndarray, y: np.ndarray, higher: bool, margin: float) -> dict[str, Any]:
    """The paired statistics of scores ``[items]`` of two logs; more is better if `higher`."""
    scored = ~np.isnan(x - y)
    x, y, rows = x[scored], y[scored], [row for row, known in zip(rows, scored, strict=True) if known]
    clusters = None
    if any(row.cluster is not None for row in rows):
        named = [str(i) if row.cluster is None else f"={row.cluster}" for i, row in enumerate(rows)]
        clusters = many_clusters(np.array(named))
    gap = x - y
    value, low, high = statistics.score_interval(gap, clusters, signed=True)
    better = gap if higher else -gap
    paired = clusters is None and statistics.is_ternary(gap)
    up, down = np.flatnonzero(better > 0), np.flatnonzero(better < 0)
    if paired:
        p = float(statistics.mid_p(len(up), len(down)))
    else:
        p = statistics.sign_flip(gap, draws=FLIPS, clusters=clusters)
    return {
        "n": len(gap),
        "mean_a": float(x.mean()) if len(x) else math.nan,
        "mean_b": float(y.mean()) if len(y) else math.nan,
        "difference": value,
        "interval": None if math.isnan(low) else [low, high],
        "over": "items" if clusters is None else "clusters",
        "p_value": p,
        "test": "mcnemar" if paired else "sign-flip",
        "fixed": len(up),
        "broken": len(down),
        "flips": {"fixed": [rows[i].item for i in up], "broken": [rows[i].item for i in down]},
        "shares": bool(len(x) and min(x.min(), y.min()) >= 0 and max(x.max(), y.max()) <= 1),
        "p_same": statistics.same_p(gap, margin, clusters),
    }


def _sentence(row: dict[str, Any], margin: float) -> str:
    """What one comparison shows, by interval, p and corrected p together."""
    low, high = row["interval"] or (math.nan, math.nan)
    shown = direction({"p": row["p_value"], "p_holm": row["p_holm"], "diff_low": low, "diff_high": high})
    if row["shares"]:
        size, interval = f"{points(row['difference'])} points", f"[{low * 100:.1f}, {high * 100:.1f}]"
    else:
        size, interval = f"{abs(row['difference']):.3g}", f"[{low:.3g}, {high:.3g}]"
    interval = interval if row["interval"] else "[no variance]"
    if shown:
        verb = "beats" if (shown > 0) == row["higher"] else "loses to"
        return f"{row['a']} {verb} {row['b']} by {size} {interval}."
    if row["shares"] and row["p_same"] < statistics.ALPHA:
        return (
            f"{row['a']} is the same as {row['b']} within {within(margin)}: {_signed(row, size)} {interval}."
        )
    return f"{row['a']} cannot be told from {row['b']}: {_signed(row, size)} {interval}."


def _signed(row: dict[str, Any], size: str) -> str:
    return ("+" if row["difference"] >= 0 else "−") + size
