"""Which two runs may be compared, item by item, or in words why not; and what each run is called."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from c3po_bench.analysis.arms import BASE, arm_of, prompt_differs
from c3po_bench.analysis.scores import Scores
from c3po_bench.errors import UserError
from c3po_bench.store.reader import Run

NEAREST = ("backend", "engine", "plugins")
"""What may differ between two bases of one comparison: a run goes with the base that shares most."""

OWN = ("arm", "version")
"""What an arm and its controls, alike in everything else, need not share."""


def run_labels(runs: Sequence[Run], *, without: Sequence[str] = ()) -> dict[str, str]:
    """A readable, distinct name for each run, by its id.

    It is the arm, with the settings (`without` these) in which runs of one arm differ.
    """
    labels: dict[str, str] = {}
    by_arm: dict[str, list[Run]] = {}
    for run in runs:
        by_arm.setdefault(run.arm, []).append(run)
    for arm, group in by_arm.items():
        settings = {run.run_id: _settings(run) for run in group}
        names = dict.fromkeys(name for own in settings.values() for name in own if name not in without)
        varied = [n for n in names if len({repr(own.get(n)) for own in settings.values()}) > 1]
        for run_id, own in settings.items():
            parts = [f"{name}={own[name]}" for name in varied if own.get(name) is not None]
            labels[run_id] = f"{arm} ({', '.join(parts)})" if parts else arm
        if len({labels[run_id] for run_id in settings}) < len(group):
            for run_id in settings:
                labels[run_id] += f" [{run_id.rpartition('-')[2][:6]}]"
    return labels


def _settings(run: Run) -> dict[str, Any]:
    """The arm's settings beside what it was scored on, under short names."""
    scored = {name: run.result[name] for name in ("model", "seed", "limit")}
    scoring = {name: str(value) for name, value in run.result["scoring"].items() if name not in scored}
    return run.result["settings"] | scored | scoring


class Partners:
    """Finds each run's base among `runs`, one with the same comparison key, and its controls."""

    def __init__(self, runs: Sequence[Run]) -> None:
        """Index `runs` by comparison key and arm, and controls by everything but the arm."""
        self.bases = [run for run in runs if run.arm == BASE]
        self.by_key: dict[tuple[str, str], list[Run]] = {}
        self._controls: dict[str, dict[tuple[str, str], Run]] = {}  # by the arm they are a control of
        for run in runs:
            self.by_key.setdefault((run.result["comparison_key"], run.arm), []).append(run)
            if of := arm_of(run).control_of:
                self._controls.setdefault(of, {})[run.arm, identity(run, *OWN)] = run

    def base(self, run: Run) -> Run:
        """The base run to compare `run` with. Raises UserError with the reason where there is none."""
        if run.arm == BASE:
            return run
        if bases := self.by_key.get((run.result["comparison_key"], BASE)):
            return max(
                bases, key=lambda base: sum(_whole(base).get(n) == _whole(run).get(n) for n in NEAREST)
            )
        if not self.bases:
            raise UserError(f"run {run.run_id} has no base run beside it; run the experiment with arm 'base'")
        nearest = self.bases[0]
        raise UserError(
            f"run {run.run_id} cannot be compared with {nearest.run_id}: {difference(run, nearest)}"
        )

    def beside(self, run: Run, other: str) -> Run | None:
        """The run with id `other`, or that of arm `other`, that `run` may be compared with; None without one.

        Raises UserError where several runs of the arm could be meant (of several bases the nearest is taken).
        """
        key = run.result["comparison_key"]
        alike = [one for (of, _), runs in self.by_key.items() if of == key for one in runs]
        matches = [one for one in alike if other in (one.arm, one.run_id)]
        if other == BASE:
            return self.base(run) if matches else None
        if len(matches) > 1:
            ids = ", ".join(sorted(one.run_id for one in matches))
            raise UserError(f"{len(matches)} runs of arm {other} could be meant: give the id of one ({ids})")
        return matches[0] if matches else None

    def against(self, run: Run, other: str) -> Run:
        """The run that `run` is compared with: its base, or the one of arm or id `other`.

        Raises UserError where there is none, or several could be meant.
        """
        if other == BASE:
            return self.base(run)
        if found := self.beside(run, other):
            return found
        arms = sorted({arm for _, arm in self.by_key})
        raise UserError(f"no run of arm {other} beside {run.run_id}; arms of this store: {', '.join(arms)}")

    def controls(self, run: Run) -> list[Run]:
        """The controls that ran beside `run`, the strictest first: alike in everything but the arm."""
        controls = self._controls.get(run.arm, {})
        alike = identity(run, *OWN) if controls else ""
        matches = [control for (_, other), control in controls.items() if other == alike]
        return sorted(matches, key=lambda control: arm_of(control).place)


def _whole(run: Run) -> dict[str, Any]:
    return run.provenance["identity"]


def identity(run: Run, *without: str) -> str:
    """Everything that can change a run's numbers, as one key; `without` these parts, wherever they stand."""

    def part(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: part(inner) for name, inner in value.items() if name not in without}

    return json.dumps(part(_whole(run)), sort_keys=True, default=str)


def difference(run: Run, base: Run) -> str:
    """In words, what makes two runs' numbers incomparable."""
    for name in ("model", "scoring", "tasks", "limit", "seed"):
        ours, theirs = run.result[name], base.result[name]
        if ours != theirs:
            return f"{name} differs ({ours} against {theirs})"
    changed = _changed_data(run, base)
    return f"the data of {', '.join(changed)} differ" if changed else "their comparison keys differ"


def _changed_data(run: Run, base: Run) -> list[str]:
    ours, theirs = run.provenance["data_hashes"], base.provenance["data_hashes"]
    return sorted(task for task in ours.keys() & theirs.keys() if ours[task] != theirs[task])


def check_comparable(run: Run, base: Run, scores: Scores, others: Scores) -> None:
    """Raise UserError where the two runs' items, data, prompts or scoring rules are not the same."""
    if run.run_id == base.run_id:
        return
    if reason := next(_reasons(run, base, scores, others), ""):
        raise UserError(f"run {run.run_id} cannot be compared with {base.run_id}: {reason}")


def _reasons(run: Run, base: Run, scores: Scores, others: Scores) -> Iterator[str]:
    same = all(run.result[name] == base.result[name] for name in ("comparison_key", "scoring"))
    if not same or _changed_data(run, base):
        yield difference(run, base)
    if not (np.array_equal(scores.task, others.task) and np.array_equal(scores.doc_id, others.doc_id)):
        ours, theirs = (set(zip(s.task.tolist(), s.doc_id.tolist(), strict=True)) for s in (scores, others))
        only = f"{len(ours - theirs)} only in the one, {len(theirs - ours)} only in the other"
        yield f"they answered other items ({only})"
    yield from _changes("items differ in content", scores, scores.doc_hash != others.doc_hash)
    if not prompt_differs(run) and not prompt_differs(base):
        for change in _changes("prompts differ", scores, scores.prompt_hash != others.prompt_hash):
            yield f"{change}; an arm that is meant to change the prompt says so with settings.prompt_differs"


def _changes(what: str, scores: Scores, changed: np.ndarray) -> Iterator[str]:
    if changed.any():
        first = int(changed.argmax())
        yield f"{int(changed.sum())} {what}, first {scores.task[first]}/{scores.doc_id[first]}"
