"""The planted testbed's model: a small OLMoE whose best pathways are known, because we put them there.

What was planted, and in which questions, is in `planted_world`; `models.makers.planted` trained the shipped weights.
"""

from pathlib import Path

from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

from c3po_bench.models.cache import build_once, file_hash
from c3po_bench.models.embedded.planted_world import EXPERTS, OWNED, vocabulary

WEIGHTS = Path(__file__).with_suffix(".safetensors")
RECIPE_VERSION = "1"


def checkpoint() -> Path:
    """The testbed's folder (OLMoE, float32, 3 MB, with tokenizer), built in the cache when it is not there."""
    recipe = {"weights": file_hash(WEIGHTS), "version": RECIPE_VERSION}
    return build_once("planted", recipe, _build)


def _build(folder: Path) -> None:
    model = OlmoeForCausalLM(config())
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()}, strict=True)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def config() -> OlmoeConfig:
    """A six-layer OLMoE of 0.74M parameters; like OLMoE it doesn't renormalise the selected weights."""
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
