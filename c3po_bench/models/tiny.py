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
_SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 5}
_LINEAR = ["linear_attention", "full_attention", "linear_attention"]
_BY_TYPE = {
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    }
}
_SHARED: dict[str, Any] = {
    **{
        "num_hidden_layers": 3,
        "head_dim": 8,
        "num_experts": 8,
        "num_local_experts": 8,
        "n_routed_experts": 8,
    },
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    **{"n_shared_experts": 1, "num_shared_experts": 1, "first_k_dense_replace": 1},
    **{"n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.5, "norm_topk_prob": True},
}
_LATENT: dict[str, Any] = {
    **{"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16},
    **{"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
}
_DELTA = {
    **{"layer_types": _LINEAR, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4},
}
_GRANITE: dict[str, Any] = {
    **{"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.35},
    **{"logits_scaling": 3.0, "shared_intermediate_size": 16},
}
_MORE: dict[str, dict[str, Any]] = {
    "granitemoeshared": _GRANITE,
    "granitemoe_swa": {**_GRANITE, **_SLIDING, "layer_rope_theta": [10000.0, 0.0, 300.0]},
    "aria_text": {"moe_num_experts": 8, "moe_topk": 2, "moe_num_shared_experts": 1},
    "flex_olmo": {"norm_topk_prob": False},
    "hunyuan_v1_moe": {"moe_topk": 2},
    "mellum": {**_SLIDING, **_BY_TYPE},
    "cohere2_moe": {**_SLIDING, "expert_selection_fn": "sigmoid", "logit_scale": 0.25}
    | {"shared_expert_combination_strategy": "average"},
    "ernie4_5_moe": {"moe_num_experts": 8, "moe_k": 2, "moe_layer_start_index": 1, "use_bias": True}
    | {"moe_norm_min": 0.9},
    "deepseek_v3": _LATENT,
    "glm4_moe_lite": _LATENT,
    "axk1": _LATENT,
    "glm4_moe": {},
    "solar_open": {},
    "dots1": _SLIDING,
    "exaone_moe": _SLIDING,
    "mimo_v2_flash": {**_SLIDING, **_BY_TYPE},
    "minimax_m2": {},
    "hy_v3": {"router_scaling_factor": 1.5},
    "afmoe": {**_SLIDING, "mup_enabled": True, "route_scale": 1.5, "num_dense_layers": 1},
    "laguna": {**_SLIDING, **_BY_TYPE, "moe_routed_scaling_factor": 2.5}
    | {"num_attention_heads_per_layer": [2, 4, 2], "moe_router_logit_softcapping": 2.0},
    "kolibri1": {**_SLIDING, "norm_topk_prob": False},
    "flint": {**_SLIDING, "mlp_only_layers": [0]},
    "qwen3_next": _DELTA,
    "qwen3_5_moe_text": _DELTA,
    "minimax": {"layer_types": _LINEAR, "block_size": 8},
    "granitemoehybrid": {**_GRANITE, "layer_types": _LINEAR, "mamba_n_heads": 4, "mamba_d_head": 16}
    | {"mamba_d_state": 8, "mamba_chunk_size": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "expert_layer_period": 1}
    | {"expert_layer_offset": 0, "use_mamba_kernels": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1}
    | {"use_expert_bias": True},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"]}
    | {"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8}
    | {"moe_shared_expert_intermediate_size": 16, "num_hidden_layers": 4},
    "bailing_hybrid": {**_LATENT, "layer_types": _LINEAR},
    "kimi_linear": {**_LATENT, "layer_types": _LINEAR, "linear_head_dim": 8, "linear_num_heads": 4}
    | {"q_lora_rank": None},
    "hy_v4": {},
    "beam": {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    "gemma4_text": {"enable_moe_block": True, "top_k_experts": 2, "hidden_size_per_layer_input": 0}
    | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "sliding_window": 5},
    "longcat_flash": {**_LATENT, "num_hidden_layers": 4, "expert_ffn_hidden_size": 16, "zero_expert_num": 2}
    | {"moe_topk": 2},
}
OWN |= {name: {**_SHARED, **row} for name, row in _MORE.items()}


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
            wide = parameter.dim() > 1 and not parameter.any() and model_type in _MORE
            zero = wide or name.endswith("correction_bias")
            if zero or (parameter.dim() == 1 and "norm" not in name):
                torch.nn.init.normal_(parameter, std=0.1)
        for name, buffer in model.named_buffers():
            if name.endswith(("correction_bias", "expert_bias")):
                torch.nn.init.normal_(buffer, std=0.1)
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
