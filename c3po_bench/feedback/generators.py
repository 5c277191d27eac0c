"""Who writes prompts, what it is asked, and the general prompts out of every scope.

A generator is a class with `categories` and `prompts` (see `Generator`). A new one is one line of
`GENERATORS`.
"""

import logging
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Protocol

import yaml

from c3po_bench.errors import UserError
from c3po_bench.feedback.calls import Conversation, Reply, ask, text_after
from c3po_bench.feedback.chats import open_chat
from c3po_bench.feedback.context import SynthesisContext
from c3po_bench.feedback.sentences import Feedback, expand, scene_of
from c3po_bench.registry import Registry

log = logging.getLogger(__name__)
FINAL = "FINAL LIST:"  # a list of items follows
_ITEM = re.compile(r"^\s*(?:\d+[.)]|[-*\u2022])\s+(.+)$")
_QUOTES = (("**", "**"), ("*", "*"), ("`", "`"), ('"', '"'), ("\u201c", "\u201d"))


class Generator(Protocol):
    """Writes the prompts of a piece, by category (RLVF, section 4)."""

    def categories(self, feedback: Feedback, n: int) -> list[str]:
        """At most `n` kinds of situations inside and around the piece's domain."""
        ...

    def prompts(self, feedback: Feedback, scope: str, counts: dict[str, int]) -> dict[str, list[str]]:
        """Prompts of a scope (``in`` or ``near``) for each category.

        At most as many as `counts` says, fewer where calls failed.
        """
        ...


class TemplateGenerator:
    """The embedded generator: the piece's scene, filled in a seeded order.

    No model, no network, the same prompts everywhere.
    """

    def __init__(self, context: SynthesisContext) -> None:
        self.context = context

    def categories(self, feedback: Feedback, n: int) -> list[str]:
        """The scene's categories."""
        return list(scene_of(feedback.scene, feedback.id).categories)[:n]

    def prompts(self, feedback: Feedback, scope: str, counts: dict[str, int]) -> dict[str, list[str]]:
        """The scene's prompts; those that it lacks are counted under ``missing_prompts``."""
        scene, seed = scene_of(feedback.scene, feedback.id), str(self.context.seed)
        prompts = {c: expand(scene, scope, c, feedback.slots, n, seed) for c, n in counts.items()}
        written, total = sum(map(len, prompts.values())), sum(counts.values())
        self.context.counts["missing_prompts"] += total - written
        if written < total:
            log.warning(
                "the scene of piece %s has %d of the %d %s-scope prompts asked for; for more, set feedback.generator.kind "
                "to openai or transformers",
                feedback.id,
                written,
                total,
                scope,
            )
        return prompts


class ChatGenerator:
    """A chat model: one call for the categories, then one a category and scope."""

    def __init__(self, context: SynthesisContext) -> None:
        self.context, self.chat = context, open_chat(context.cfg.generator, context)

    def categories(self, feedback: Feedback, n: int) -> list[str]:
        """One call."""
        (reply,) = self.chat.complete("categories", [ask_categories(feedback, n)])
        categories = _listed(reply)[:n]
        self.context.counts["missing_categories"] += n - len(categories)
        return categories

    def prompts(self, feedback: Feedback, scope: str, counts: dict[str, int]) -> dict[str, list[str]]:
        """One call a category; what a list lacks is counted under ``missing_prompts``."""
        instruct = ask_in_scope if scope == "in" else ask_near_scope
        replies = self.chat.complete(
            f"{scope}_prompts", [instruct(feedback, c, n) for c, n in counts.items()]
        )
        prompts = {}
        for (category, n), reply in zip(counts.items(), replies, strict=True):
            prompts[category] = _listed(reply, drafted=scope == "near")[:n]
            self.context.counts["missing_prompts"] += n - len(prompts[category])
        return prompts


def ask_categories(feedback: Feedback, n: int) -> Conversation:
    """Kinds of situations, a little wider than the domain."""
    return ask(
        f"I collect situations in which somebody writes to an assistant. The topic is: {feedback.domain}.\n"
        f"First think about what the topic covers and what lies just beside it. Then name {n} different kinds of "
        "situations, together a little wider than the topic, in a few words each. Look over them, replace the ones "
        f"that repeat each other, and end with the line {FINAL} and a numbered list of exactly {n} entries."
    )


