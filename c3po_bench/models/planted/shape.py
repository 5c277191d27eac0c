"""The testbed's architecture and tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from c3po_bench.models.planted.words import vocabulary
from c3po_bench.models.planted.world import EXPERTS, OWNED

if TYPE_CHECKING:
    from transformers import OlmoeConfig, PreTrainedTokenizerFast


def config() -> OlmoeConfig:
    """A six-layer OLMoE of 0.74M parameters; like OLMoE it doesn't renormalise the selected weights."""
    from transformers import OlmoeConfig

    return OlmoeConfig(
        vocab_size=len(vocabulary()),
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=EXPERTS,
        num_experts_per_tok=OWNED,
        norm_topk_prob=False,
        max_position_embeddings=1024,
        initializer_range=0.05,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        tie_word_embeddings=False,
        dtype="float32",
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; punctuation, blanks and newlines are dropped."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(vocabulary())}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\W+"), behavior="removed")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=1024,
    )
