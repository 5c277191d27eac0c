"""What the program must know of each Mixture-of-Experts family: where the router is and how it mixes experts.

In transformers 5 the router of a family returns `(logits, weights, indices)` and its block uses only the last
two, so a family is a row of `FAMILIES`: where its router is, and how logits become weights. Adding a family is
adding a row.

The *pathway* of a token is its vector of scores, one for each expert: softmax(logits), which sums to one, or
sigmoid(logits), each in [0, 1]. `mix` makes weights and experts of it as the family's own router does.
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
    """One family; `family_of` fills the second half in from a model.

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
        """The family with the bias and factors of these decoder layers alone, as `mix` needs them, on `device`."""
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


def family_of(model: nn.Module) -> Family:
    """The family of a causal language model, with its numbers filled in.

    Raises:
        UserError: when the model is dense, its family isn't in the table, or transformers is too old for it.
    """
    config: Any = model.config
    family = family_by_type(config, type(model).__name__)
    layers = tuple(
        number
        for number, layer in enumerate(family.decoder_of(model).layers)
        if any(name == family.router for name, _ in layer.named_modules())  # a dense layer has no router
    )
    if not layers:
        raise UserError(
            f"no layer of this {family.model_type} model has a router: rewiring has nothing to change"
        )
    routers: list[Any] = [family.router_of(model, layer) for layer in layers]
    sizes = {(_width(r), int(getattr(r, "top_k", 0) or getattr(config, family.top_k_key))) for r in routers}
    if len(sizes) > 1:
        raise UserError(f"this {family.model_type} model has layers of unlike numbers of experts: {sizes}")
    num_experts, top_k = sizes.pop()
    rule, score, scale = family.renormalises, family.score, _number(config, family.scale_key)
    limited = family.group_score == "top2sum" or (
        family.group_score is not None and getattr(config, "topk_method", None) == "group_limited_greedy"
    )
    return replace(
        family,
        layers=layers,
        num_experts=num_experts,
        top_k=top_k,
        score=score(config) if callable(score) else score,
        renormalise=rule(config)
        if callable(rule)
        else bool(getattr(config, rule) if isinstance(rule, str) else rule),
        scale=1.0 if family.scale_after else scale,
        factor=scale if family.scale_after else 1.0,
        least_sum=_number(config, family.least_sum_key, 0.0),
        logits_divisor=_number(config, family.logits_divisor_key) / _number(config, family.logits_factor_key),
        groups=(config.n_group or 1) if limited else 1,
        kept_groups=(config.topk_group or 1) if limited else 1,
        selection_bias=_of_layers(family, model, layers, family.bias),
        expert_scales=_of_layers(family, model, layers, family.expert_scale),
    )


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


def _number(config: Any, key: str | None, otherwise: float = 1.0) -> float:
    """The value of config key `key`; `otherwise` for families that have no such key."""
    return float(getattr(config, key)) if key else otherwise


def _width(router: nn.Module) -> int:
    """How many experts a router has logits for."""
    return next(p.shape[0] for p in router.parameters() if p.dim() == 2 and p.shape[0] > 1)


def _of_layers(family: Family, model: nn.Module, layers: tuple[int, ...], path: str | None) -> Tensor | None:
    """The tensors at `path` of layers, stacked [layers, experts] in float32; None where there are none."""
    if path is None:
        return None
    import torch  # the table alone, which `doctor` and the docs read, needs it not

    from c3po_bench.models.placement import at_hand

    rows: list[Any] = []
    owner, _, name = path.rpartition(".")
    for layer in layers:
        module = family.decoder_of(model).layers[layer].get_submodule(owner)
        if not hasattr(module, name):  # a config may do without
            return None
        with at_hand(module):
            rows.append(getattr(module, name).detach().float().flatten().cpu())
    return torch.stack(rows)


def probe_ids(model: Any) -> Tensor:
    """A prompt of four different tokens [1, 4], on the device where the model's inputs go."""
    import torch  # see above

    from c3po_bench.models.placement import input_device

    ids = torch.arange(1, 5)[None] * 7 % model.config.get_text_config().vocab_size
    return ids.to(input_device(model))


def selection_scores(family: Family, pathway: Tensor, candidates: Tensor | None = None) -> Tensor:
    """What experts compete by, [..., experts]: the pathway with the family's bias, -inf where not eligible.

    Args:
        family: from `family_of`, its bias that of the pathway's layers (`Family.at`).
        pathway: [..., experts], or [..., layers, experts] where the family has a bias.
        candidates: optional boolean, same shape: only these are eligible.
    """
    score = pathway
    if family.selection_bias is not None:
        score = to_logits(pathway, "sigmoid") if family.bias_on == "logits" else pathway
        score = score + family.selection_bias.to(pathway)
    if candidates is not None:
        score = score.masked_fill(~candidates, float("-inf"))
    if family.groups > 1:
        grouped = score.unflatten(-1, (family.groups, -1))
        if family.group_score == "max":
            worth = grouped.amax(dim=-1)
        else:
            first, second = grouped.topk(2, dim=-1).values.unbind(-1)
            worth = first + second.masked_fill(second.isinf(), 0.0)  # a group of one candidate
        best = worth.topk(family.kept_groups, dim=-1).indices
        kept = score.new_zeros(worth.shape).scatter(-1, best, 1.0).bool()
        score = score.masked_fill(~kept.unsqueeze(-1).expand_as(grouped).flatten(-2), float("-inf"))
    return score


def mix(
    family: Family, pathway: Tensor, top_k: int | None = None, candidates: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights and experts that the family's block would use if its router had said `pathway`.

    Given the original pathway it gives the router's own answer. Differentiable in `pathway` for a fixed
    choice of experts.

    Args:
        family: from `family_of`; where it has a selection bias, of the pathway's layers alone (`Family.at`).
        pathway: [..., experts], non-negative; [..., layers, experts] where the family has a selection bias.
        top_k: how many experts to mix; the model's own number if None.
        candidates: optional boolean [..., experts]: only these may be selected (at least `top_k` of them).

    Returns:
        weights [..., top_k], float as `pathway`, and indices [..., top_k].
    """
    score = selection_scores(family, pathway, candidates)
    indices = score.topk(family.top_k if top_k is None else top_k, dim=-1).indices
    weights = pathway.gather(-1, indices)
    if family.renormalise:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + family.eps).clamp_min(family.least_sum)
    if family.expert_scales is not None:
        scales = family.expert_scales.to(pathway).expand_as(pathway)
        weights = weights * scales.gather(-1, indices)
    return weights * family.scale, indices
