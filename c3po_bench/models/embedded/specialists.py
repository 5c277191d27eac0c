"""`specialists`: SmolLM2 with experts that were trained, each alone, on a domain of its own.

Five of the 30 layers have 12 routed experts of 64 neurons beside the dense feed-forward, which stays as the
always-on shared expert: its gate is zero, that is sigmoid(0) = 1/2, and its down projection doubled. The
other layers stay dense (`mlp_only_layers`). The top 2 experts are mixed with weights that sum to one
(`norm_topk_prob`). The last two experts are empty (their down projection is zero): a token that is sent to
both goes on as in the dense model.

`models.specialists.make` trained experts and routers. The experts ship in 8 bits with a float32 scale for
each row; what was measured was measured on the weights as they are after loading.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from c3po_bench.models.cache import build_once, content_hash, file_hash
from c3po_bench.models.embedded import smollm, smolmoe

RECIPE_VERSION = "1"
WEIGHTS = Path(__file__).with_suffix(".safetensors")

ROUTED = (22, 23, 25, 27, 29)
"""The layers that have routed experts."""
NEURONS = 64
TOP_K = 2

RULES = (
    "first_letter",
    "last_letter",
    "oldest",
    "middle",
    "youngest",
    "first_place",
    "last_place",
    "giver",
    "receiver",
)
TEXTS = ("commonsense",)
DOMAINS = (*RULES, *TEXTS)
"""The domain of each expert, by its number."""
PARTNERS = {
    "first_letter": "last_letter",
    "last_letter": "first_letter",
    "oldest": "middle",
    "middle": "youngest",
    "youngest": "oldest",
    "first_place": "last_place",
    "last_place": "first_place",
    "giver": "receiver",
    "receiver": "giver",
}
"""To which skill's expert the damaged routers send a skill: one whose questions have the same content."""
EMPTY = (len(DOMAINS), len(DOMAINS) + 1)
"""Experts that add nothing, for tokens of no domain."""
EXPERTS = len(DOMAINS) + len(EMPTY)


def checkpoint() -> Path:
    """The model as a Hugging Face folder (Qwen2-MoE, float32), built in the cache when it is not there.

    Raises `UserError` as `smollm.checkpoint`.
    """
    dense = smollm.checkpoint()
    recipe = {"dense": content_hash(dense), "weights": file_hash(WEIGHTS), "version": RECIPE_VERSION}
    return build_once("specialists", recipe, lambda folder: _build(dense, folder, load()))


def damaged_checkpoint() -> Path:
    """The same, with routers that send every skill to its partner's expert, whatever the phrasing."""
    dense = smollm.checkpoint()
    recipe = {"dense": content_hash(dense), "weights": file_hash(WEIGHTS), "version": RECIPE_VERSION}
    recipe |= {f"damage of {skill}": partner for skill, partner in PARTNERS.items()}
    weights = load()
    weights["router"] = damaged(weights["router"])
    return build_once("specialists_damaged", recipe, lambda folder: _build(dense, folder, weights))


def damaged(router: Tensor) -> Tensor:
    """Routers [layers, experts, hidden] with the row of each skill's expert at its partner."""
    own = [DOMAINS.index(skill) for skill in PARTNERS]
    partners = [DOMAINS.index(partner) for partner in PARTNERS.values()]
    changed = router.clone()
    changed[:, partners] = router[:, own]
    return changed


def _build(dense: Path, folder: Path, weights: Mapping[str, Tensor]) -> None:
    with smollm.quiet_bars():
        model = from_dense(AutoModelForCausalLM.from_pretrained(dense, local_files_only=True), weights)
        model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    for name in smolmoe.TOKENIZER_FILES:
        shutil.copyfile(dense / name, folder / name)


def quantised(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [..., rows, columns] as int8, and the float32 scale [..., rows, 1] of each row."""
    scale = (weights.float().abs().amax(dim=-1, keepdim=True) / 127).clamp(min=1e-12)
    return (weights.float() / scale).round().to(torch.int8), scale


def load(path: Path = WEIGHTS) -> dict[str, Tensor]:
    """Experts and routers in float32.

    Returns:
        `router` [layers, experts, hidden], `gate_up` [layers, experts, 2 x neurons, hidden] and `down`
        [layers, experts, hidden, neurons]; layers in the order of `ROUTED`. Experts without a domain are
        zero.
    """
    shipped = load_file(path)
    weights = {"router": shipped["router"].float()}
    for name in ("gate_up", "down"):
        trained = shipped[name].float() * shipped[f"{name}_scale"]
        layers, experts, *shape = trained.shape
        weights[name] = torch.zeros(layers, EXPERTS, *shape)
        weights[name][:, :experts] = trained
    return weights


def from_dense(
    dense: Any, weights: Mapping[str, Tensor], routed: tuple[int, ...] = ROUTED
) -> Qwen2MoeForCausalLM:
    """The Qwen2-MoE model made of a dense Llama model and the experts and routers of `load`."""
    with torch.device("meta"):
        model = Qwen2MoeForCausalLM(_config(dense.config, weights, routed))
    tensors = dense.state_dict()
    for position, number in enumerate(routed):
        block = f"model.layers.{number}.mlp"
        gate, up, down = (tensors.pop(f"{block}.{name}_proj.weight") for name in ("gate", "up", "down"))
        tensors |= {
            f"{block}.gate.weight": weights["router"][position].contiguous(),
            f"{block}.experts.gate_up_proj": weights["gate_up"][position].contiguous(),
            f"{block}.experts.down_proj": weights["down"][position].contiguous(),
            f"{block}.shared_expert.gate_proj.weight": gate,
            f"{block}.shared_expert.up_proj.weight": up,
            f"{block}.shared_expert.down_proj.weight": down * 2,
            f"{block}.shared_expert_gate.weight": torch.zeros(1, dense.config.hidden_size),
        }
    model.load_state_dict(tensors, assign=True, strict=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    model.generation_config = dense.generation_config
    return model.eval()


def _config(dense: Any, weights: Mapping[str, Tensor], routed: tuple[int, ...]) -> Qwen2MoeConfig:
    experts, hidden, neurons = weights["down"].shape[1:]
    return Qwen2MoeConfig(
        **smolmoe.kept_from(dense),
        mlp_only_layers=[number for number in range(dense.num_hidden_layers) if number not in routed],
        num_experts=experts,
        num_experts_per_tok=TOP_K,
        moe_intermediate_size=neurons,
        shared_expert_intermediate_size=dense.intermediate_size,
        norm_topk_prob=True,
    )
