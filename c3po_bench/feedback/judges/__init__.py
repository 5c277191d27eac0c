"""Who decides whether an answer follows a piece more than the base model's answer does.

A judge scores pairs (prompt, response, baseline response) in [-1, 1]: h of the paper for rules (1 only the
response, -1 only the baseline, 0 both or neither), g for models. A new judge is one file here and one line of
`JUDGES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from c3po_bench.errors import unknown

if TYPE_CHECKING:
    from c3po_bench.feedback.records import Feedback
    from c3po_bench.feedback.workshop import Workshop

JUDGES = {
    "rule": "c3po_bench.feedback.judges.rule:RuleJudge",
    "openai": "c3po_bench.feedback.judges.endpoint:EndpointJudge",
}


class Case(NamedTuple):
    """One comparison to be judged."""

    piece: Feedback
    prompt: str
    response: str
    baseline: str


class Judge(Protocol):
    """Scores comparisons."""

    def scores(self, cases: Sequence[Case]) -> list[float | None]:
        """One score in [-1, 1] a case; None is a counted gap."""
        ...

    def report(self) -> dict[str, float]:
        """What should be known of the judge itself (position bias, parse failures)."""
        ...


def judge_name(kind: str, piece: Feedback) -> str:
    """The judge of a piece: ``auto`` takes its rules where it has them."""
    return ("rule" if piece.checkable else "openai") if kind == "auto" else kind


def open_judge(name: str, workshop: Workshop) -> Judge:
    """The judge called `name`."""
    if name not in JUDGES:
        raise unknown("feedback.judge.kind", name, ["auto", *JUDGES])
    module, attribute = JUDGES[name].split(":")
    made: Any = getattr(importlib.import_module(module), attribute)
    return made(workshop)