def ask_in_scope(feedback: Feedback, category: str, n: int) -> Conversation:
    """Prompts that always fall inside the domain."""
    return ask(
        f"Write {n} messages that somebody could send to an assistant. Every message must clearly be about: "
        f"{feedback.domain}. The kind of situation is: {category}.\n"
        "Each is one to three sentences, complete in itself, without placeholders, and they differ in wording, "
        "length and detail. Some are commands and some are questions.\n"
        f"End with the line {FINAL} and a numbered list of exactly {n} messages."
    )


def ask_near_scope(feedback: Feedback, category: str, n: int) -> Conversation:
    """Prompts close to the domain and outside it."""
    return ask(
        f"Write {n} messages that somebody could send to an assistant. The kind of situation is: {category}. "
        f"But no message may be about: {feedback.domain}. They should come close to it and stay outside.\n"
        "First say what would make a message fall inside. Then write a draft of the list, strike everything that "
        "falls inside, and replace it. Each message is one to three sentences, complete in itself.\n"
        f"End with the line {FINAL} and a numbered list of exactly {n} messages."
    )


def _listed(reply: Reply | None, drafted: bool = False) -> list[str]:
    """The items of a reply; the last one of a reply that was cut is no whole item."""
    if reply is None:
        return []
    items = parse_list(reply.text, FINAL, drafted)
    return items if reply.finished else items[:-1]


def parse_list(text: str, marker: str, drafted: bool = False) -> list[str]:
    """The items of the list behind the last `marker`, or of the whole text where it is missing.

    Of a text that was `drafted` first there are none then: the draft of near-scope prompts is full of
    in-scope ones.
    """
    tail = text_after(text, marker)
    lines = ("" if drafted else text) if tail is None else tail
    items = [_unquoted(m.group(1).strip()) for line in lines.splitlines() if (m := _ITEM.match(line))]
    return list(dict.fromkeys(item for item in items if item))


def _unquoted(item: str) -> str:
    """Without emphasis and without quotes, where a pair of them is around the whole."""
    for left, right in _QUOTES:
        inner = item[len(left) : -len(right)]
        if item == left + inner + right and left not in inner and right not in inner:
            item = inner.strip()
    return item


GENERATORS: Registry[Callable[[SynthesisContext], Generator]] = Registry(
    "feedback.generator.kind",
    {"template": TemplateGenerator, "openai": ChatGenerator, "transformers": ChatGenerator},
)


@cache
def general_set() -> tuple[str, ...]:
    """The embedded general prompts, in their written order, without duplicates."""
    families = yaml.safe_load(Path(__file__).with_name("general.yaml").read_text(encoding="utf-8"))
    prompts = [
        template.format(*(fill if isinstance(fill, list) else [fill]))
        for template, fills in families
        for fill in fills
    ]
    return tuple(dict.fromkeys(prompts))


def general_prompts(source: str, n: int, seed: int) -> list[str]:
    """`n` prompts out of every scope, drawn with `seed`.

    `source` is ``builtin``, a text file (a prompt a line) or ``org/name:split:column``.
    """
    pool = list(general_set()) if source == "builtin" else _read_prompts(source)
    if n > len(pool):
        raise UserError(
            f"feedback.n_out={n} asks for more prompts than {source!r} has ({len(pool)}); lower it, or name a "
            "larger set in feedback.out_of_scope"
        )
    return random.Random(f"out-of-scope/{seed}").sample(pool, n)


def _read_prompts(source: str) -> list[str]:
    path = Path(source).expanduser()
    if path.is_file():
        try:
            rows = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"feedback.out_of_scope={source!r} is no text file in UTF-8: {error}") from None
    else:
        name, split, column = ([*source.split(":"), "", ""])[:3]
        if not (name and split and column):
            raise UserError(
                f"feedback.out_of_scope={source!r} is neither 'builtin', a text file, nor 'org/name:split:column'"
            )
        from datasets import load_dataset  # slow to import, and needed for this alone

        try:
            rows = load_dataset(name, split=split)[column]
        except Exception as error:  # the hub raises many kinds; all of them are the user's to mend
            raise UserError(f"feedback.out_of_scope={source!r} could not be read: {error}") from error
    return list(dict.fromkeys(str(row).strip() for row in rows if str(row).strip()))
