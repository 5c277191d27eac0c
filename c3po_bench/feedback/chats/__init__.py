"""Who writes free text: a chat model behind an endpoint, or a local one.

A chat is a class with ``complete(stage, conversations) -> list[Reply | None]`` (None = a counted gap). A new
one is one file here and one line of `CHATS`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from c3po_bench.errors import unknown

if TYPE_CHECKING:
    from c3po_bench.feedback.config import ChatConfig
    from c3po_bench.feedback.ledger import Ledger
    from c3po_bench.feedback.workshop import Workshop

CHATS = {
    "openai": "c3po_bench.feedback.chats.endpoint:EndpointChat",
    "transformers": "c3po_bench.feedback.chats.local:LocalChat",
}

Conversation = list[dict[str, str]]  # [{"role": "user", "content": ...}, ...]


class Reply(NamedTuple):
    """What a chat said; `finished` is false where it was cut at the token limit."""

    text: str
    finished: bool = True


def is_reply(value: Any) -> bool:
    """Whether a ledger's value can be read as a reply: its record, or a text, as once written."""
    if isinstance(value, dict) and value.keys() <= {"text", "finished"}:
        return isinstance(value.get("text"), str) and isinstance(value.get("finished", True), bool)
    return isinstance(value, str)


def recorded(ledger: Ledger, key: str) -> Reply | None:
    """The reply that a ledger holds under `key`.

    Of a plain text, as once written, nobody knows that it was cut.
    """
    value = ledger.get(key)
    if value is None:
        return None
    return Reply(value) if isinstance(value, str) else Reply(**value)


class Chat(Protocol):
    """Answers conversations, remembering every answer in a ledger."""

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
