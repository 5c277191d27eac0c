"""Revision by contextualized critique.

A model says what is missing, then writes the answer again (RLVF, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from c3po_bench.feedback import instructions
from c3po_bench.feedback.chats import open_chat
from c3po_bench.feedback.revisers import Draft

if TYPE_CHECKING:
    from c3po_bench.feedback.records import Feedback
    from c3po_bench.feedback.workshop import Workshop


class CritiqueReviser:
    """Asks ``feedback.reviser.writer``: by default the model being tuned itself."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.chat = open_chat(workshop.cfg.reviser.writer, workshop)

    def revise(self, piece: Feedback, drafts: Sequence[Draft]) -> list[tuple[str, bool] | None]:
        """A gap where the call failed or the answer lacks the marker (``unparsed_revisions``).

        A cut revision stays cut.
        """
        asked = [instructions.critique(piece, d.prompt, d.answer) for d in drafts]
        revised: list[tuple[str, bool] | None] = []
        for reply in self.chat.complete("revisions", asked):
            text = instructions.behind(reply.text, instructions.REVISED) if reply else None
            if reply and text:
                revised.append((text, reply.finished))
            else:
                self.workshop.count("unparsed_revisions", int(reply is not None))
                revised.append(None)
        return revised
