"""The embedded generator: scenes filled in a seeded order. No model, no network, the same prompts everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from c3po_bench.feedback.scenes import expand, scene_of

if TYPE_CHECKING:
    from c3po_bench.feedback.records import Feedback
    from c3po_bench.feedback.workshop import Workshop


class TemplateGenerator:
    """Expands the piece's scene with its slots."""

    def __init__(self, workshop: Workshop) -> None:
        self.seed = workshop.seed

    def categories(self, piece: Feedback, n: int) -> list[str]:
        """The scene's categories."""
        return list(scene_of(piece.scene, piece.id).categories)[:n]

    def prompts(self, piece: Feedback, scope: str, wanted: dict[str, int]) -> dict[str, list[str]]:
        """The scene's prompts."""
        scene = scene_of(piece.scene, piece.id)
        return {c: expand(scene, scope, c, piece.slots, n, str(self.seed)) for c, n in wanted.items()}
