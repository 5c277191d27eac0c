"""Tiny random models of every family and a character tokenizer: whole experiments without a download."""

import string
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from c3po_bench.errors import unknown

CHARACTERS = ["<pad>", "<eos>", "<unk>", *string.printable[:95], "\n"]
"""The tokenizer's vocabulary: three specials, the printable ASCII characters and the newline."""

SIZES: dict[str, Any] = {
    "vocab_size": len(CHARACTERS),
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,  # large enough that routing matters to the logits
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}

OWN: dict[str, dict[str, Any]] = {
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
        "mlp_only_layers": [0],
    },
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "head_dim": 8,
        "norm_topk_prob": True,
    },
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "gpt_oss": {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "head_dim": 8,
        "sliding_window": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "granitemoe": {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.35,
        "logits_scaling": 3.0,
    },
    "deepseek_v2": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_shared_experts": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "routed_scaling_factor": 1.5,
    },
    "llama": {},  # dense: what the program refuses
}


def tiny_model(model_type: str = "olmoe", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random float32 model of `model_type` (100,000 parameters or so), in evaluation mode.

    Args:
        model_type: a key of `OWN`.
        seed: of the weights; the global random state is left alone.
        changes: config keys that differ from the tiny default.

    Raises:
        UserError: on an unknown `model_type`.
    """
    if model_type not in OWN:
        raise unknown("tiny model", model_type, OWN)
    config = AutoConfig.for_model(model_type, **{**SIZES, **OWN[model_type], **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():  # some families leave biases and sinks at zero
            if parameter.dim() == 1 and "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single ASCII characters, built in code. Other characters become `<unk>`."""
    backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARACTERS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=1024,
    )
