"""What the program must know of each Mixture-of-Experts family: where the router is and how it mixes experts.

In transformers 5 the router of a family returns `(logits, weights, indices)` and its block uses only the last
two, so a family is a row of `FAMILIES`: where its router is, and how logits become weights. Adding a family
is adding a row.

The *pathway* of a token is its vector of scores, one for each expert: softmax(logits), which sums to one, or
sigmoid(logits), each in [0, 1]. `routing.mix` makes weights and experts of it as the family's own router
does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from c3po_bench.errors import UserError
from c3po_bench.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SCORES = ("softmax", "sigmoid")


@dataclass(frozen=True)
class Family:
    """One family; `routing.family_of` fills the second half in from a model.

    `renormalises` tells whether the weights of the selected experts sum to one. A softmax over the selected
    logits only (GPT-OSS, GraniteMoE) is the same thing as a renormalised softmax over all of them.
    """

    model_type: str
    router: str = "mlp.gate"  # path of the router within a decoder layer
    experts: str | None = None  # path of the experts; beside the router if None
    score: str | Callable[[Any], str] = "softmax"  # of SCORES, or what the config says
    probabilities: bool = False  # whether the router's first output is the score, not the logits
    bias: str | None = None  # path within a layer of what is added for the selection alone
    bias_on: str = "scores"  # or logits: what it is added to
    group_score: str | None = None  # max or top2sum: by what groups of experts compete, where they do
    renormalises: bool | str | Callable[[Any], bool] = "norm_topk_prob"  # a fact, a config key, or a function
    eps: float = 0.0  # added to the sum that weights are divided by
    least_sum_key: str | None = None  # config key: that sum is at least so much
    scale_key: str | None = None  # config key: every weight is multiplied by it
    scale_after: bool = False  # the scale multiplies what the experts give, outside the router
    expert_scale: str | None = None  # path within a layer of a factor for each expert's weight
    top_k_key: str = "num_experts_per_tok"  # where the router has no `top_k`
    logits_divisor_key: str | None = None  # config key: the head's logits are divided by it
    logits_factor_key: str | None = None  # config key: they are multiplied by it
    naive_only: str = ""  # why the engine `suffix` does not run it
    decoder: str = "model"  # path of the decoder within the model
    head: str = "lm_head"
    since: str = "5.10"  # the transformers that first has the family in this form

    layers: tuple[int, ...] = ()  # indices of the decoder layers that are Mixture-of-Experts
    num_experts: int = 0
    top_k: int = 0
    renormalise: bool = False
    scale: float = 1.0
    factor: float = 1.0  # of what the experts give: the scale of families with `scale_after`
    least_sum: float = 0.0
    logits_divisor: float = 1.0
    groups: int = 1  # group-limited selection: experts of the best `kept_groups` groups compete
    kept_groups: int = 1
    selection_bias: Tensor | None = field(default=None, compare=False, repr=False)  # [layers, experts]
    expert_scales: Tensor | None = field(default=None, compare=False, repr=False)  # [layers, experts]

    def router_of(self, model: nn.Module, layer: int) -> nn.Module:
        """The router module of decoder layer `layer`, the one to hook."""
        return attrgetter(self.router)(self.decoder_of(model).layers[layer])

    def decoder_of(self, model: nn.Module) -> Any:
        """The decoder: it has `embed_tokens` and `layers`."""
        return attrgetter(self.decoder)(model)

    def experts_of(self, model: nn.Module, layer: int) -> nn.Module:
        """The experts module that the router of decoder layer `layer` directs."""
        path = self.experts or ".".join([*self.router.split(".")[:-1], "experts"])
        return self.decoder_of(model).layers[layer].get_submodule(path)

    def at(self, layers: Sequence[int], device: torch.device | None = None) -> Family:
        """The family with the bias and factors of these layers alone, on `device`, as `mix` needs them."""
        rows = [self.layers.index(layer) for layer in layers]
        both = (self.selection_bias, self.expert_scales)
        bias, scales = (None if t is None else t[rows].to(device or t.device) for t in both)
        return replace(self, selection_bias=bias, expert_scales=scales)

    def pathway(self, routed: Tensor) -> Tensor:
        """The pathway that a router chose, float32, from its first output [tokens, experts]."""
        if self.probabilities:
            return routed.float()
        return to_score(routed.float(), self.score)


def to_score(logits: Tensor, score: str | Callable[[Any], str]) -> Tensor:
    """The scores [..., experts] of logits: a softmax over all experts, or each expert's sigmoid."""
    return logits.sigmoid() if score == "sigmoid" else logits.softmax(dim=-1)


def to_logits(pathway: Tensor, score: str | Callable[[Any], str]) -> Tensor:
    """Logits whose scores are `pathway` [..., experts]; scores of 0 and 1 get finite ones."""
    return pathway.logit(1e-7) if score == "sigmoid" else pathway.clamp_min(1e-9).log()


_new = partial(Family, since="5.23")
_v3 = partial(
    _new,
    score="sigmoid",
    bias="mlp.gate.e_score_correction_bias",
    group_score="top2sum",
    eps=1e-20,
    scale_key="routed_scaling_factor",
)
_RECURRENT = "some layers keep a recurrent state"
_INDEXED = "an indexer chooses the keys that a token sees"
_granite = partial(
    Family, router="block_sparse_moe.router", renormalises=True, logits_divisor_key="logits_scaling"
)

