"""Questions in tokens: test requests and reference items, in the one form that engines read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from c3po_bench.rewiring.states import Prompt

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from c3po_bench.tasks.items import Item


@dataclass(frozen=True)
class Question:
    """One item. Its choices are `rows`: (index of the prompt, index of the continuation), in request order.

    Most tasks have one prompt; where the choice stands in the context (WinoGrande) there are several, and
    each has its own pathway. `gold` is the index of the right row; None unless the arm may read labels.
    `seed_key` is a hash of the item's content, so that whatever is drawn for it does not depend on its place.
    """

    key: tuple[str, int]
    text: str
    prompts: tuple[Prompt, ...]
    rows: tuple[tuple[int, int], ...]
    gold: int | None = None
    seed_key: str = ""


class Tokenizer:
    """Tokenizes as lm-eval's `hf` model does, so that log-likelihoods equal stock scoring."""

    def __init__(self, model: Any, tokenizer: Any):
        from lm_eval.models import huggingface

        kind: Any = huggingface.HFLM
        self.lm: Any = kind(pretrained=model, tokenizer=tokenizer, batch_size=1)
        self._seen: dict[tuple[str, str], tuple[list[int], list[int]]] = {}

    def pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids of a context and its continuation; too long a context loses its beginning."""
        if context == "":
            ids = self.lm.tok_encode(continuation, add_special_tokens=False)
            before, after = (
                ([self.lm.prefix_token_id], ids) if ids[0] != self.lm.prefix_token_id else (ids[:1], ids[1:])
            )
        else:
            before, after = self.lm._encode_pair(context, continuation)
        room = self.lm.max_length + 1 - len(after)
        return tuple(before[-room:]), tuple(after)

    def question(
        self,
        key: tuple[str, int],
        text: str,
        pairs: Sequence[tuple[str, str]],
        gold: int | None = None,
        seed_key: str = "",
    ) -> Question:
        """Group the pairs of one item by their context."""
        contexts: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        rows = []
        for context, continuation in pairs:
            before, after = self.pair(context, continuation)
            answers = contexts.setdefault(before, [])
            rows.append((list(contexts).index(before), len(answers)))
            answers.append(after)
        prompts = tuple(Prompt(before, tuple(answers)) for before, answers in contexts.items())
        return Question(key, text, prompts, tuple(rows), gold, seed_key)

    def of_requests(self, requests: Sequence[Instance]) -> list[tuple[Question, list[int]]]:
        """Test questions and, for each, the positions of its requests."""
        groups: dict[tuple[str, int], list[int]] = {}
        for position, request in enumerate(requests):
            groups.setdefault((str(request.task_name), int(request.doc_id or 0)), []).append(position)
        made = []
        for key, positions in groups.items():
            doc = requests[positions[0]].doc
            arguments: list[Any] = [requests[p].args for p in positions]
            pairs = [(given[0], given[1]) for given in arguments]
            question = self.question(key, doc["question"], pairs, doc.get("gold"), doc["key"])
            made.append((question, positions))
        return made

    def of_item(self, item: Item) -> Question:
        """A reference question, with its label."""
        return self.question((item.task, item.doc_id), item.question, item.pairs, item.gold)
