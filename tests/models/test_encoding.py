"""Items in tokens: as stock lm-eval cuts, whatever the batch and the engine; refused where lm-eval knows no answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from c3po_bench.contract import CHOICES, TEXT, Item
from c3po_bench.models.encoding import ItemRefused
from c3po_bench.models.stock_scoring import StockScorer
from c3po_bench.models.tiny import tiny_model, tiny_tokenizer
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.rewirer import Rewirer
from c3po_bench.rewiring.tokens import Tokenizer


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_model("olmoe", seed=3)


@pytest.fixture(scope="module")
def tokenizer(model):
    return Tokenizer(model, tiny_tokenizer())


def choices(number: int, context: str, *continuations: str) -> Item:
    pairs = tuple((context, continuation) for continuation in continuations)
    return Item(("t", number), CHOICES, f"k{number}", "q", requests=pairs, n_choices=len(pairs))


ODD = [
    choices(0, "word " * 300 + "end:", " yes", " no, not at all", " " + "long " * 190),
    choices(1, "Short:", " yes", " no"),
    choices(2, "", "The cat sat.", "sat The cat."),
    choices(3, "filler text " * 100, " a", " b"),
    choices(4, "Exactly" + "!" * 1013, " yes", " yess"),
]


def test_long_prompts_and_empty_ones_score_as_stock_whatever_the_batch_and_engine(model, tokenizer):
    expected = [s for a in StockScorer(model, tiny_tokenizer(), 1).answer(ODD) for s, _ in a.scores]
    answered = {"stock, 5 at once": StockScorer(model, tiny_tokenizer(), 5).answer(ODD)}
    for engine in ("suffix", "naive"):
        rewirer = Rewirer(load_engine(engine, model, [3, 4], "last"), tokenizer, MethodConfig(layers="3,4"))
        answered[f"{engine}, 1 at once"] = [rewirer.answer([item])[0] for item in ODD]
        answered[f"{engine}, 5 at once"] = rewirer.answer(ODD)
    for name, answers in answered.items():
        scores = [s for a in answers for s, _ in a.scores]
        assert scores == pytest.approx(expected, rel=1e-5, abs=2e-3), name


@pytest.mark.parametrize("answering", ["stock", "suffix", "naive"])
def test_options_of_one_text_score_alike_to_the_last_digit(answering, model, tokenizer):
    """Else the place in a batch would choose between them, and with it whether the answer is right."""
    twins = [
        choices(
            n, f"What do they say about number {n}?", *[f" words that are the same {n}"] * 2, " a", " bb " * n
        )
        for n in range(1, 10)
    ]
    twins = [replace(item, requests=(*item.requests, item.requests[0])) for item in twins]
    for size in (1, 4, 9):
        if answering == "stock":
            scorer = StockScorer(model, tiny_tokenizer(), size)
        else:
            engine = load_engine(answering, model, [3, 4], "last")
            scorer = Rewirer(engine, tokenizer, MethodConfig(layers="3,4"))
        answers = [a for start in range(0, 9, size) for a in scorer.answer(twins[start : start + size])]
        assert all(a.scores[0] == a.scores[1] == a.scores[4] != a.scores[2] for a in answers)


def test_cut_prompts_are_counted(tokenizer):
    assert tokenizer.check(ODD) == {"t": (5, 2)}
    prompt = Item(("w", 0), TEXT, "k", "q", prompt="x" * 1020, decoding={"max_gen_toks": 5})
    assert tokenizer.check([prompt]) == {"w": (1, 1)} and len(tokenizer.prompt(prompt)[0]) == 1019


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (choices(7, "Say", "", " b"), "no token is left of continuation 1 of 2, '', since it is empty"),
        (choices(7, "   ", "a"), "its prompt has no token"),
        (choices(7, "", ""), "no token is left of continuation 1 of 1"),
        (choices(7, "Say", " " + "x" * 1024), "has 1025 tokens, and the model reads 1024"),
        (Item(("t", 7), TEXT, "k", "q", prompt=""), "its prompt has no token: it is empty"),
    ],
)
def test_what_leaves_no_token_is_refused_by_name(item, why, tokenizer):
    with pytest.raises(ItemRefused, match="task t: document 7: ") as caught:
        tokenizer.check([ODD[1], item])
    assert why in str(caught.value) and caught.value.id == ("t", 7)


def test_a_choice_that_joins_with_its_prompt_is_refused(model):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE({"w": 0, "o": 1, "wo": 2, "<eos>": 3, "k": 4}, [("w", "o")]))
    joining = Tokenizer(model, PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"))
    with pytest.raises(ItemRefused, match="continuation 1 of 2, 'o', since it joins with the prompt"):
        joining.check([choices(0, "w", "o", "k")])


def test_a_token_that_the_model_does_not_embed_is_refused(model):
    own = tiny_tokenizer()
    own.add_tokens(["Zebra"])
    with pytest.raises(
        ItemRefused, match="'Zebra' of the tokenizer has number 99, and the model embeds only 99"
    ):
        Tokenizer(model, own).check([choices(0, "Say", " Zebra", " b")])