FAMILIES: Registry[Family] = Registry(
    "model_type",
    {
        family.model_type: family
        for family in (
            Family("olmoe"),
            Family("qwen2_moe"),
            Family("qwen3_moe"),
            Family("mixtral", renormalises=True),
            Family("gpt_oss", router="mlp.router", renormalises=True),
            _granite("granitemoe", since="5.21"),
            Family(
                "deepseek_v2",
                renormalises=False,
                scale_key="routed_scaling_factor",
                group_score="max",
                since="5.13",
            ),
            _granite("granitemoeshared", since="5.23"),
            _granite("granitemoe_swa", since="5.23"),
            _new("aria_text", router="mlp.router", renormalises=True),
            _new("flex_olmo"),
            _new("hunyuan_v1_moe", renormalises=True),
            _new("mellum"),
            _new(
                "cohere2_moe",
                score=lambda config: config.expert_selection_fn,
                renormalises=lambda config: config.expert_selection_fn == "softmax" or config.norm_topk_prob,
                logits_factor_key="logit_scale",
            ),
            _new(
                "ernie4_5_moe",
                bias="mlp.gate.moe_statics.e_score_correction_bias",
                renormalises=True,
                least_sum_key="moe_norm_min",
            ),
            *map(
                _v3,
                ("deepseek_v3", "glm4_moe_lite", "axk1", "glm4_moe", "solar_open", "dots1", "exaone_moe")
                + ("mimo_v2_flash",),
            ),
            _new("minimax_m2", score="sigmoid", bias="mlp.e_score_correction_bias", renormalises=True),
            _new(
                "hy_v3",
                score="sigmoid",
                bias="mlp.e_score_correction_bias",
                renormalises=True,
                eps=1e-20,
                scale_key="router_scaling_factor",
            ),
            _new(
                "afmoe",
                router="mlp.router",
                score="sigmoid",
                bias="mlp.expert_bias",
                renormalises=True,
                eps=1e-20,
                scale_key="route_scale",
            ),
            _new(
                "laguna",
                score="sigmoid",
                bias="mlp.gate.e_score_correction_bias",
                renormalises=True,
                scale_key="moe_routed_scaling_factor",
                scale_after=True,
            ),
            _new("kolibri1", score="sigmoid", bias="mlp.gate.e_score_correction_bias", bias_on="logits"),
            _new("flint", score="sigmoid"),
            _new("qwen3_next", naive_only=_RECURRENT),
            _new("qwen3_5_moe_text", renormalises=True, naive_only=_RECURRENT),
            _new("minimax", renormalises=True, naive_only=_RECURRENT),
            _granite("granitemoehybrid", naive_only=_RECURRENT, since="5.23"),
            _new("jamba", router="feed_forward.router", renormalises=False, naive_only=_RECURRENT),
            _new(
                "lfm2_moe",
                router="feed_forward.gate",
                score="sigmoid",
                bias="feed_forward.expert_bias",
                eps=1e-6,
                scale_key="routed_scaling_factor",
                naive_only=_RECURRENT,
            ),
            _v3(
                "nemotron_h",
                router="mixer.gate",
                bias="mixer.gate.e_score_correction_bias",
                naive_only=_RECURRENT,
            ),
            _v3("bailing_hybrid", naive_only=_RECURRENT),
            _v3("kimi_linear", naive_only=_RECURRENT),
            _v3("hy_v4", naive_only=_INDEXED),
            _v3("beam", scale_after=True, naive_only="attention is scaled by position"),
            _new(
                "gemma4_text",
                router="router",
                probabilities=True,
                renormalises=True,
                expert_scale="router.per_expert_scale",
                top_k_key="top_k_experts",
                naive_only="layers share keys and have inputs of their own",
            ),
            _new(
                "longcat_flash",
                router="mlp.router",
                bias="mlp.router.e_score_correction_bias",
                renormalises=False,
                scale_key="routed_scaling_factor",
                naive_only="a layer has two attentions",
            ),
        )
    },
)
"""Families by `config.model_type`. DeepSeekMoE-16B is loaded as `qwen2_moe`: see `models.deepseek`."""

REFUSED = {
    "dbrx": "its router is no module that chooses experts",
    "llama4_text": "its router scales what enters the experts, not what they give",
    "jetmoe": "its attention is routed, too",
    "phimoe": "its router draws each expert in a round of its own, so its weights are of no one score",
    "doge": "its experts are retrieved by product keys, and a token sees later ones",
    "zaya": "its router carries a state from layer to layer",
    "deepseek_v4": "some of its layers route by the token's id, without a score",
    **dict.fromkeys(
        ("deepseek_v32", "glm_moe_dsa"),
        "its indexer chooses other keys for a prompt that stands in a padded batch",
    ),
    "axk2": "experts outside the kept groups stay eligible there",
}
"""Mixture-of-Experts families that rewiring can't cover, and why."""


def family_by_type(config: Any, fallback: str = "of this config") -> Family:
    """The row of `FAMILIES` for a config, without numbers.

    Raises:
        UserError: as `family_of`; `fallback` is the model's name where the config has none.
    """
    kind = config.model_type
    if kind in REFUSED:
        raise UserError(f"model_type {kind} can't be rewired: {REFUSED[kind]}; choose another model")
    if kind not in FAMILIES:
        if not any(getattr(config, key, None) for key in ("num_experts", "num_local_experts")):
            name = getattr(config, "_name_or_path", "") or fallback
            raise UserError(
                f"model {name} is dense (model_type {kind}): rewiring needs a Mixture-of-Experts model, "
                "e.g. model=smolmoe or model=olmoe"
            )
        raise UserError(f"model_type {kind!r} isn't a known Mixture-of-Experts family: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    if Version(installed := version("transformers")) < Version(family.since):
        needed = f"{family.model_type} models need transformers>={family.since}"
        raise UserError(f"{needed}, this is {installed}: upgrade transformers")
    return family
