"""Who writes free text: a chat model behind an endpoint, or a local one.

A chat is a class with ``complete(stage, conversations) -> list[Reply | None]`` (None = a counted gap). A new
one is one file here and one line of `CHATS`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

from c3po_bench.errors import unknown
from c3po_bench.feedback.call_cache import Reply

if TYPE_CHECKING:
    from c3po_bench.feedback.config import ChatConfig
    from c3po_bench.feedback.workshop import Workshop

CHATS = {
    "openai": "c3po_bench.feedback.chats.endpoint:EndpointChat",
    "transformers": "c3po_bench.feedback.chats.local:LocalChat",
}

Conversation = list[dict[str, str]]  # [{"role": "user", "content": ...}, ...]


class Chat(Protocol):
    """Answers conversations, remembering every answer in a call cache."""

    def complete(self, stage: str, conversations: list[Conversation]) -> list[Reply | None]:
        """One reply for each conversation, in order."""
        ...


def open_chat(cfg: ChatConfig, workshop: Workshop) -> Chat:
    """The chat that `cfg.kind` names."""
    if cfg.kind not in CHATS:
        raise unknown("chat kind", cfg.kind, CHATS)
    module, name = CHATS[cfg.kind].split(":")
    made: Any = getattr(importlib.import_module(module), name)
    return made(cfg, workshop)
