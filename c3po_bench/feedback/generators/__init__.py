"""Who writes prompts: the embedded templates, or a chat model.

A generator is a class with `categories` and `prompts` (see `Generator`). A new one is one file and one line
of `GENERATORS`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

from c3po_bench.errors import unknown

if TYPE_CHECKING:
    from c3po_bench.feedback.records import Feedback
    from c3po_bench.feedback.workshop import Workshop

GENERATORS = {
    "template": "c3po_bench.feedback.generators.template:TemplateGenerator",
    "openai": "c3po_bench.feedback.generators.chat:ChatGenerator",
    "transformers": "c3po_bench.feedback.generators.chat:ChatGenerator",
}


class Generator(Protocol):
    """Writes the prompts of a piece, by category (RLVF, section 4)."""

    def categories(self, piece: Feedback, n: int) -> list[str]:
        """At most `n` kinds of situations inside and around the piece's domain."""
        ...

    def prompts(self, piece: Feedback, scope: str, wanted: dict[str, int]) -> dict[str, list[str]]:
        """Prompts of a scope (``in`` or ``near``) for each category.

        At most as many as wanted, fewer where calls failed.
        """
        ...


def open_generator(workshop: Workshop) -> Generator:
    """The generator that ``feedback.generator.kind`` names."""
    kind = workshop.cfg.generator.kind
    if kind not in GENERATORS:
        raise unknown("feedback.generator.kind", kind, GENERATORS)
    module, name = GENERATORS[kind].split(":")
    made: Any = getattr(importlib.import_module(module), name)
    return made(workshop)
