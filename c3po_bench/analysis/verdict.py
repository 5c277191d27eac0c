"""What a comparison says, in plain sentences: for the top of the report and of the console's table."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from c3po_bench.analysis.arms import METHODS, REPEAT, display_name, settings_text
from c3po_bench.analysis.families import expected_excess, shrunken
from c3po_bench.analysis.footing import footing_sentences
from c3po_bench.analysis.frames import known, note, records
from c3po_bench.analysis.gold import gold_sentence
from c3po_bench.analysis.movement import movement_sentences
from c3po_bench.analysis.noise import noise_note, noise_sentences, within_noise
from c3po_bench.analysis.sensitivity import add_sensitivity
from c3po_bench.analysis.statistics import ALPHA, Z

WHERE = {"in": "in scope", "near": "near scope", "out": "out of scope"}
FOLLOWS = {
    1: "follows the feedback",
    0: "is not shown to follow the feedback",
    -1: "goes against the feedback",
}
FOLLOWS_REST = {1: "follow the feedback", 0: "not shown to follow the feedback", -1: "against it"}
BASE_REST = {1: "beat base", 0: "cannot be told from base", -1: "lose to base"}
MOST = 6  # sentences about arms before the rest is only counted; what loses always has one
MANY = 3  # settings of one arm that have a sentence each; more are summed up


def points(value: float) -> str:
    """A difference of accuracies in percentage points, one decimal, without a signed zero."""
    return f"{abs(value) * 100:.1f}"


def bracket(low: float, high: float) -> str:
    """An interval of accuracies in percentage points."""
    return f"[{low * 100:.1f}, {high * 100:.1f}]" if low == low else "[no variance]"


def gap_bracket(row: dict[str, Any]) -> str:
    """The interval of a row's difference; of two training seeds, which have none, each one's difference."""
    if not known(row["diff_low"]) and len(note(row, "by_seed").split()) == 2:
        return f"[two seeds: {note(row, 'by_seed')}]"
    return bracket(row["diff_low"], row["diff_high"])


def p_text(p: float) -> str:
    """A p-value with two digits, or an upper bound when it is tiny."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def amount(value: float, digits: int = 2) -> str:
    """A cost to so many digits, large ones in full instead of as a power of ten."""
    return f"{value:,.0f}" if value >= 10**digits - 0.5 else f"{value:.{digits}g}"


def direction(row: dict[str, Any]) -> int:
    """1 where a difference is shown to be above 0, -1 below, 0 where neither.

    Interval, p and p corrected for the number of tests must agree, so all be there, and the difference must
    be above the noise floor where that was measured. Where neither base nor a ceiling is above chance nothing
    is. Whatever is called a gain or a loss, in sentences, stars and colors, is called so by this.
    """
    if not (row["p"] < ALPHA and row["p_holm"] < ALPHA) or within_noise(row) or note(row, "no_verdict"):
        return 0
    return int(row["diff_low"] > 0) - int(row["diff_high"] < 0)


def within(margin: float) -> str:
    """The margin of sameness as a reader says it: "1 point", "0.5 points"."""
    return f"{margin * 100:g} point{'s' * (margin != 0.01)}"


def verdict(
    frame: pd.DataFrame, controls: pd.DataFrame | None = None, headroom: dict[str, Any] | None = None
) -> str:
    """Plain words over the rows of `compare` and `compare_controls`.

    What beat its base, and what its controls say. `headroom` is the summary of what re-routing could give on
    the same items, where it was measured: it tells whether the oracle's gap can be a measure of anything.
    """
    return " ".join(verdict_sentences(frame, controls, headroom))


def verdict_sentences(
    frame: pd.DataFrame,
    controls: pd.DataFrame | None = None,
    headroom: dict[str, Any] | None = None,
    feedback: Sequence[str] = (),
) -> list[str]:
    """The same, sentence by sentence.

    `feedback` are those of `overall.overall_sentences`, where there are any.
    """
    if frame.empty:
        return ["Nothing to compare yet: no finished run has a base run beside it."]
    every, over = records(frame), [] if controls is None else records(controls)
    rows, over = ([row for row in part if not note(row, "outdated")] for part in (every, over))
    add_sensitivity(rows)
    spoken = [row for row in summary_rows(rows) if not note(row, "no_verdict")]
    sentences = list(feedback) or _feedback([row for row in rows if row["scope"]])
    sentences += _accuracy(spoken, over, headroom)
    sentences += footing_sentences([row for row in summary_rows(rows) if known(row["difference"])])
    for part in ([row for row in rows if row["scope"]], summary_rows(rows)):
        sentences += noise_sentences(part, WHERE)
    left_out = {display_name(row): row["outdated"] for row in every if note(row, "outdated")}
    if left_out:
        listed = ", ".join(f"{name} ({why})" for name, why in left_out.items())
        sentences.append(f"Left out until they are recorded again: {listed}.")
    return sentences or ["Nothing stands beside base: no other arm was run, or none can be compared with it."]


