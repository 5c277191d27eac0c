"""The embedded generator: scenes filled in a seeded order.

No model, no network, the same prompts everywhere.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from c3po_bench.feedback.scenes import expand, scene_of

if TYPE_CHECKING:
    from c3po_bench.feedback.records import Feedback
    from c3po_bench.feedback.workshop import Workshop


log = logging.getLogger(__name__)


class TemplateGenerator:
    """Expands the piece's scene with its slots."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop

    def categories(self, piece: Feedback, n: int) -> list[str]:
        """The scene's categories."""
        return list(scene_of(piece.scene, piece.id).categories)[:n]

    def prompts(self, piece: Feedback, scope: str, wanted: dict[str, int]) -> dict[str, list[str]]:
        """The scene's prompts; those that it lacks are counted under ``missing_prompts``."""
        scene = scene_of(piece.scene, piece.id)
        found = {
            c: expand(scene, scope, c, piece.slots, n, str(self.workshop.seed)) for c, n in wanted.items()
        }
        asked, written = sum(wanted.values()), sum(map(len, found.values()))
        self.workshop.count("missing_prompts", asked - written)
        if written < asked:
            log.warning(
                "the scene of piece %s has %d of the %d %s-scope prompts asked for; for more, set feedback.generator.kind "
                "to openai or transformers",
                piece.id,
                written,
                asked,
                scope,
            )
        return found
