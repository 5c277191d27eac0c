"""What a store says as a whole.

Of feedback, arms in the order of S_overall, how well each follows and where it leaks.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from c3po_bench.analysis.arms import BASE, REPEAT, display_name, outdated_of
from c3po_bench.analysis.compare import trained_on_seeds
from c3po_bench.analysis.frames import known, note, records
from c3po_bench.analysis.measures import feedback_measures
from c3po_bench.analysis.pairing import Partners
from c3po_bench.analysis.statistics import ALPHA
from c3po_bench.analysis.verdict import direction, p_text, verdict_sentences
from c3po_bench.store.reader import Run, load_headroom

LEAK = 0.5
"""|score| from which an answer outside the scope is called a leak; rules give 0 or 1."""
MOST = 6  # sentences before the rest is only counted
PLACES = {"near": "near scope", "out": "out of scope"}
NONE_JUDGED = "none judged"
WORDS = {"in": "follows", "near": "leaks_near", "out": "leaks_out", "overall": "s_overall"}
"""What a score of 1 is called by scope: outside the scope of its feedback it is a leak."""
ARM_MEASURES = (
    *((name, scope, "score") for scope, name in reversed(WORDS.items())),
    *((name, "out", name) for name in ("drift", "repetition", "broken_ending", "length_ratio", "similarity")),
)
"""Columns of `arms_frame` with their scopes and measures: what should not change is measured out of scope."""


def conclusion(
    results_dir: str | Path, runs: Sequence[Run], compared: pd.DataFrame, controls: pd.DataFrame
) -> list[str]:
    """The sentences of the verdict, as console, report, W&B and `verify` give them.

    Args:
        results_dir: the store, for the headroom that was measured in it.
        runs: those that are shown.
        compared: `compare` of them.
        controls: `compare_controls` of them.
    """
    headroom = load_headroom(results_dir, runs)
    seeds = trained_on_seeds(results_dir)
    about = {row["run_id"] for row in records(compared) if row["scope"] and not note(row, "outdated")}
    feedback = overall_sentences([run for run in runs if run.run_id in about], seeds) if about else []
    return verdict_sentences(compared, controls, headroom and headroom["summary"], feedback)


def scores_of(measured: pd.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
    """The rows of `score` of `feedback_measures` over all feedbacks, by run and scope."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in records(measured):
        if row["measure"] == "score" and not row["feedback"]:
            found.setdefault(row["run_id"], {})[row["scope"]] = row
    return found


def arms_frame(runs: Sequence[Run], measured: pd.DataFrame, against: str | None = None) -> pd.DataFrame:
    """The paper's table: a row a run, base first, then the best S_overall; of other runs than feedback's nothing.

    Each of `ARM_MEASURES` has a column, and its bounds in `_low` and `_high`. `gap` is the paired difference
    in S_overall to the run named in `to`: the best, or that of the arm `against`; rows over training seeds
    have none, and neither have those that are `outdated` (recorded with another version), from whose colors
    nothing may be read.

    Args:
        runs: of one store.
        measured: `feedback_measures` of them.
        against: an arm or a run id.
    """
    rows: dict[str, dict[str, Any]] = {}
    for one in records(measured):
        if one["feedback"]:
            continue
        kept = ("arm", "title", "role", "label", "run_id", "over")
        row = rows.setdefault(one["run_id"], {name: one[name] for name in kept} | {"n": 0})
        row["n"] += one["n"] if one["measure"] == "score" and one["scope"] != "overall" else 0
        for name, scope, measure in ARM_MEASURES:
            if (scope, measure) == (one["scope"], one["measure"]):
                row |= {name: one["mean"], f"{name}_low": one["low"], f"{name}_high": one["high"]}
                row |= {f"{name}_p_holm": one["p_holm"], f"{name}_sign": direction(one)}
    partners, seeds = Partners(runs), any(row["over"] == "seeds" for row in rows.values())
    for run in (run for run in runs if run.run_id in rows):
        row = rows[run.run_id]
        row["outdated"] = outdated_of(run, partners.beside(run, BASE) or run)
        if row["over"] != "seeds":
            row |= {f"{WORDS[s]}_count": f"{leaks} of {n}" for s, (leaks, n) in count_leaks(run).items()}
        row |= {f"{WORDS[scope]}_count": NONE_JUDGED for scope in unjudged_scopes(run)}
    ordered = sorted(rows.values(), key=lambda row: (row["arm"] != BASE, -row.get("s_overall", -math.inf)))
    tuned = [row for row in ordered if row["arm"] not in (BASE, REPEAT) and not row["outdated"]]
    others = [row for row in tuned if "s_overall" in row]
    to = against or (others[0]["run_id"] if len(others) > 1 else None)
    if to is not None and not seeds:
        ids = {row["run_id"] for row in tuned}
        about = [run for run in runs if run.run_id in ids]
        for name, scopes in scores_of(feedback_measures(about, to)).items():
            if "overall" in scopes and known(scopes["overall"]["difference"]):
                row, gap = rows[name], scopes["overall"]
                row |= {"gap": gap["difference"], "gap_low": gap["diff_low"], "gap_high": gap["diff_high"]}
                row |= {"gap_p": gap["p"], "gap_p_holm": gap["p_holm"]}
                row["to"] = next((display_name(r) for r in others if to in (r["run_id"], r["arm"])), to)
    numbers = [
        f"{name}{end}" for name, *_ in ARM_MEASURES for end in ("", "_low", "_high", "_p_holm", "_sign")
    ]
    texts = [f"{WORDS[scope]}_count" for scope in ("in", *PLACES)]
    names = [
        "arm",
        "title",
        "role",
        "label",
        "run_id",
        "outdated",
        "n",
        "over",
        *numbers,
        *texts,
        "to",
        "gap",
    ]
    return pd.DataFrame(ordered, columns=[*names, "gap_low", "gap_high", "gap_p", "gap_p_holm"])