def summary_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The row that speaks for each run: over all items where it has several alike tasks, else its task."""
    several = {row["run_id"] for row in rows if row["level"] == "pooled"}
    alike = [row for row in rows if not row["scope"]]
    return [row for row in alike if row["level"] == ("pooled" if row["run_id"] in several else "task")]


def _accuracy(
    rows: list[dict[str, Any]], over: list[dict[str, Any]], headroom: dict[str, Any] | None
) -> list[str]:
    own = {row["run_id"]: row for row in rows}

    def against(row: dict[str, Any]) -> list[str]:
        controls = [o for o in over if (o["run_id"], o["task"]) == (row["run_id"], row["task"])]
        if not direction(row):
            return _as_well(row, [own[o["control_run_id"]] for o in controls if o["control_run_id"] in own])
        return [_against_control(row, control, own.get(control["control_run_id"])) for control in controls]

    compared = [row for row in rows if known(row["difference"])]
    methods = sorted((r for r in compared if r["role"] in METHODS), key=lambda row: -row["difference"])
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for row in methods:
        by_arm.setdefault(row["arm"], []).append(row)
    spoken: list[tuple[str, list[dict[str, Any]]]] = []  # a sentence, and the runs that it is about
    for runs in by_arm.values():
        spoken += (
            [(_method(r, against(r)), [r]) for r in runs] if len(runs) <= MANY else [(_sweep(runs), runs)]
        )
    spoken.sort(key=lambda pair: -pair[1][0]["difference"])
    sentences, left = [], []
    for place, (sentence, runs) in enumerate(spoken):
        if place < MOST or len(runs) == 1 and direction(runs[0]) < 0:
            sentences.append(sentence)
        else:
            left += runs
    sentences += _rest([direction(row) for row in left], BASE_REST)
    proper = [row for row in methods if row["role"] == "method"][:MOST]
    sentences += movement_sentences(proper, display_name)
    sentences += [
        f"The choice for {display_name(row)} on held-out references lies at the edge of what was tried: "
        f"{row['tuning_edges']}. A wider search might find a better one."
        for row in rows
        if known(row["tuning_edges"]) and row["tuning_edges"]
    ][:MOST]
    ceilings = [row for row in compared if row["role"] == "ceiling"][:MANY]
    sentences += [
        f"{_name(row)}, a ceiling that knows what no method may know: {_signed(row)}." for row in ceilings
    ]
    return sentences + _gap(headroom or {}, methods, ceilings)


def _gap(
    headroom: dict[str, Any], methods: list[dict[str, Any]], ceilings: list[dict[str, Any]]
) -> list[str]:
    """What the best method has of the oracle's gap.

    Where descent reaches any option, that this means nothing.
    """
    oracle = next((row for row in ceilings if row["arm"] == headroom.get("oracle_arm")), None)
    if oracle is None:
        return []
    if headroom["oracle_is_a_measure"]:
        best = next((row for row in methods if row["difference"] > 0), None)
        if best is None or not direction(oracle) > 0:
            return []
        share = best["difference"] / oracle["difference"]
        return [f"{_name(best)} closes {share:.2f} of the oracle's gap."]
    some = "_when_wrong" if headroom["h_wrong_when_wrong"] is not None else ""
    true, wrong = (f"{headroom[name + some] * 100:.1f}%" for name in ("h_true", "h_wrong"))
    where = " of the items that base has wrong" if some else " of the items"
    return [
        "The oracle's gap is no measure of a method: its descent makes the true option the choice on "
        f"{true}{where}, and others on {wrong}."
    ]


def _rest(shown: list[int], words: dict[int, str]) -> list[str]:
    """A sentence on runs that are only counted, by the direction that they show."""
    counts = ", ".join(f"{shown.count(way):,} {what}" for way, what in words.items() if way in shown)
    return [f"Of {len(shown):,} more: {counts}."] if shown else []


def _sweep(runs: list[dict[str, Any]]) -> str:
    """One arm under many settings.

    How many hold after correction; and of the best, which was picked afterwards, what would be left of it.
    """
    shown, cells, best = [direction(row) for row in runs], len(runs), runs[0]
    sentence = (
        f"{best['title']} under {cells:,} settings: {shown.count(1):,} beat base after correction for all of "
        f"them, {shown.count(-1):,} lose; the largest difference, {_signed(best)} with {_settings(best)}, "
        "was picked after the fact."
    )
    widths = [row["diff_high"] - row["diff_low"] for row in runs if known(row["diff_low"])]
    if widths:
        se = fmean(widths) / (2 * Z)
        left = float(shrunken([row["difference"] for row in runs], se)[0])
        excess = points(expected_excess(cells) * se)
        sentence += f" Of {cells:,} equal cells the best would show up to {excess} points by chance; "
        sentence += f"shrunken to the mean of all it is {_plus(left)} points."
    if all(known(row["even"]) and known(row["odd"]) for row in runs):
        picked = min(runs, key=lambda row: (-row["even"], row["label"]))  # ties: not by the other half
        rest = f"{_plus(picked['odd'])} points {bracket(picked['odd_low'], picked['odd_high'])}"
        sentence += f" Chosen on half of the items, {_settings(picked)} shows {rest} on the other half."
    return sentence


def _settings(row: dict[str, Any]) -> str:
    return settings_text(row).strip().removeprefix("(").replace(")", "", 1)


def _method(row: dict[str, Any], against: list[str]) -> str:
    name, interval = _name(row), gap_bracket(row)
    other = gold_sentence(row, direction(row))
    if shown := direction(row):
        verb = "beats" if shown > 0 else "loses to"
        sentence = f"{name} {verb} base by {points(row['difference'])} points {interval}{_holm(row)}"
        return "; ".join([sentence + other, *(against if shown > 0 else [])]) + "."
    seen = ""
    if known(row["mde"]):
        seen = f"; with {row['n']} items, only gains above about {points(row['mde'])} points are detectable"
    same, other = row["p_same_holm"] < ALPHA, other + note(row, "sensitivity")
    if row["fixed"] == 0 and row["broken"] == 0:
        return f"{name} scores every item as base does{_same(row) if same else seen}{other}."
    if same:
        return f"{name} is the same as base within {within(row['margin'])}: {_signed(row)}{other}."
    outside = ""
    if row["diff_low"] > 0 or row["diff_high"] < 0:
        outside = f", p {p_text(row['p'])}" if not row["p"] < ALPHA else _holm(row)
    parts = [f"{name} cannot be told from base: {_signed(row)}{outside}", *against]
    return f"{'; '.join(parts)}{seen}{noise_note(row)}{other}."


def _as_well(row: dict[str, Any], controls: list[dict[str, Any]]) -> list[str]:
    """The controls of an arm that is not shown to gain which do at least as well, in words.

    Nothing without any.
    """
    ahead = sorted(
        (c for c in controls if c["difference"] >= row["difference"]), key=lambda c: -c["difference"]
    )
    if not ahead or not row["difference"] > 0:
        return []
    listed = ", ".join(f"{display_name(control)} ({_plus(control['difference'])})" for control in ahead)
    return [f"control{'s' * (len(ahead) > 1)} that do{'es' * (len(ahead) == 1)} as well: {listed}"]


def _same(row: dict[str, Any]) -> str:
    return f", and is the same within {within(row['margin'])}"


def _name(row: dict[str, Any]) -> str:
    """The row's name at the beginning of a sentence."""
    name = display_name(row)
    return name[:1].upper() + name[1:]


