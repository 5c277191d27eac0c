"""Items in tokens: the one conversion from what a task asks to what an engine reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from c3po_bench.contract import TEXT, Item
from c3po_bench.errors import UserError
from c3po_bench.rewiring.states import Prompt

MAX_NEW_TOKENS = 256  # of a written answer, where its task does not say; lm-eval's own default


@dataclass(frozen=True)
class TokenizedItem:
    """An item and its prompts.

    Attributes:
        item: as its task renders it.
        prompts: its different contexts in tokens, each with the continuations that follow it. Most tasks have one;
            where the choice stands in the context (WinoGrande) there are several, each with a pathway of its own.
        rows: of each request of the item the index of its prompt and of the continuation behind it.
    """

    item: Item
    prompts: tuple[Prompt, ...]
    rows: tuple[tuple[int, int], ...]

    @property
    def options(self) -> tuple[tuple[int, int], ...]:
        """The rows that are options, without those that only a metric asks for."""
        return self.rows[: self.item.n_choices]

    @property
    def gold_row(self) -> tuple[int, int]:
        """The row of the right option.

        Raises:
            UserError: if the item has no label.
        """
        if self.item.gold is None:
            raise UserError(
                "the oracle needs a label among choices: leave it out where the answer is written"
            )
        return self.rows[self.item.gold]


class Tokenizer:
    """Tokenizes as lm-eval's `hf` model does, so that log-likelihoods equal stock scoring."""

    def __init__(self, model: Any, tokenizer: Any):
        kind: Any = HFLM
        self.lm: Any = kind(pretrained=model, tokenizer=tokenizer, batch_size=1)
        self.model = model

    def pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids of a context and its continuation; too long a context loses its beginning."""
        if context == "":
            ids = self.lm.tok_encode(continuation, add_special_tokens=False)
            first = self.lm.prefix_token_id
            before, after = ([first], ids) if ids[0] != first else (ids[:1], ids[1:])
        else:
            before, after = self.lm._encode_pair(context, continuation)
        room = self.lm.max_length + 1 - len(after)
        return tuple(before[-room:]), tuple(after)

    def __call__(self, item: Item) -> TokenizedItem:
        """The item in tokens, its requests grouped by their context."""
        if item.kind == TEXT:
            return TokenizedItem(item, (Prompt(self.prompt_ids(item), ((self.lm.eot_token_id,),)),), ())
        contexts: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        rows = []
        for context, continuation in item.requests:
            before, after = self.pair(context, continuation)
            answers = contexts.setdefault(before, [])
            rows.append((list(contexts).index(before), len(answers)))
            answers.append(after)
        prompts = tuple(Prompt(before, tuple(answers)) for before, answers in contexts.items())
        return TokenizedItem(item, prompts, tuple(rows))

    def prompt_ids(self, item: Item) -> tuple[int, ...]:
        """The tokens of a prompt whose answer is written; too long a prompt loses its beginning."""
        if item.prompt_ids is not None:
            return item.prompt_ids
        return tuple(self.lm.tok_encode(item.prompt)[-(self.lm.max_length - self.decoding(item)[0]) :])

    def decoding(self, item: Item) -> tuple[int, list[str]]:
        """The most tokens to write, and the strings that end the answer; by any name that lm-eval takes.

        Raises:
            UserError: if no room is left for a prompt.
        """
        settings: Any = normalize_gen_kwargs(dict(item.decoding), MAX_NEW_TOKENS)
        tokens, stops = int(settings["max_gen_toks"]), [stop for stop in settings["until"] if stop]
        if tokens >= self.lm.max_length:
            raise UserError(
                f"task {item.id[0]}: {tokens} tokens to write leave no room for a prompt in {self.lm.max_length}"
            )
        return tokens, stops

    def end_ids(self, item: Item) -> tuple[int, ...]:
        """What ends an answer in lm-eval: the tokenizer's EOS token and all that the generation config names."""
        if item.stop_ids:
            return item.stop_ids
        own = getattr(self.model.generation_config, "eos_token_id", None)
        return (self.lm.eot_token_id, *(own if isinstance(own, list) else [] if own is None else [own]))

    def text(self, item: Item, ids: Sequence[int]) -> str:
        """The text of written tokens; of an answer to a chat with its spaces as they are."""
        if item.prompt_ids is None:
            return self.lm.tok_decode(list(ids))
        return self.lm.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