def by_scope(frame: pd.DataFrame) -> pd.DataFrame:
    """An ablation table whose accuracies of feedback have the names of what they are: follows, leaks_near, leaks_out."""
    scoped = (frame["metric"] == "acc") & frame["scope"].isin(list(WORDS))
    return frame.assign(metric=frame["metric"].where(~scoped, frame["scope"].map(WORDS.get)))


def unjudged_scopes(run: Run) -> set[str]:
    """The scopes of which the run answered prompts, and none of the answers was judged."""
    judged: dict[str, bool] = {}
    for row in run.samples():
        if (scope := row.get("scope")) in WORDS:
            judged[scope] = judged.get(scope, False) or row.get("score") is not None
    return {scope for scope, any_was in judged.items() if not any_was}


def count_leaks(run: Run) -> dict[str, tuple[int, int]]:
    """By scope near and out: how many judged answers follow the feedback though it does not apply, and of how many."""
    counts: dict[str, tuple[int, int]] = {}
    for row in run.samples():
        if (scope := row.get("scope")) in PLACES and row.get("score") is not None:
            leaks, judged = counts.get(scope, (0, 0))
            counts[scope] = leaks + (abs(row["score"]) >= LEAK), judged + 1
    return counts


def overall_sentences(runs: Sequence[Run], seeds: bool = False, draws: int = 10_000) -> list[str]:
    """A sentence for each feedback arm, the best S_overall first; nothing where no arm has one.

    The best is told from the others by their paired difference in S_overall, corrected for their number.

    Args:
        runs: of one store.
        seeds: whether the runs of an arm are its training seeds. They have one sentence, and arms are not
            tested against each other.
        draws: sign flips of the tests.
    """
    tuned = [run for run in runs if run.arm not in (BASE, REPEAT)]
    own = scores_of(feedback_measures(runs, draws=draws, one_row=seeds))
    named = {run.run_id: run for run in tuned if "overall" in own.get(run.run_id, {})}
    if not named:
        return []
    ordered = sorted(named, key=lambda name: -own[name]["overall"]["mean"])
    if seeds:
        return [_over_seeds(own[name]) for name in ordered]
    best, *others = ordered
    apart = (
        scores_of(feedback_measures([named[name] for name in ordered], best, draws=draws)) if others else {}
    )
    first = own[best]
    title = display_name(first["overall"])
    sentences = [
        f"Best by S_overall (0.5 is base, 1 is perfect): {title} with {_score(first['overall'])}. "
        f"{_follows(first['in'])}, and leaks {_leaks(named[best])}."
    ]
    for name in others[: MOST - 1]:
        row = apart[name]["overall"]
        if not known(row["difference"]):  # other prompts
            sentences.append(
                f"{_upper(display_name(row))} has {_score(own[name]['overall'])} on other prompts."
            )
            continue
        gap = f"{row['difference']:+.2f} [{row['diff_low']:.2f}, {row['diff_high']:.2f}]".replace("-", "−")
        holm = f", p {p_text(row['p_holm'])} after correction" if known(row["p_holm"]) else ""
        standing = "lower" if direction(row) < 0 else f"not told apart from {title} at this size"
        holm += disagreement(row)
        scopes = own[name]
        sentences.append(
            f"{_upper(display_name(scopes['overall']))} has {_score(scopes['overall'])}, {standing} ({gap}{holm}). "
            f"{_follows(scopes['in'])}, and leaks {_leaks(named[name])}."
        )
    if left := len(others) - len(others[: MOST - 1]):
        sentences.append(f"{left} more have a lower S_overall.")
    return sentences


def disagreement(row: dict[str, Any]) -> str:
    """Why a difference in S_overall is not called one although its interval excludes 0; else nothing.

    The interval is of S_overall itself: each scope varies about its own mean. Sign flips ask whether any
    prompt changes at all: a gain in scope and leaks outside, however steady, partly cancel in S_overall, and
    count in full as spread.
    """
    if direction(row) or not (known(row["diff_low"]) and (row["diff_low"] > 0 or row["diff_high"] < 0)):
        return ""
    if row["p"] < ALPHA:
        return f", {p_text(row['p'])} before: the interval, which is not corrected, excludes 0"
    return (
        f", {p_text(row['p'])} before: the interval excludes 0, sign flips do not tell, since they take what cancels between "
        "scopes for spread"
    )


def _over_seeds(scopes: dict[str, dict[str, Any]]) -> str:
    parts = ", ".join(f"S_{scope} {_score(scopes[scope])}" for scope in ("in", *PLACES) if scope in scopes)
    overall = scopes["overall"]
    return f"{_upper(display_name(overall))} has S_overall {_score(overall)} over {overall['over']} ({parts}); base has 0.50."


def _score(row: dict[str, Any]) -> str:
    interval = f" [{row['low']:.2f}, {row['high']:.2f}]" if known(row["low"]) else ""
    return f"{row['mean']:.2f}{interval}"


def _follows(row: dict[str, Any]) -> str:
    if direction(row) > 0:
        return f"It follows the feedback in scope (S_in {_score(row)})"
    if direction(row) < 0:
        return f"It goes against the feedback in scope (S_in {_score(row)})"
    return f"It is not shown to follow the feedback in scope (S_in {_score(row)})"


def _leaks(run: Run) -> str:
    counts = count_leaks(run)
    parts = [
        f"in {counts[s][0]} of {counts[s][1]} answers {where}" for s, where in PLACES.items() if s in counts
    ]
    return " and ".join(parts)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
