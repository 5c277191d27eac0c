"""Revisers turn a baseline answer into a revised one, by rules or by a model's critique (RLVF, section 4).

A reviser is a class with ``revise(feedback, drafts) -> list[(text, finished) | None]``. A new one is one line
of `REVISERS`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from c3po_bench.errors import UserError
from c3po_bench.feedback.calls import Conversation, ask, text_after
from c3po_bench.feedback.chats import open_chat
from c3po_bench.feedback.context import SynthesisContext
from c3po_bench.feedback.edits import apply_edits
from c3po_bench.feedback.sentences import Feedback
from c3po_bench.registry import Registry

REVISED = "REVISED ANSWER:"  # the revised answer follows


class Draft(NamedTuple):
    """A baseline answer to be revised."""

    prompt: str
    answer: str
    finished: bool


class Reviser(Protocol):
    """Revises drafts; None is a gap."""

    def revise(self, feedback: Feedback, drafts: Sequence[Draft]) -> list[tuple[str, bool] | None]:
        """The revised text and whether it is a finished answer."""
        ...


class RuleReviser:
    """The smallest change that makes an answer follow the piece: its edits."""

    def __init__(self, context: SynthesisContext) -> None:
        """Of the context it needs nothing."""

    def revise(self, feedback: Feedback, drafts: Sequence[Draft]) -> list[tuple[str, bool] | None]:
        """Never leaves a gap."""
        return [rewrite(feedback, draft.answer, draft.finished) for draft in drafts]


def rewrite(feedback: Feedback, answer: str, finished: bool) -> tuple[str, bool]:
    """The answer edited by rule, and whether it is finished.

    An answer that follows the feedback already is left as it is: no pair comes of it.
    """
    follows = feedback.checkable and feedback.holds(answer)
    return apply_edits([] if follows else feedback.edits, answer, finished)


class CritiqueReviser:
    """Asks ``feedback.reviser.writer``, by default the model being tuned itself.

    It says what is missing, then writes the answer again.
    """

    def __init__(self, context: SynthesisContext) -> None:
        self.context, self.chat = context, open_chat(context.cfg.reviser.writer, context)

    def revise(self, feedback: Feedback, drafts: Sequence[Draft]) -> list[tuple[str, bool] | None]:
        """A gap where the call failed or the answer lacks the marker (``unparsed_revisions``).

        A cut revision stays cut.
        """
        revised: list[tuple[str, bool] | None] = []
        for reply in self.chat.complete("revisions", [ask_revision(feedback, *d[:2]) for d in drafts]):
            text = text_after(reply.text, REVISED) if reply else None
            revised.append((text, reply.finished) if reply and text else None)
            self.context.counts["unparsed_revisions"] += int(reply is not None and not text)
        return revised


def ask_revision(feedback: Feedback, prompt: str, answer: str) -> Conversation:
    """Contextualized critique and revision of the model's own answer."""
    return ask(
        f"Somebody asked:\n{prompt}\n\nThe answer was:\n{answer}\n\n"
        f"The answer should have followed this wish: {feedback.effect}.\n"
        "Say in one or two sentences where the answer does not follow it. Then write the answer again so that it "
        f"does, and change nothing else. Put the line {REVISED} before it and nothing behind it."
    )


REVISERS: Registry[Callable[[SynthesisContext], Reviser]] = Registry(
    "feedback.reviser.kind", {"rules": RuleReviser, "critique": CritiqueReviser}, also=("auto",)
)


def open_reviser(feedback: Feedback, context: SynthesisContext) -> Reviser:
    """The reviser that ``feedback.reviser.kind`` names; ``auto``: rules where the piece has them."""
    kind = context.cfg.reviser.kind
    if kind == "auto":
        kind = "rules" if feedback.edits else "critique"
    if kind == "rules" and not feedback.edits:
        raise UserError(f"feedback piece {feedback.id!r} has no rewriter: set feedback.reviser.kind=critique")
    return REVISERS[kind](context)
