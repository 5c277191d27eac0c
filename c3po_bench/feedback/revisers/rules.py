"""Revision by rule: the smallest change that makes an answer follow the piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from c3po_bench.feedback.revisers import Draft
from c3po_bench.feedback.rewrite import rewrite

if TYPE_CHECKING:
    from c3po_bench.feedback.records import Feedback
    from c3po_bench.feedback.workshop import Workshop


class RuleReviser:
    """Applies the piece's edits."""

    def __init__(self, workshop: Workshop) -> None:
        del workshop

    def revise(self, piece: Feedback, drafts: Sequence[Draft]) -> list[tuple[str, bool] | None]:
        """Never leaves a gap."""
        return [rewrite(piece, draft.answer, draft.finished) for draft in drafts]
