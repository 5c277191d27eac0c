"""Items in tokens, as lm-eval's `hf` model makes them: what engines read, and what is checked before anything is scored."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from c3po_bench.contract import TEXT, Item
from c3po_bench.errors import UserError

MAX_NEW_TOKENS = 256  # of a written answer, where its task does not say; lm-eval's own default
Ids = tuple[int, ...]


class ItemRefused(UserError):
    """An item that can't be put in tokens: `id` says which, `why` what is wrong with it."""

    def __init__(self, item: Item, why: str):
        super().__init__(f"task {item.id[0]}: document {item.id[1]}: {why}")
        self.id, self.why = item.id, why


def decoding(item: Item) -> tuple[int, list[str]]:
    """The most tokens to write, and the strings that end the answer; by any name that lm-eval takes."""
    settings: Any = normalize_gen_kwargs(dict(item.decoding), MAX_NEW_TOKENS)
    return int(settings["max_gen_toks"]), [stop for stop in settings["until"] if stop]


class Encoder:
    """Tokenizes as lm-eval's `hf` model does, so that log-likelihoods equal stock scoring.

    Where lm-eval would stop at an assertion, or go on with nothing, the item is refused in one line.
    """

    def __init__(self, model: Any, tokenizer: Any):
        kind: Any = HFLM
        self.lm: Any = kind(pretrained=model, tokenizer=tokenizer, batch_size=1)
        self.lm.tok_encode = lru_cache(64)(self.lm.tok_encode)  # the choices of an item share their context
        self.model, self.max_length = model, int(self.lm.max_length)
        head = model.get_output_embeddings()
        ends = [model.get_input_embeddings(), *([] if head is None else [head])]
        self.embedded = min(int(end.weight.shape[0]) for end in ends)
        # transformers warns once that a long text "will result in indexing errors": it is cut, and that is noted
        tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True

    def pairs(self, item: Item) -> tuple[list[tuple[Ids, Ids]], int]:
        """Context and continuation of each request of an item in tokens, and how many tokens the longest context loses.

        A context that is too long for the model loses its beginning, as in lm-eval.

        Raises:
            ItemRefused: naming the item and the choice, if one has no token or too many.
        """
        pairs, lost = [], 0
        for number, (context, continuation) in enumerate(item.requests, 1):
            before, after = self._pair(context, continuation)
            what = f"continuation {number} of {len(item.requests)}, {_short(continuation)},"
            if not after:
                why = "it is empty" if not continuation.strip() else "it joins with the prompt into one token"
                raise ItemRefused(
                    item, f"no token is left of {what} since {why}: choices should begin with a space"
                )
            if not before:
                raise ItemRefused(item, "its prompt has no token: it is made of spaces alone")
            if len(after) > self.max_length:
                raise ItemRefused(
                    item, f"{what} has {len(after)} tokens, and the model reads {self.max_length}"
                )
            self._check_ids(item, (*before, *after))
            room = self.max_length + 1 - len(after)
            lost = max(lost, len(before) - room)
            pairs.append((tuple(before[-room:]), tuple(after)))
        return pairs, lost

    def _pair(self, context: str, continuation: str) -> tuple[Sequence[int], Sequence[int]]:
        if context:
            return self.lm._encode_pair(context, continuation)
        ids = self.lm.tok_encode(continuation, add_special_tokens=False)
        first = self.lm.prefix_token_id
        return ([first], ids) if ids[:1] != [first] else (ids[:1], ids[1:])

    def prompt(self, item: Item) -> tuple[Ids, int]:
        """The tokens of a prompt whose answer is written, and how many it loses at its beginning where it is too long.

        Raises:
            UserError: if it has no token, or the answer may be so long that no room is left for it.
        """
        if item.prompt_ids is not None:
            return item.prompt_ids, 0
        most, _ = decoding(item)
        if not 0 < most < self.max_length:
            raise UserError(
                f"task {item.id[0]}: {most} tokens to write leave no room for a prompt in {self.max_length}"
            )
        if self.lm.eot_token_id is None:
            raise UserError(
                f"task {item.id[0]}: the model's tokenizer has no EOS token, which ends an answer: name its eos_token in "
                "tokenizer_config.json"
            )
        ids = self.lm.tok_encode(item.prompt)
        if not ids:
            raise ItemRefused(item, "its prompt has no token: it is empty")
        self._check_ids(item, ids)
        room = self.max_length - most
        return tuple(ids[-room:]), max(0, len(ids) - room)

    def _check_ids(self, item: Item, ids: Sequence[int]) -> None:
        if max(ids) >= self.embedded:
            token = self.lm.tokenizer.convert_ids_to_tokens(max(ids))
            raise ItemRefused(
                item,
                f"token {token!r} of the tokenizer has number {max(ids)}, and the model embeds only {self.embedded}: "
                "they do not belong together",
            )

    def lost(self, item: Item) -> int:
        """How many tokens a prompt loses at its beginning, of several the longest."""
        return self.prompt(item)[1] if item.kind == TEXT else max(0, self.pairs(item)[1])

    def behind(self, item: Item, tokens: int) -> int:
        """How many tokens a prompt loses at its beginning where `tokens` more, which are not cut, stand before it.

        Raises:
            ItemRefused: if no token of it, or not all of a choice or answer, would be left.
        """
        room = self.max_length - tokens
        if item.kind == TEXT:
            ids, lost = self.prompt(item)
            after, most = decoding(item)[0], room - decoding(item)[0]
            sizes = [(lost + len(ids), most, f"an answer of {after} tokens")]
        else:
            whole = [self._pair(*pair) for pair in item.requests]
            sizes = [
                (len(before), room + 1 - len(after), f"a choice of {len(after)} tokens")
                for before, after in whole
            ]
        for _, left, what in sizes:
            if left < 1:
                raise ItemRefused(
                    item,
                    f"{tokens} virtual tokens and {what} leave no room for a prompt in {self.max_length}",
                )
        return max(0, *(size - left for size, left, _ in sizes))

    def check(self, items: Iterable[Item], before: int = 0) -> dict[str, tuple[int, int]]:
        """Put all items in tokens: of each task the number of its items, and of those whose prompt is cut.

        Args:
            items: all of them.
            before: virtual tokens that an arm puts before prompts: what they leave no room for is refused,
                too.

        Raises:
            ItemRefused: for the first that can't be.
        """
        total, cut = Counter[str](), Counter[str]()
        for item in items:
            total[item.id[0]] += 1
            cut[item.id[0]] += self.lost(item) > 0
            if before:
                self.behind(item, before)
        return {task: (total[task], cut[task]) for task in total}


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
