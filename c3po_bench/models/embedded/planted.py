"""The planted testbed's model: a small OLMoE whose best pathways are known, because we put them there.

What was planted, and in which questions, is in `planted_world`; `models.makers.planted` trained the shipped
weights.
"""

from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, MiniMaxM2Config, OlmoeConfig, PreTrainedTokenizerFast

from c3po_bench.models.cache import build_once, file_hash
from c3po_bench.models.embedded.planted_world import EXPERTS, OWNED, vocabulary

RECIPE_VERSION = "1"


def weights_of(score: str) -> Path:
    """The shipped file: of routers with softmax scores, or of the sibling with sigmoid ones."""
    name = "planted" if score == "softmax" else f"planted_{score}"
    return Path(__file__).with_name(f"{name}.safetensors")


def checkpoint(score: str = "softmax") -> Path:
    """The testbed's folder (float32, 3 MB, with tokenizer), built in the cache when it is not there."""
    weights = weights_of(score)
    recipe = {"weights": file_hash(weights), "version": RECIPE_VERSION}
    return build_once(weights.stem, recipe, partial(_build, score))


def sigmoid_checkpoint() -> Path:
    """The folder of the sibling whose routers' scores are sigmoids."""
    return checkpoint("sigmoid")


def _build(score: str, folder: Path) -> None:
    model: Any = AutoModelForCausalLM.from_config(CONFIGS[score]())
    stored = load_file(weights_of(score))
    model.load_state_dict({name: tensor.float() for name, tensor in stored.items()}, strict=True)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


SIZES: dict[str, Any] = {
    "vocab_size": len(vocabulary()),
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts_per_tok": OWNED,
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "dtype": "float32",
}


def config() -> OlmoeConfig:
    """A six-layer OLMoE of 0.74M parameters; like OLMoE it doesn't renormalise the selected weights."""
    return OlmoeConfig(**SIZES, num_experts=EXPERTS, norm_topk_prob=False)


def sigmoid_config() -> MiniMaxM2Config:
    """The same sizes as a MiniMax-M2: sigmoid scores, those of the selected experts divided by their sum."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    return MiniMaxM2Config(**SIZES, head_dim=16, num_local_experts=EXPERTS, rope_parameters=rope)


CONFIGS: dict[str, Any] = {"softmax": config, "sigmoid": sigmoid_config}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; punctuation, blanks and newlines are dropped."""
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
