"""What of a model LoRA adapts, by full name: routers and experts only where they are asked for.

In transformers 5 the routers of Mixture-of-Experts models and their fused experts are no linear layers but
parameters, which PEFT adapts by name. It also takes some layers for the experts of transformers 4
(`gate_proj` of DeepSeek's shared experts)
and would adapt the fused ones in their place: the weights of such layers are named as parameters, too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn
from transformers.pytorch_utils import Conv1D

from c3po_bench.errors import UserError, unknown

ALL = "all-linear"
_FUSED = ("gate_up_proj", "down_proj")  # the fused expert weights of transformers 5
_UNGATED = (*_FUSED, "up_proj")  # and those of experts without a gate
_HALVES = ("gate_proj", "up_proj", "w1", "w3")  # what is fused in the first of them
_OLD = (*_HALVES, "down_proj", "w2")  # names in the experts of transformers 4
_ROUTERS = (".gate", ".router", ".gate.wg", ".router.proj", ".router.classifier")  # or the layer within them
_ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, Conv1D)
"""Modules that PEFT has an adapter for."""
_LINEAR = (nn.Linear, Conv1D)


class Choice(Protocol):
    """What is to be adapted, as `feedback.lora` says it.

    ``all-linear`` or names of modules, routers and fused experts only where they are asked for.
    """

    targets: list[str]
    routers: bool
    experts: bool
    dropout: float


@dataclass
class AllLinear:
    """Every linear map outside the experts."""

    targets: list[str] = field(default_factory=lambda: [ALL])
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


def find_targets(model: Any, choice: Choice) -> Targets:
    """What `choice` asks for in `model`, whatever adapter is on it.

    Raises:
        UserError: for names that the model has not, for routers and experts named but not asked for or asked
            for in vain, and for a dropout where PEFT knows none.
    """
    modules = dict(_without_adapter(model.named_modules()))
    layers = {name: module for name, module in modules.items() if isinstance(module, _ADAPTABLE)}
    routers = {name for name, m in modules.items() if name.endswith(_ROUTERS) and hasattr(m, "weight")}
    parameters = (name for name, _ in _without_adapter(model.named_parameters()))
    fused = [name for name in parameters if ".experts." in name and name.endswith(_UNGATED)]
    single = {name for name in layers if ".experts." in name}
    if choice.routers and not routers or choice.experts and not (fused or single):
        lacking = "routers" if choice.routers and not routers else "experts"
        raise UserError(f"feedback.lora.{lacking}=true: this model has no {lacking}")
    if choice.routers and any(name.endswith(".router.classifier") for name in routers):
        raise UserError(
            "feedback.lora.routers=true: this model's routers use their weights without calling the layer, where PEFT "
            "does not reach them"
        )
    head, chosen = model.get_output_embeddings(), set[str]()
    for target in choice.targets:
        if target == ALL:
            linear = (
                name for name, layer in layers.items() if layer is not head and isinstance(layer, _LINEAR)
            )
            chosen |= set(linear) - routers - single - _out_of_reach(modules)
        else:
            chosen |= _named(target, set(layers), routers, single, bool(fused), choice)
    chosen |= (routers if choice.routers else set()) | (single if choice.experts else set())
    by_weight = chosen - set(layers) | _taken_for_experts(model, chosen & set(layers), fused)
    weights = {f"{name}.weight" for name in by_weight} | set(fused if choice.experts else ())
    if not chosen and not weights:
        raise UserError(f"feedback.lora.targets=[] leaves nothing to adapt: name {ALL}, or modules")
    if weights and choice.dropout:
        raise _no_dropout(by_weight - routers, choice)
    return Targets(
        tuple(name for name in modules if name in chosen - by_weight),
        tuple(sorted(weights)),
        tuple(sorted(by_weight)),
        choice.routers,
        choice.experts,
    )


def _without_adapter(named: Any) -> Iterator[tuple[str, Any]]:
    """Names and what they are of, as they would be without an adapter on the model."""
    for name, of in named:
        if ".lora_" not in name:
            plain = name.replace(".base_layer", "").replace(".parametrizations", "")
            yield plain.removesuffix(".original"), of


def _named(
    target: str, layers: set[str], routers: set[str], single: set[str], fused: bool, choice: Choice
) -> set[str]:
    """The layers of this name: no router and no expert, which `choice` must ask for in another way."""
    hits = {name for name in layers | routers if name == target or name.endswith(f".{target}")}
    experts = hits & single or (not hits and fused and target in (*_FUSED, *_OLD))
    for key, named in (("routers", hits & routers), ("experts", experts)):
        if named and not getattr(choice, key):
            raise UserError(
                f"feedback.lora.targets: {target!r} names {key} here, adapted by feedback.lora.{key}=true"
            )
    others = layers - routers - single
    if not hits and not experts:
        raise unknown("feedback.lora.targets", target, [ALL, *(name.rpartition(".")[2] for name in others)])
    return hits & others


def _out_of_reach(modules: dict[str, Any]) -> set[str]:
    """Linear layers that would learn nothing, or that PEFT refuses.

    State-space mixers read the weights of two of theirs in their kernels; an indexer of sparse attention only
    chooses, so no gradient comes to it.
    """
    found = set[str]()
    for name, module in modules.items():
        kind = type(module).__name__
        if "Mamba" in kind:
            found |= {f"{name}.out_proj", f"{name}.dt_proj"}
        elif kind.endswith("Indexer"):
            found |= {inner for inner in modules if inner.startswith(f"{name}.")}
    return found


def _taken_for_experts(model: Any, layers: set[str], fused: list[str]) -> set[str]:
    """Those of `layers` in whose place PEFT would adapt fused experts or routers."""
    if not fused or not any(name.rpartition(".")[2] in _OLD for name in layers):
        return set()
    from peft import LoraConfig as PeftLora  # of the extra `feedback`

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers as convert
    except ImportError:  # a PEFT that takes names as they are
        return set()
    # it refuses one half alone
    config = PeftLora(target_modules=[*layers, *(f"_.{half}" for half in _HALVES)])
    convert(config, model=model, conversions=None)
    return layers - set(config.target_modules or ())


def _no_dropout(layers: set[str], choice: Choice) -> UserError:
    """The error for a dropout on `layers`, or on routers or fused experts, which PEFT adapts by their weights."""
    names, remedy = ", ".join(sorted({name.rpartition(".")[2] for name in layers})), "targets without them"
    if choice.experts:
        names, remedy = "fused experts", "experts=false"
    elif choice.routers:
        names, remedy = "routers", "routers=false"
    return UserError(
        f"feedback.lora.dropout={choice.dropout}: must be 0 where {names} are adapted; or set feedback.lora.{remedy}"
    )


def check_adapted(model: Any, choice: Choice) -> Any:
    """`model`, a PEFT model that trains what `choice` asks for and nothing else.

    Raises:
        UserError: where another version of PEFT reads names otherwise.
    """
    targets = find_targets(model.get_base_model(), choice)
    trained = [name.partition(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad]
    adapted = {name.removeprefix("base_model.model.").replace(".base_layer", "") for name in trained}
    wanted = {*targets.modules, *(name.rpartition(".")[0] for name in targets.parameters)}
    for names, fault in ((adapted - wanted, "adapts unasked"), (wanted - adapted, "does not adapt")):
        if names:
            raise UserError(f"this version of peft {fault}: {min(names)}; install the one of constraints.txt")
    return model
