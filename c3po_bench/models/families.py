"""What the program must know of each Mixture-of-Experts family: where the router is and how it mixes experts.

In transformers 5 the router of every family returns `(logits, weights, indices)` and its block uses only the
last two, so a family is a row of `FAMILIES`: where its router is, and how logits become weights. Adding a
family is adding a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from c3po_bench.errors import UserError
from c3po_bench.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """One family; `family_of` fills the second half in from a model.

    `renormalises` tells whether the weights of the selected experts sum to one. A softmax over the selected
    logits only (GPT-OSS, GraniteMoE) is the same thing as a renormalised softmax over all of them.
    """

    model_type: str
    router: str = "mlp.gate"  # path of the router within a decoder layer
    renormalises: bool | str = "norm_topk_prob"  # a fact of the family, or the config key that tells
    scale_key: str | None = None  # config key: every weight is multiplied by it
    logits_divisor_key: str | None = None  # config key: the head's logits are divided by it
    window_key: str | None = (
        None  # config key: how far all layers see, where their attention has no `sliding_window`
    )
    decoder: str = "model"  # path of the decoder within the model
    head: str = "lm_head"
    since: str = "5.10"  # the transformers that first has the family in this form

    layers: tuple[int, ...] = ()  # indices of the decoder layers that are Mixture-of-Experts
    num_experts: int = 0
    top_k: int = 0
    renormalise: bool = False
    scale: float = 1.0
    logits_divisor: float = 1.0
    window: int | None = None
    groups: int = 1  # group-limited selection (DeepSeek-V2): experts of the best `kept_groups` groups compete
    kept_groups: int = 1

    def router_of(self, model: nn.Module, layer: int) -> nn.Module:
        """The router module of decoder layer `layer`, the one to hook."""
        return attrgetter(self.router)(self.decoder_of(model).layers[layer])

    def decoder_of(self, model: nn.Module) -> Any:
        """The decoder: it has `embed_tokens`, `layers`, `norm` and `rotary_emb`."""
        return attrgetter(self.decoder)(model)

    def embed(self, model: nn.Module, ids: Tensor) -> Tensor:
        """Hidden states [..., hidden] that enter the first layer for token ids [...]."""
        decoder = self.decoder_of(model)
        return decoder.embed_tokens(ids) * getattr(decoder, "embedding_multiplier", 1.0)


FAMILIES: Registry[Family] = Registry(
    "model_type",
    {
        family.model_type: family
        for family in (
            Family("olmoe"),
            Family("qwen2_moe"),
            Family("qwen3_moe"),
            Family("mixtral", renormalises=True, window_key="sliding_window"),
            Family("gpt_oss", router="mlp.router", renormalises=True),
            Family(
                "granitemoe",
                router="block_sparse_moe.router",
                renormalises=True,
                logits_divisor_key="logits_scaling",
                since="5.21",
            ),
            Family("deepseek_v2", renormalises=False, scale_key="routed_scaling_factor", since="5.13"),
        )
    },
)
"""Families by `config.model_type`. DeepSeekMoE-16B is loaded as `qwen2_moe`: see `models.deepseek`."""


def family_of(model: nn.Module) -> Family:
    """The family of a causal language model, with its numbers filled in.

    Raises:
        UserError: when the model is dense, its family isn't in the table, or transformers is too old for it.
    """
    config: Any = model.config
    kind = config.model_type
    if kind not in FAMILIES:
        if not getattr(config, "num_experts", None) and not getattr(config, "num_local_experts", None):
            name = getattr(config, "_name_or_path", "") or type(model).__name__
            raise UserError(
                f"model {name} is dense (model_type {kind}): rewiring needs a Mixture-of-Experts model, "
                "e.g. model=smolmoe or model=olmoe"
            )
        raise UserError(f"model_type {kind!r} isn't a known Mixture-of-Experts family: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    if Version(installed := version("transformers")) < Version(family.since):
        needed = f"{family.model_type} models need transformers>={family.since}"
        raise UserError(f"{needed}, this is {installed}: upgrade transformers")
    layers = tuple(
        number
        for number, layer in enumerate(family.decoder_of(model).layers)
        if any(name == family.router for name, _ in layer.named_modules())  # a dense layer has no router
    )
    if not layers:
        raise UserError(f"no layer of this {kind} model has a router: rewiring has nothing to change")
    router: Any = family.router_of(model, layers[0])
    rule = family.renormalises
    limited = getattr(config, "topk_method", None) == "group_limited_greedy"
    return replace(
        family,
        layers=layers,
        num_experts=router.num_experts,
        top_k=router.top_k,
        renormalise=bool(getattr(config, rule)) if isinstance(rule, str) else rule,
        scale=_number(config, family.scale_key),
        logits_divisor=_number(config, family.logits_divisor_key),
        window=getattr(config, family.window_key) if family.window_key else None,
        groups=config.n_group if limited else 1,
        kept_groups=config.topk_group if limited else 1,
    )


def _number(config: Any, key: str | None) -> float:
    """The value of config key `key`; 1 for families that have no such key."""
    return float(getattr(config, key)) if key else 1.0


def router_probabilities(logits: Tensor) -> Tensor:
    """The pathway that a router chose.

    The float32 softmax of its logits [tokens, experts] over all experts.
    """
    return logits.float().softmax(dim=-1)


def mix(
    family: Family, pathway: Tensor, top_k: int | None = None, candidates: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights and experts that the family's block would use if its router had said `pathway`.

    Given the original pathway it gives the router's own answer. Differentiable in `pathway` for a fixed
    choice of experts.

    Args:
        family: from `family_of`.
        pathway: [..., experts], non-negative.
        top_k: how many experts to mix; the model's own number if None.
        candidates: optional boolean [..., experts]: only these may be selected (at least `top_k` of them).

    Returns:
        weights [..., top_k], float as `pathway`, and indices [..., top_k].
    """
    open_to = candidates
    if family.groups > 1:
        grouped = pathway.unflatten(-1, (family.groups, -1))
        best = grouped.amax(dim=-1).topk(family.kept_groups, dim=-1).indices
        kept = pathway.new_zeros(grouped.shape[:-1]).scatter(-1, best, 1.0).bool()
        in_group = kept.unsqueeze(-1).expand_as(grouped).flatten(-2)
        open_to = in_group if open_to is None else open_to & in_group
    score = pathway if open_to is None else pathway.masked_fill(~open_to, float("-inf"))
    indices = score.topk(family.top_k if top_k is None else top_k, dim=-1).indices
    weights = pathway.gather(-1, indices)
    if family.renormalise:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights * family.scale, indices
