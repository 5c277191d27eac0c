"""The rule judge: h(x, y, baseline) in {1, 0, -1} (RLVF, section 5), ties 0 as in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from c3po_bench.errors import UserError
from c3po_bench.feedback.judges import Case

if TYPE_CHECKING:
    from c3po_bench.feedback.workshop import Workshop


class RuleJudge:
    """Needs pieces with rules."""

    def __init__(self, workshop: Workshop) -> None:
        del workshop

    def scores(self, cases: Sequence[Case]) -> list[float | None]:
        """1 where only the response satisfies the rules, -1 where only the baseline does, else 0."""
        for case in cases:
            if not case.piece.checkable:
                raise UserError(
                    f"feedback piece {case.piece.id!r} has no rules: set feedback.judge.kind=openai and "
                    "feedback.judge.chat.base_url, or take a piece with rules"
                )
        return [float(c.piece.holds(c.response)) - float(c.piece.holds(c.baseline)) for c in cases]

    def report(self) -> dict[str, float]:
        """Rules have nothing to confess."""
        return {}
