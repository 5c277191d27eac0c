"""The tables of comparisons: their columns, what depends on a family of tests, and how rows are read."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from c3po_bench.analysis import families, power, statistics
from c3po_bench.analysis.arms import REPEAT
from c3po_bench.analysis.config import POOLED as POOLED
from c3po_bench.masking import without_secrets

MACRO = "mean of tasks"
COLUMNS = {
    "arm": "str",
    "title": "str",  # the arm as a reader calls it
    "role": "str",  # base | method | baseline | control | ceiling
    "label": "str",  # the arm, with the settings in which it differs where several runs share an arm
    "run_id": "str",
    "base_run_id": "str",
    "backend": "str",
    "model": "str",
    "task": "str",
    "level": "str",  # task | group (tasks that are one benchmark) | pooled | macro
    "group": "str",  # of a task that is one of many in a benchmark: the benchmark
    "scope": "str",  # in | near | out for feedback tasks
    "n": "int64",
    "accuracy": "float64",
    "low": "float64",
    "high": "float64",
    "difference": "float64",
    "diff_low": "float64",
    "diff_high": "float64",
    "over": "str",  # what intervals generalize over: items | clusters (what items share), by t | seeds, by t
    "groups": "Int64",  # how many of these there are
    "p_mcnemar": "float64",  # exact; empty for real-valued scores
    "p": "float64",  # of `test`: what p_holm corrects
    "test": "str",  # mcnemar (mid-p) | sign-flip
    "p_holm": "float64",
    "p_max_t": "float64",  # step-down max-T by joint sign flips, over the same family
    "tests": "Int64",  # in the family that p_holm corrects for
    "fixed": "Int64",
    "broken": "Int64",
    "mde": "float64",  # what these items find with 80% power after correction for the number of tests
    "margin": "float64",  # within which two arms count as the same
    "p_same": "float64",  # of two one-sided tests that the difference lies within the margin
    "p_same_holm": "float64",
    "even": "float64",  # of an arm with several settings: difference on items of even hash, to choose by
    "odd": "float64",  # on the others, with its interval: to report of what was chosen
    "odd_low": "float64",
    "odd_high": "float64",
    "p_gold": "float64",  # mean probability of the right choice among the choices, under the scoring rule
    "gold_difference": "float64",  # to base, item by item, with its t interval
    "gold_low": "float64",
    "gold_high": "float64",
    "gold_p": "float64",  # of sign flips
    "gold_p_holm": "float64",
    "gold_note": "str",  # "not recomputable" where items have choices and the record no probabilities
    "by_seed": "str",  # of arms trained with several seeds as one experiment: each one's difference, in points
    "noise": "float64",  # share of items that base changes when it is asked again (base_again)
    "noise_floor": "float64",  # differences up to this are noise by construction
    "p_noise": "float64",  # of the arm changing as many items as base asked again
    "routing_ties": "Int64",  # of base_again: items with a routing tie within rounding, of the whole run
    "chance": "float64",  # accuracy of guessing; empty where answers are written or graded
    "no_verdict": "str",  # why the task carries none: neither base nor a ceiling is above chance
    "mostly": "str",  # of all items: the benchmark that makes up most of them
    "outdated": "str",  # "recorded with version 1, now 2": of the arm or its base; not in headline tables
    "seconds_per_item": "float64",
    "flops_per_item": "float64",
    "prompt_differs": "bool",
    "moved": "float64",  # of rewiring arms: share of the routing weight moved, total variation
    "tuning_edges": "str",  # choices on held-out references at the edge of what was tried
    "natural_spread": "float64",  # the same between the original pathways of two items of one task
}
CONTROL_COLUMNS = {
    "arm": "str",
    "label": "str",
    "run_id": "str",
    "control": "str",
    "change": "str",  # what the control does otherwise than the arm
    "not_due_to": "str",  # what a gain is not due to if the control has it, too
    "control_run_id": "str",
    "task": "str",
    "level": "str",
    "n": "int64",
    "difference": "float64",  # of the arm to its control
    "diff_low": "float64",
    "diff_high": "float64",
    "over": "str",
    "p": "float64",
    "test": "str",
    "p_holm": "float64",
    "fixed": "Int64",
    "broken": "Int64",
    "mde": "float64",
    "p_half": "float64",  # one-sided, of the control having no more than half of the arm's gain over base
    "p_half_holm": "float64",
    "outdated": "str",
}
CORRECTED = {"p": "p_holm", "p_same": "p_same_holm", "p_half": "p_half_holm", "gold_p": "gold_p_holm"}


def typed(
    rows: list[dict[str, Any]],
    columns: dict[str, str],
    *,
    primary: str | None = None,
    draws: int = statistics.DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """The rows as a frame of these columns, with all that depends on the family of each level.

    Corrected p, and the smallest gain that is found at the corrected level.
    """
    rows = [dict(row) for row in rows]
    by_level: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        level = "pooled" if row["level"] == "pooled" else "task" if row.get("group") else "benchmark"
        by_level.setdefault(level, []).append(row)
    for own in by_level.values():
        first = next((i for i, row in enumerate(own) if primary and _is_primary(row, primary)), None)
        for raw, corrected in CORRECTED.items():
            p = [row.get(raw, math.nan) if claims(row) else math.nan for row in own]
            for row, value in zip(own, families.holm(p, first if raw == "p" else None), strict=True):
                row[corrected] = value
        tests = sum(known(row.get("p")) and claims(row) for row in own)
        for place, row in enumerate(own):
            row["tests"] = tests if known(row.get("p")) and claims(row) else None
            others = 1 if place == first else max(1, tests - (first is not None))
            if "spread" in row:
                row["mde"] = power.gain_for(**row["spread"], alpha=statistics.ALPHA / others)
        if "p_max_t" in columns:
            _add_max_t(own, draws, seed)
    frame = pd.DataFrame(rows, columns=list(columns))
    for name, kind in columns.items():
        column = frame[name]
        if kind == "str":
            column = column.astype(object).where(column.notna(), "")
        frame[name] = column.astype(kind)  # type: ignore[call-overload]
    return frame


def claims(row: dict[str, Any]) -> bool:
    """Whether a row can carry a claim, so that tests are corrected for it: not base, asked once more."""
    return row.get("role") != REPEAT


def _is_primary(row: dict[str, Any], primary: str) -> bool:
    arm, _, task = primary.partition(":")
    return row["arm"] == arm and (
        row["task"] == task if task else row["level"] == "pooled" or not row.get("group")
    )


def _add_max_t(rows: list[dict[str, Any]], draws: int, seed: int) -> None:
    """Put the max-T p into each row with `flips`: over the rows of one base, times the number of bases."""
    by_base: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if "flips" in row and known(row.get("p", math.nan)) and claims(row):
            by_base.setdefault(row["base_run_id"], []).append(row)
    for own in by_base.values():
        p = families.max_t(np.stack([row["flips"] for row in own]), draws=draws, seed=seed)
        for row, value in zip(own, p, strict=True):
            row["p_max_t"] = min(1.0, float(value) * len(by_base))


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of `frame` as dictionaries, for code that reads them one by one."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def known(value: Any) -> bool:
    """Whether a cell of a table holds anything."""
    return value is not None and value is not pd.NA and value == value


def note(row: Mapping[str, Any], name: str) -> str:
    """The text in a cell that most rows leave empty."""
    value = row.get(name)
    return value if isinstance(value, str) else ""


def headlines(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of benchmarks and summaries, without the many tasks within a benchmark.

    Rows of another version than today's are left out until they are recorded again.
    """
    return [row for row in rows if not row.get("group") and not note(row, "outdated")]


FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet would compute: the texts in a table may come from anybody's task."""


def plain_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """A table for a CSV file: texts that begin like formulas, and names of columns, get an apostrophe before them."""

    def plain(value: Any) -> Any:
        formula = isinstance(value, str) and value.startswith(FORMULA)
        return "'" + value.replace("\r", " ") if formula else value

    return _mapped(frame, plain)


def masked_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """A table without the secrets that are known, its types kept."""
    cells = frame.select_dtypes(include=["object", "string"]).to_numpy().ravel()
    if all(without_secrets(text) == text for text in {cell for cell in cells if isinstance(cell, str)}):
        return frame
    changed = _mapped(frame, lambda value: without_secrets(value) if isinstance(value, str) else value)
    return changed.astype(dict(zip(changed.columns, frame.dtypes, strict=True)))


def _mapped(frame: pd.DataFrame, change: Callable[[Any], Any]) -> pd.DataFrame:
    texts = frame.select_dtypes(exclude="number").columns
    changed = frame.astype(dict.fromkeys(texts, object))
    changed[texts] = changed[texts].map(change)
    return changed.rename(columns=change)
