"""Who turns a baseline answer into a revised one: rules, or the model's own critique and revision.

A reviser is a class with ``revise(piece, drafts) -> list[(text, finished) | None]``. A new one is one line of
`REVISERS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from c3po_bench.errors import UserError, unknown
from c3po_bench.feedback.rewrite import edits_of

if TYPE_CHECKING:
    from c3po_bench.feedback.records import Feedback
    from c3po_bench.feedback.workshop import Workshop

REVISERS = {
    "rules": "c3po_bench.feedback.revisers.rules:RuleReviser",
    "critique": "c3po_bench.feedback.revisers.critique:CritiqueReviser",
}


class Draft(NamedTuple):
    """A baseline answer to be revised."""

    prompt: str
    answer: str
    finished: bool


class Reviser(Protocol):
    """Revises drafts; None is a gap."""

    def revise(self, piece: Feedback, drafts: Sequence[Draft]) -> list[tuple[str, bool] | None]:
        """The revised text and whether it is a finished answer."""
        ...


def open_reviser(piece: Feedback, workshop: Workshop) -> Reviser:
    """The reviser that ``feedback.reviser.kind`` names; ``auto``: rules where the piece has them."""
    kind = workshop.cfg.reviser.kind
    if kind == "auto":
        kind = "rules" if edits_of(piece) else "critique"
    if kind not in REVISERS:
        raise unknown("feedback.reviser.kind", kind, ["auto", *REVISERS])
    if kind == "rules" and not edits_of(piece):
        raise UserError(f"feedback piece {piece.id!r} has no rewriter: set feedback.reviser.kind=critique")
    module, name = REVISERS[kind].split(":")
    made: Any = getattr(importlib.import_module(module), name)
    return made(workshop)
