"""Which two runs may be compared, their items side by side, or in words why not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from c3po_bench.analysis.roles import BASE, controls_of, role
from c3po_bench.analysis.scores import Scores
from c3po_bench.errors import UserError

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run


RECORDED = (
    "arm",
    "backend",
    "model",
    "tasks",
    "limit",
    "scoring",
    "seed",
    "settings",
)  # where a run has no identity


class Pair(NamedTuple):
    """Aligned scores of a run and its base; every array is ``[items]``."""

    arm: Scores
    base: Scores


def run_labels(runs: Sequence[Run], *, without: Sequence[str] = ()) -> dict[str, str]:
    """A readable, distinct name by run id.

    The arm, and the settings (`without` these) that tell runs of one arm apart.
    """
    labels: dict[str, str] = {}
    by_arm: dict[str, list[Run]] = {}
    for run in runs:
        by_arm.setdefault(run.arm, []).append(run)
    for arm, group in by_arm.items():
        varied = [key for key in varied_settings(group) if key not in without]
        for run in group:
            settings = _settings(run)
            parts = [f"{key}={settings[key]}" for key in varied if settings.get(key) is not None]
            labels[run.run_id] = f"{arm} ({', '.join(parts)})" if parts else arm
        if len({labels[run.run_id] for run in group}) < len(group):
            for run in group:
                labels[run.run_id] += f" [{run.run_id.rpartition('-')[2][:6]}]"
    return labels


def varied_settings(runs: Iterable[Run]) -> list[str]:
    """The settings, and parts of what was scored, that take more than one value over `runs`."""
    values: dict[str, set[str]] = {}
    flat = [_settings(run) for run in runs]
    for settings in flat:
        for key in settings:
            values.setdefault(key, set())
    for settings in flat:
        for key, seen in values.items():
            seen.add(repr(settings.get(key)))
    return [key for key, seen in values.items() if len(seen) > 1]


def _settings(run: Run) -> dict[str, Any]:
    """The arm's settings beside what it was scored on, under short names."""
    scored = {name: run.result.get(name) for name in ("model", "seed", "limit")}
    scoring = {
        name: str(value) for name, value in (run.result.get("scoring") or {}).items() if name not in scored
    }
    return (run.result.get("settings") or {}) | scored | scoring


class Partners:
    """Finds each run's base among `runs`, one with the same comparison key, and its controls."""

    def __init__(self, runs: Sequence[Run]) -> None:
        """Index `runs` by comparison key and arm."""
        self.bases = [run for run in runs if run.arm == BASE]
        self.arms = {run.arm for run in runs}
        self.by_key: dict[tuple[str, str], list[Run]] = {}
        self.by_identity = {
            (identity(run, "arm"), run.arm): run for run in runs if role(run.arm) == "control"
        }
        for run in runs:
            self.by_key.setdefault((str(run.result.get("comparison_key")), run.arm), []).append(run)

    def base(self, run: Run) -> Run:
        """The base run to compare `run` with. Raises UserError with the reason where there is none."""
        if run.arm == BASE:
            return run
        found = self.by_key.get((str(run.result.get("comparison_key")), BASE))
        if found:
            own = _made_by(run)
            return max(
                found, key=lambda other: sum(a == b for a, b in zip(_made_by(other), own, strict=True))
            )
        if not self.bases:
            raise UserError(f"run {run.run_id} has no base run beside it; run the experiment with arm 'base'")
        nearest = self.bases[0]
        reason = difference(run, nearest)
        raise UserError(f"run {run.run_id} cannot be compared with {nearest.run_id}: {reason}")

    def beside(self, run: Run, other: str) -> Run | None:
        """The run with id `other`, or that of arm `other`, that `run` may be compared with.

        None where there is none.

        Raises UserError where several runs of the arm could be meant (of several bases the nearest is taken).
        """
        key = str(run.result.get("comparison_key"))
        found = [
            one
            for (of, arm), runs in self.by_key.items()
            if of == key
            for one in runs
            if other in (arm, one.run_id)
        ]
        if other == BASE:
            return self.base(run) if found else None
        if len(found) > 1:
            named = ", ".join(sorted(one.run_id for one in found))
            raise UserError(f"{len(found)} runs of arm {other} could be meant: give the id of one ({named})")
        return found[0] if found else None

    def controls(self, run: Run) -> list[Run]:
        """The controls that ran beside `run`, the strictest first: alike in everything but the arm."""
        names = [name for name in controls_of(run.arm) if name in self.arms]
        keys = [(identity(run, "arm"), name) for name in names]
        return [self.by_identity[key] for key in keys if key in self.by_identity]


