"""For as long as the feedback arms are lm-eval `LM`s: such an arm behind `contract.Arm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance

from c3po_bench.analysis.arms import _row_of_today
from c3po_bench.contract import CHOICES, Answer, ArmRow, Cost, Item, Phase, Report


class BridgedArm:
    """An arm with `lm()` as an arm that answers items."""

    def __init__(self, arm: Any):
        self.arm, self.row = arm, ArmRow(**_row_of_today(arm.name))
        self.identity, self.settings = arm.identity, arm.settings

    def prepare(self) -> None:
        """Build its LM."""
        self.lm = self.arm.lm()

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Through its LM."""
        choices = items[0].kind == CHOICES
        kind = "loglikelihood" if choices else "generate_until"
        requests = []
        for number, item in enumerate(items):
            arguments: Any = item.requests
            if not choices:
                whose = {n: item.metadata[n] for n in ("feedback", "scope") if n in item.metadata}
                arguments = [(item.prompt, {**item.decoding, **whose})]
            requests += [
                Instance(
                    request_type=kind,
                    doc={"question": item.question, "key": item.key},
                    arguments=each,
                    idx=i,
                    metadata=(item.id[0], number, 1),
                )
                for i, each in enumerate(arguments)
            ]
        flat = iter(getattr(self.lm, kind)(requests))
        details = []
        if choices:
            found: list[dict[str, Any]] = [
                {"scores": tuple(next(flat) for _ in item.requests)} for item in items
            ]
            details = self.lm.pop_details()
        else:
            found: list[dict[str, Any]] = [{"text": next(flat)} for _ in items]
            details = self.lm.pop_details()
        return [
            Answer(**answer, details=details.get((item.id[0], n), {}))
            for n, (item, answer) in enumerate(zip(items, found, strict=True))
        ]

    def finish(self, rows: list[dict[str, Any]]) -> Any:
        """The arm's."""
        return self.arm.finish(rows)

    def cost(self) -> Cost:
        """The arm's."""
        cost = self.arm.cost()
        phases = {name: Phase(**phase) for name, phase in cost["phases"].items()}
        return Cost(phases, cost["peak_memory_bytes"], cost.get("credited_seconds", 0.0))

    def report(self) -> Report:
        """The arm's."""
        return Report(**self.arm.report())

    def close(self) -> None:
        """Nothing."""
        pass


def bridged(arm: Any) -> Any:
    """The arm, behind the contract if it is not yet."""
    return BridgedArm(arm) if hasattr(arm, "lm") else arm
