"""The pathway: which layers and experts may move, and how a pathway becomes mixing weights.

A pathway is the routing scores of one token, [critical layers, experts]: each row is on the simplex where the
router's scores are a softmax (paper section 3), and in [0, 1] where they are sigmoids (`models.families`).
"""

import re
from dataclasses import dataclass
from operator import attrgetter

from torch import Tensor

from c3po_bench.errors import UserError, unknown
from c3po_bench.models.families import Family
from c3po_bench.models.routing import mix
from c3po_bench.rewiring.config import MethodConfig

_CORE = r"all|top:([1-9]\d*)"
UNREADABLE = "method.experts={!r} can't be read: use top:20 or all"
_PART = re.compile(r"(last|first|middle):(\d+)")


def critical_layers(spec: str, moe_layers: list[int]) -> list[int]:
    """Decoder layers named by `spec`: last:N, first:N, middle:N, all, a sum such as first:2+last:3, or 0,3,7.

    Counting is over the Mixture-of-Experts layers only (a dense first layer is skipped); explicit indices are
    decoder layers.

    Raises:
        UserError: for a spec that can't be read, too many layers, or an index that is not a routed layer.
    """
    text = str(spec).replace(" ", "")
    total = len(moe_layers)
    chosen: set[int] = set()
    if text == "all":
        return list(moe_layers)
    for part in text.split("+"):
        if match := _PART.fullmatch(part):
            where, count = match[1], int(match[2])
            if not 1 <= count <= total:
                raise UserError(
                    f"method.layers={spec}: this model has {total} routed layers, choose 1 to {total}"
                )
            start = {"last": total - count, "first": 0, "middle": (total - count) // 2}[where]
            chosen.update(moe_layers[start : start + count])
        elif re.fullmatch(r"\d+(,\d+)*", part):
            for index in map(int, part.split(",")):
                if index not in moe_layers:
                    raise UserError(
                        f"method.layers={spec}: layer {index} does not route; "
                        f"the routed ones are {moe_layers[0]} to {moe_layers[-1]}"
                    )
                chosen.add(index)
        else:
            raise UserError(
                f"method.layers={spec!r} can't be read: use last:5, first:2+last:3, all, or 0,3,7"
            )
    return sorted(chosen)


def core_experts(original: Tensor, spec: str, top_k: int) -> Tensor:
    """Which experts may carry weight, boolean [..., layers, experts], by what they compete by originally.

    `original` are the original pathways of that shape, or their `selection_scores`. `spec` is top:N (at least
    the model's top-k, at most all) or all. The paper uses top:20 of 64.

    Raises:
        UserError: for a spec that can't be read.
    """
    experts = original.shape[-1]
    if spec == "all":
        return original.new_ones(original.shape).bool()
    match = re.fullmatch(_CORE, str(spec))
    if not match or not match[1]:
        raise UserError(UNREADABLE.format(spec))
    chosen = original.topk(min(experts, max(top_k, int(match[1]))), dim=-1).indices
    return original.new_zeros(original.shape).scatter(-1, chosen, 1.0).bool()


@dataclass(frozen=True)
class Mixture:
    """Weights and indices that the experts of each critical layer are given, both [rows, layers, slots]."""

    weights: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Mixer:
    """Turns pathways into mixtures under one set of choices (`method.mixing`, `method.preserve_total_weight`)."""

    family: Family
    preserve_total_weight: bool = False

    def __call__(self, pathway: Tensor, original: Tensor, core: Tensor, mixing: str) -> Mixture:
        """Mix `pathway` [rows, layers, experts] of items whose pathway was `original`, within `core`.

        hard: the model's top-k, re-selected from the pathway. dense: all core experts. straight_through: the
        value of hard with the gradient of dense.
        """
        pathway = pathway.masked_fill(~core, 0.0)
        if mixing == "hard":
            weights, indices = mix(self.family, pathway, candidates=core)
        else:
            weights, indices = mix(self.family, pathway, top_k=int(core[0, 0].sum()), candidates=core)
            if mixing == "straight_through":
                hard, chosen = mix(self.family, pathway, candidates=core)
                value = hard.new_zeros(pathway.shape).scatter(-1, chosen, hard).gather(-1, indices)
                weights = weights + (value - weights).detach()
        if self.preserve_total_weight:
            before = mix(self.family, original)[0].sum(-1, keepdim=True)
            weights = weights * before / weights.sum(-1, keepdim=True).clamp_min(1e-9)
        return Mixture(weights, indices)


def check_method(method: MethodConfig) -> None:
    """Refuse a value that an option with a fixed set of values has not.

    Raises:
        UserError: in one line.
    """
    if not re.fullmatch(_CORE, str(method.experts)):
        raise UserError(UNREADABLE.format(method.experts))
    choices = {
        "position": ("last", "continuation"),
        "parameterization": ("logits", "probabilities"),
        "mixing": ("hard", "dense", "straight_through"),
        "final_mixing": ("hard", "dense"),
        "optimizer": ("sgd", "adam"),
        "schedule": ("cosine", "fixed", "step"),
        "loss": ("nll", "choice"),
        "tune": ("none", "reference"),
        "neighbors.kind": ("knn", "epsilon"),
    }
    for key, allowed in choices.items():
        value = attrgetter(key)(method)
        if value not in allowed:
            raise unknown(f"method.{key}", value, allowed)