def _made_by(run: Run) -> list[Any]:
    """What may differ between two bases of one comparison: the nearest one is taken."""
    whole = run.provenance.get("identity") or {}
    return [whole.get(name) for name in ("backend", "engine", "plugins")]


def identity(run: Run, *without: str) -> str:
    """Everything that can change a run's numbers, as one key; `without` these parts, wherever they stand."""
    whole = run.provenance.get("identity") or {name: run.result.get(name) for name in RECORDED}
    return json.dumps(_without(whole, without), sort_keys=True, default=str)


def _without(part: Any, names: tuple[str, ...]) -> Any:
    if not isinstance(part, dict):
        return part
    return {name: _without(value, names) for name, value in part.items() if name not in names}


def difference(run: Run, base: Run) -> str:
    """In words, what makes two runs' numbers incomparable."""
    a, b = run.result, base.result
    for name in ("model", "scoring", "tasks", "limit", "seed"):
        if a.get(name) != b.get(name):
            return f"{name} differs ({a.get(name)} against {b.get(name)})"
    ours, theirs = run.provenance.get("data_hashes") or {}, base.provenance.get("data_hashes") or {}
    changed = sorted(t for t in ours.keys() & theirs.keys() if ours[t] != theirs[t])
    if changed:
        return f"the data of {', '.join(changed)} differ"
    return "their comparison keys differ"


def align(run: Run, base: Run, scores: Scores, others: Scores) -> Pair:
    """Pair two runs' items. Raises UserError where items, data, prompts or scoring rules are not the same."""
    if run.run_id == base.run_id:
        return Pair(scores, others)
    reason = _records_differ(run, base) or _items_differ(scores, others)
    if not reason and not prompt_differs(run) and not prompt_differs(base):
        reason = _prompts_differ(scores, others)
    if reason:
        raise UserError(f"run {run.run_id} cannot be compared with {base.run_id}: {reason}")
    return Pair(scores, others)


def prompt_differs(run: Run) -> bool:
    """Whether the run declares that its prompts are not the base's by nature (in-context feedback)."""
    return bool((run.result.get("settings") or {}).get("prompt_differs"))


def _records_differ(run: Run, base: Run) -> str:
    ours, theirs = run.provenance.get("data_hashes") or {}, base.provenance.get("data_hashes") or {}
    if (
        run.result.get("comparison_key") != base.result.get("comparison_key")
        or run.result.get("scoring") != base.result.get("scoring")
        or any(ours[t] != theirs[t] for t in ours.keys() & theirs.keys())
    ):
        return difference(run, base)
    return ""


def _items_differ(scores: Scores, others: Scores) -> str:
    same = len(scores.task) == len(others.task) and bool(
        (scores.task == others.task).all() and (scores.doc_id == others.doc_id).all()
    )
    if not same:
        ours = set(zip(scores.task.tolist(), scores.doc_id.tolist(), strict=True))
        theirs = set(zip(others.task.tolist(), others.doc_id.tolist(), strict=True))
        only = f"{len(ours - theirs)} only in the one, {len(theirs - ours)} only in the other"
        return f"they answered other items ({only})"
    return _first_change("items differ in content", scores, scores.doc_hash != others.doc_hash)


def _prompts_differ(scores: Scores, others: Scores) -> str:
    found = _first_change("prompts differ", scores, scores.prompt_hash != others.prompt_hash)
    way_out = "; an arm that is meant to change the prompt says so with settings.prompt_differs"
    return found + way_out if found else ""


def _first_change(what: str, scores: Scores, changed: np.ndarray) -> str:
    if not changed.any():
        return ""
    i = int(np.flatnonzero(changed)[0])
    return f"{int(changed.sum())} {what}, first {scores.task[i]}/{scores.doc_id[i]}"
