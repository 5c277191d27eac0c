"""SmolMoE: from the dense SmolLM2 and the shipped split of its neurons to a Qwen2-MoE checkpoint.

A feed-forward layer is a sum over neurons, y = sum_j d_j silu(g_j.x) (u_j.x), so any partition of the neurons
into experts is exact as long as every expert answers with weight one. The shared expert's gate is zero, that
is sigmoid(0) = 1/2, and its down projection doubled; the routed experts' down projections are multiplied by
16, so that the 16 softmax weights of an indifferent router (1/16 each) are weight one. The routing weights
are not renormalised over the top 8 (`norm_topk_prob=False`, as in OLMoE): with all 16 experts active and
equal weights the checkpoint is the dense model; with 8, the router decides what is left out and how the rest
makes up for it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from c3po_bench.models.cache import build_once, content_hash, file_hash
from c3po_bench.models.embedded import smollm

RECIPE_VERSION = "1"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SPLIT_FILE = Path(__file__).with_suffix(".safetensors")

LAYERS = 30
HIDDEN = 576
NEURONS = 1536
SHARED = 768
EXPERTS = 16
EXPERT_NEURONS = (NEURONS - SHARED) // EXPERTS
TOP_K = 8


@dataclass(frozen=True)
class Split:
    """Which neuron goes where, and who is routed to it.

    `permutation` is [layers, 1536] of neuron numbers: the shared expert's 768, then 48 for each routed
    expert. `router` is [layers, 16, 576], the weights of each layer's router.
    """

    permutation: Tensor
    router: Tensor

    @classmethod
    def load(cls, path: Path = SPLIT_FILE) -> Split:
        """Read a split, neurons as int64 and routers as float32."""
        tensors = load_file(path)
        return cls(tensors["permutation"].long(), tensors["router"].float())


def checkpoint() -> Path:
    """SmolMoE as a Hugging Face folder (Qwen2-MoE, float32, 540 MB), built in the cache when it is not there.

    Under a minute the first time, with the dense model's own building. Raises `UserError` as
    `smollm.checkpoint`.
    """
    dense = smollm.checkpoint()
    recipe = {
        "dense": content_hash(dense),
        "split": file_hash(SPLIT_FILE),
        "version": RECIPE_VERSION,
    }
    return build_once("smolmoe", recipe, lambda folder: _build(dense, folder))


def _build(dense: Path, folder: Path) -> None:
    with smollm.quiet_bars():
        model = from_dense(AutoModelForCausalLM.from_pretrained(dense, local_files_only=True), Split.load())
        model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    for name in TOKENIZER_FILES:
        shutil.copyfile(dense / name, folder / name)


def from_dense(dense: Any, split: Split) -> Qwen2MoeForCausalLM:
    """The Qwen2-MoE model that `split` makes of a dense Llama model of SmolLM2-135M's shape."""
    with torch.device("meta"):
        model = Qwen2MoeForCausalLM(_config(dense.config))
    weights = {name: tensor for name, tensor in dense.state_dict().items() if ".mlp." not in name}
    for number, layer in enumerate(dense.model.layers):
        experts = _experts(layer.mlp, split.permutation[number], split.router[number])
        weights |= {f"model.layers.{number}.mlp.{name}": tensor for name, tensor in experts.items()}
    model.load_state_dict(weights, assign=True, strict=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    model.generation_config = dense.generation_config
    return model.eval()


def _experts(mlp: Any, permutation: Tensor, router: Tensor) -> dict[str, Tensor]:
    """The tensors of one sparse layer, made of the dense layer's `gate`, `up` and `down` projections."""
    gate = mlp.gate_proj.weight.detach()[permutation]
    up = mlp.up_proj.weight.detach()[permutation]
    down = mlp.down_proj.weight.detach()[:, permutation]
    routed = (EXPERTS, EXPERT_NEURONS, HIDDEN)
    experts_gate, experts_up = gate[SHARED:].reshape(routed), up[SHARED:].reshape(routed)
    experts_down = down[:, SHARED:].T.reshape(routed).transpose(1, 2)
    return {
        "gate.weight": router.contiguous(),
        "experts.gate_up_proj": torch.cat([experts_gate, experts_up], dim=1).contiguous(),
        "experts.down_proj": (experts_down * EXPERTS).contiguous(),
        "shared_expert.gate_proj.weight": gate[:SHARED].contiguous(),
        "shared_expert.up_proj.weight": up[:SHARED].contiguous(),
        "shared_expert.down_proj.weight": (down[:, :SHARED] * 2).contiguous(),
        "shared_expert_gate.weight": torch.zeros(1, HIDDEN),
    }


KEPT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "rms_norm_eps",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rope_parameters",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "initializer_range",
)
"""What a Qwen2-MoE configuration takes over from the dense model's."""


def kept_from(dense: Any) -> dict[str, Any]:
    """The attention, norms and vocabulary of the dense Llama configuration `dense`, for a Qwen2-MoE one in float32."""
    return {name: getattr(dense, name) for name in KEPT} | {
        "qkv_bias": False,
        "decoder_sparse_step": 1,
        "dtype": "float32",
    }


def _config(dense: Any) -> Qwen2MoeConfig:
    return Qwen2MoeConfig(
        **kept_from(dense),
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        moe_intermediate_size=EXPERT_NEURONS,
        shared_expert_intermediate_size=SHARED,
        norm_topk_prob=False,
    )
