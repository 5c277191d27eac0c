"""Prompts written by a chat model, behind an endpoint or local.

One call a category and scope, each remembered.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from c3po_bench.feedback import instructions
from c3po_bench.feedback.chats import open_chat

if TYPE_CHECKING:
    from c3po_bench.feedback.call_cache import Reply
    from c3po_bench.feedback.records import Feedback
    from c3po_bench.feedback.workshop import Workshop

_ITEM = re.compile(r"^\s*(?:\d+[.)]|[-*\u2022])\s+(.+?)\s*$")
_PAIRS = (("**", "**"), ("*", "*"), ("`", "`"), ('"', '"'), ("\u201c", "\u201d"))


def parse_list(text: str, marker: str, drafted: bool = False) -> list[str]:
    """The items of the numbered or dashed list behind the last `marker`, of the whole text where it is missing.

    Of a text that was `drafted` first there are none then: the draft of near-scope prompts is full of
    in-scope ones.
    """
    tail = instructions.behind(text, marker)
    lines = ("" if drafted else text) if tail is None else tail
    items = [_bare(m.group(1)) for line in lines.splitlines() if (m := _ITEM.match(line))]
    return list(dict.fromkeys(item for item in items if item))


def _bare(item: str) -> str:
    """Without emphasis and without quotes, where a pair of them is around the whole."""
    for left, right in _PAIRS:
        inner = item[len(left) : -len(right)]
        if item == left + inner + right and left not in inner and right not in inner:
            item = inner.strip()
    return item


def _listed(reply: Reply | None, drafted: bool = False) -> list[str]:
    """The items of a reply; the last one of a reply that was cut is no whole item."""
    if reply is None:
        return []
    items = parse_list(reply.text, instructions.FINAL, drafted)
    return items if reply.finished else items[:-1]


class ChatGenerator:
    """Asks for categories, then for in-scope and near-scope prompts."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.chat = open_chat(workshop.cfg.generator, workshop)

    def categories(self, piece: Feedback, n: int) -> list[str]:
        """One call."""
        found = _listed(self.chat.complete("categories", [instructions.categories(piece, n)])[0])[:n]
        self.workshop.count("missing_categories", n - len(found))
        return found

    def prompts(self, piece: Feedback, scope: str, wanted: dict[str, int]) -> dict[str, list[str]]:
        """One call a category; a short list stays with its own category and is counted under ``missing_prompts``."""
        ask = instructions.in_scope if scope == "in" else instructions.near_scope
        replies = self.chat.complete(f"{scope}_prompts", [ask(piece, c, n) for c, n in wanted.items()])
        found = {}
        for (category, n), reply in zip(wanted.items(), replies, strict=True):
            found[category] = _listed(reply, drafted=scope == "near")[:n]
            self.workshop.count("missing_prompts", n - len(found[category]))
        return found