def _holm(row: dict[str, Any]) -> str:
    p = row["p_holm"]
    if math.isnan(p):
        return ""
    weight = "" if p < ALPHA else ", which does not hold after correction for the number of tests"
    return f" (Holm p {p_text(p)}{weight})"


def _against_control(row: dict[str, Any], over: dict[str, Any], control: dict[str, Any] | None) -> str:
    """An arm that beats base against one control.

    `over` is their difference, `control` the control's own row.
    """
    change, gap = over["change"], f"difference {_signed(over)}"
    if shown := direction(over):
        verb = "beats" if shown > 0 else "loses to"
        interval = bracket(over["diff_low"], over["diff_high"])
        return f"{verb} {change} by {points(over['difference'])} {interval}{_holm(over)}"
    if over["p_half_holm"] < ALPHA:
        p = p_text(over["p_half_holm"])
        return (
            f"with {change} it gains more than half as much ({gap}, p {p}): most is not {over['not_due_to']}"
        )
    if control and direction(control) > 0:
        gains = f"{_signed(control)} over base; {gap}"
        return f"with {change} it gains, too ({gains}): the gain need not be {over['not_due_to']}"
    return f"it cannot be told from {change} ({gap})"


def _plus(value: float) -> str:
    """A signed difference in percentage points."""
    return ("+" if value >= 0 else "−") + points(value)


def _signed(row: dict[str, Any]) -> str:
    return f"{_plus(row['difference'])} points {gap_bracket(row)}"


def _feedback(rows: list[dict[str, Any]]) -> list[str]:
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if known(row["difference"]) and row.get("role") != REPEAT:
            runs.setdefault(row["run_id"], {})[row["scope"]] = row
    ordered = sorted(
        runs.values(), key=lambda scopes: -scopes["in"]["difference"] if "in" in scopes else math.inf
    )
    follows = [direction(scopes["in"]) if "in" in scopes else 0 for scopes in ordered]
    sentences = []
    for scopes, shown in list(zip(ordered, follows, strict=True))[:MOST]:
        differences = [f"{_signed(row)} {WHERE.get(scope, scope)}" for scope, row in scopes.items()]
        leaks = any(direction(scopes[scope]) > 0 for scope in ("near", "out") if scope in scopes)
        tail = ": it leaks where it should not apply" if leaks else ""
        name = _name(next(iter(scopes.values())))
        sentences.append(f"{name} {FOLLOWS[shown]}, against base, {', '.join(differences)}{tail}.")
    return sentences + _rest(follows[MOST:], FOLLOWS_REST)
