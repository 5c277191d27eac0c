"""Items in tokens: the one conversion from what a task asks to what an engine reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from c3po_bench.contract import TEXT, Item
from c3po_bench.errors import UserError
from c3po_bench.models.encoding import Encoder, Ids
from c3po_bench.rewiring.states import Prompt


@dataclass(frozen=True)
class TokenizedItem:
    """An item and its prompts.

    Attributes:
        item: as its task renders it.
        prompts: its different contexts in tokens, each with the continuations that follow it. Most tasks have
            one; where the choice stands in the context (WinoGrande) there are several, each with a pathway of
            its own.
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


class Tokenizer(Encoder):
    """Puts items in tokens for the engines, grouped as these read them."""

    def __call__(self, item: Item) -> TokenizedItem:
        """The item in tokens, its requests grouped by their context."""
        if item.kind == TEXT:
            return TokenizedItem(item, (Prompt(self.prompt(item)[0], ((self.lm.eot_token_id,),)),), ())
        contexts: dict[Ids, list[Ids]] = {}
        rows = []
        for before, after in self.pairs(item)[0]:
            answers = contexts.setdefault(before, [])
            rows.append((list(contexts).index(before), len(answers)))
            answers.append(after)
        prompts = tuple(Prompt(before, tuple(answers)) for before, answers in contexts.items())
        return TokenizedItem(item, prompts, tuple(rows))

    def end_ids(self, item: Item) -> Ids:
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
