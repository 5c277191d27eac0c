"""What of a model LoRA adapts, by full name: routers and experts only where they are asked for.

In transformers 5 the routers of Mixture-of-Experts models and their fused experts are no linear layers but
parameters, which PEFT adapts by name. It also takes some layers for the experts of transformers 4
(`gate_proj` of DeepSeek's shared experts)
and would adapt the fused ones in their place: the weights of such layers are named as parameters, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn
from transformers.pytorch_utils import Conv1D

from c3po_bench.errors import UserError, unknown

ALL = "all-linear"
_FUSED = ("gate_up_proj", "down_proj")  # the fused expert weights of transformers 5
_HALVES = ("gate_proj", "up_proj", "w1", "w3")  # what is fused in the first of them
_OLD = (*_HALVES, "down_proj", "w2")  # names in the experts of transformers 4
_ROUTERS = (".gate", ".router")


class Wanted(Protocol):
    """What is to be adapted.

    ``all-linear`` or names of modules, routers and fused experts only where they are asked for.
    """

    @property
    def targets(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def routers(self) -> bool: ...  # noqa: D102
    @property
    def experts(self) -> bool: ...  # noqa: D102
    @property
    def dropout(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class AllLinear:
    """Every linear map outside the experts."""

    targets: tuple[str, ...] = (ALL,)
    routers: bool = False
    experts: bool = False
    dropout: float = 0.0


@dataclass(frozen=True)
class Targets:
    """Full names of `modules` and `parameters` to adapt.

    `by_weight` are the layers of which PEFT is given the weight.
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    by_weight: tuple[str, ...]
    routers: bool
    experts: bool


def find_targets(model: Any, cfg: Wanted) -> Targets:
    """What `cfg` asks for in `model`, whatever adapter is on it.

    Raises:
        UserError: for names that the model has not, for routers and experts named but not asked for or asked
        for in vain,
            and for a dropout where PEFT knows none.
    """
    modules = dict(_plain(model.named_modules()))
    layers = {name: module for name, module in modules.items() if _adaptable(module)}
    routers = {name for name, m in modules.items() if name.endswith(_ROUTERS) and hasattr(m, "weight")}
    fused = [
        name for name, _ in _plain(model.named_parameters()) if ".experts." in name and name.endswith(_FUSED)
    ]
    single = {name for name in layers if ".experts." in name}
    for key, asked, found in (("routers", cfg.routers, routers), ("experts", cfg.experts, {*fused, *single})):
        if asked and not found:
            raise UserError(f"feedback.lora.{key}=true: this model has no {key}")
    chosen = {
        name
        for target in cfg.targets
        for name in _named(target, model, layers, routers, single, bool(fused), cfg)
    }
    chosen |= (routers if cfg.routers else set()) | (single if cfg.experts else set())
    by_weight = {name for name in chosen if name not in layers} | _taken_for_experts(
        model, chosen & set(layers), fused
    )
    parameters = {f"{name}.weight" for name in by_weight} | set(fused if cfg.experts else ())
    if not chosen and not parameters:
        raise UserError(f"feedback.lora.targets=[] leaves nothing to adapt: name {ALL}, or modules")
    if parameters and cfg.dropout:
        raise _no_dropout(by_weight, routers, cfg)
    return Targets(
        tuple(name for name in modules if name in chosen - by_weight),
        tuple(sorted(parameters)),
        tuple(sorted(by_weight)),
        cfg.routers,
        cfg.experts,
    )


def _plain(named: Any) -> Iterator[tuple[str, Any]]:
    """Names and what they are of, as they would be without an adapter on the model."""
    for name, found in named:
        if ".lora_" not in name:
            yield (
                name.replace(".base_layer", "").replace(".parametrizations", "").removesuffix(".original"),
                found,
            )


def _adaptable(module: Any) -> bool:
    """Whether PEFT has an adapter for a module like this."""
    return isinstance(module, (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, Conv1D))


def _named(
    target: str,
    model: Any,
    layers: dict[str, Any],
    routers: set[str],
    single: set[str],
    fused: bool,
    cfg: Wanted,
) -> set[str]:
    """The layers that `target` names: all linear ones but the head, or those of this name.

    No router and no expert.
    """
    others = set(layers) - routers - single
    if target == ALL:
        head = model.get_output_embeddings()
        other = (nn.Embedding, nn.Conv1d, nn.Conv2d)
        return {name for name in others if layers[name] is not head and not isinstance(layers[name], other)}
    hits = {name for name in {*layers, *routers} if name == target or name.endswith(f".{target}")}
    experts = hits & single or (not hits and fused and target in (*_FUSED, *_OLD))
    for key, found in (("routers", hits & routers), ("experts", experts)):
        if found and not getattr(cfg, key):
            raise UserError(
                f"feedback.lora.targets: {target!r} names {key} here, adapted by feedback.lora.{key}=true"
            )
    if not hits and not experts:
        raise unknown("feedback.lora.targets", target, [ALL, *(name.rpartition(".")[2] for name in others)])
    return hits & others


def _taken_for_experts(model: Any, layers: set[str], fused: list[str]) -> set[str]:
    """Those of `layers` in whose place PEFT would adapt fused experts or routers."""
    if not fused or not any(name.rpartition(".")[2] in _OLD for name in layers):
        return set()
    from peft import LoraConfig as PeftLora

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers as convert
    except ImportError:  # a PEFT that takes names as they are
        return set()
    tried = PeftLora(
        target_modules=[*layers, *(f"_.{half}" for half in _HALVES)]
    )  # it refuses one half alone
    convert(tried, model=model, conversions=None)
    return layers - set(tried.target_modules or ())


def _no_dropout(by_weight: set[str], routers: set[str], cfg: Wanted) -> UserError:
    mended, what = (
        "feedback.lora.targets without them",
        ", ".join(sorted({n.rpartition(".")[2] for n in by_weight - routers})),
    )
    for key, asked, name in (("routers", cfg.routers, "routers"), ("experts", cfg.experts, "fused experts")):
        if asked:
            mended, what = f"feedback.lora.{key}=false", name
    return UserError(
        f"feedback.lora.dropout={cfg.dropout}: must be 0 where {what} are adapted; or set {mended}"
    )


def check_adapted(model: Any, cfg: Wanted) -> Any:
    """`model`, a PEFT model that trains what `cfg` asks for and nothing else.

    Raises:
        UserError: where another version of PEFT reads names otherwise.
    """
    targets = find_targets(model.get_base_model(), cfg)
    trained = [name.partition(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad]
    adapted = {name.removeprefix("base_model.model.").replace(".base_layer", "") for name in trained}
    asked = {*targets.modules, *(name.rpartition(".")[0] for name in targets.parameters)}
    for names, said in ((adapted - asked, "adapts unasked"), (asked - adapted, "does not adapt")):
        if names:
            raise UserError(f"this version of peft {said}: {min(names)}; install the one of constraints.txt")
    return model
