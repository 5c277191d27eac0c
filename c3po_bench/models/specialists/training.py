"""Trains an expert alone, then all routers with the experts frozen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from c3po_bench.models.embedded.specialists import EMPTY, EXPERTS, NEURONS, TOP_K, quantised
from c3po_bench.models.specialists.states import Batch, Kept, Suffix, expert_output

Expert = list[tuple[Tensor, Tensor]]
"""An expert's `gate_up` [2 x neurons, hidden] and `down` [hidden, neurons] in each routed layer."""


@dataclass(frozen=True)
class Recipe:
    """How an expert is trained."""

    steps: int
    batch: int
    rate: float
    decay: float = 0.02
    start: float = 0.2  # standard deviation of gate and up at the start; down starts at zero


RULE = Recipe(steps=480, batch=32, rate=1e-2)
SHORT = Recipe(steps=240, batch=32, rate=1e-2)
"""For rules whose loss is near zero by then."""
TEXT = Recipe(steps=160, batch=16, rate=3e-3)


def train_expert(
    suffix: Suffix,
    kept: Sequence[Kept],
    recipe: Recipe,
    *,
    seed: int,
    candidates: Tensor | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Expert:
    """An expert that lowers the loss of the kept questions' answers when it acts alone, with weight one.

    Args:
        suffix: the frozen layers.
        kept: the domain's training questions.
        recipe: steps, batch, rate.
        seed: of the start and of the order of questions.
        candidates: token ids: the loss is over these answers only. None: over the vocabulary.
        report: is told step and loss now and then.
    """
    torch.manual_seed(seed)
    hidden = suffix.dense.config.hidden_size
    expert = [
        (torch.randn(2 * NEURONS, hidden) * recipe.start, torch.zeros(hidden, NEURONS)) for _ in suffix.routed
    ]
    parameters = [weight.requires_grad_() for pair in expert for weight in pair]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / recipe.steps)) * min(1, (step + 1) / 10)
    )
    order: list[int] = []
    for step in range(recipe.steps):
        while len(order) < recipe.batch:
            order += torch.randperm(len(kept)).tolist()
        chosen, order = order[: recipe.batch], order[recipe.batch :]
        batch = suffix.batch([kept[number] for number in chosen])
        loss = answer_loss(suffix, batch, alone(expert), candidates)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if report is not None and step % 40 == 0:
            report(step, loss.item())
    return [(gate_up.detach(), down.detach()) for gate_up, down in expert]


def alone(expert: Expert) -> Callable[[int, Tensor], Tensor]:
    """What `Suffix.run` needs to let one expert act with weight one."""
    return lambda index, states: expert_output(*expert[index], states)


def answer_loss(suffix: Suffix, batch: Batch, experts: Any, candidates: Tensor | None) -> Tensor:
    """Mean cross-entropy in nats of the answers' tokens."""
    states = suffix.run(batch, experts)[batch.real]
    head, answer = suffix.dense.lm_head.weight, batch.answer[batch.real]
    if candidates is not None:
        head = head[candidates]
        answer = (answer[:, None] == candidates).int().argmax(dim=1)
    return cross_entropy(states @ head.T, answer)


@torch.no_grad()
def accuracy(suffix: Suffix, kept: Sequence[Kept], options: Sequence[Tensor], experts: Any) -> float:
    """Share of questions whose right answer (the kept one) is the likeliest of its one-token options."""
    right = 0
    for start in range(0, len(kept), 64):
        some = kept[start : start + 64]
        states = suffix.run(suffix.batch(some), experts)[:, 0]
        for state, one, choices in zip(states, some, options[start : start + 64], strict=True):
            best = (suffix.dense.lm_head.weight[choices] @ state).argmax()
            right += int(choices[best] == one.answer[0])
    return right / len(kept)


def shipped(experts: Sequence[Expert]) -> dict[str, Tensor]:
    """Experts in 8 bits, as they ship: `gate_up`, `down` [layers, experts, ...] and their scales."""
    tensors = {}
    for name, place in (("gate_up", 0), ("down", 1)):
        stacked = torch.stack([torch.stack([layer[place] for layer in expert]) for expert in experts], dim=1)
        tensors[name], tensors[f"{name}_scale"] = quantised(stacked)
    return tensors


def loaded(tensors: dict[str, Tensor]) -> list[Expert]:
    """The experts that `shipped` tensors make, in float32."""
    gate_up = tensors["gate_up"].float() * tensors["gate_up_scale"]
    down = tensors["down"].float() * tensors["down_scale"]
    return [
        [(gate_up[layer, number], down[layer, number]) for layer in range(len(gate_up))]
        for number in range(gate_up.shape[1])
    ]


@torch.no_grad()
def router_examples(suffix: Suffix, kept: Sequence[Kept], expert: Expert) -> tuple[Tensor, Tensor]:
    """Router inputs [layers, tokens, hidden] at last tokens under the expert, and at earlier tokens."""
    own = []
    for start in range(0, len(kept), 64):
        inputs: dict[int, Tensor] = {}
        batch = suffix.batch(kept[start : start + 64])
        suffix.run(batch, alone(expert), inputs)
        own.append(torch.stack([inputs[index][batch.real] for index in range(len(suffix.routed))]))
    return torch.cat(own, dim=1), torch.cat([k.earlier for k in kept], dim=1)


def train_routers(examples: Sequence[tuple[Tensor, Tensor]], *, steps: int = 150, seed: int = 0) -> Tensor:
    """Routers [layers, experts, hidden]: a logistic regression for each layer.

    Args:
        examples: for each expert, by its number, what `router_examples` gives. Its own tokens are labeled
        with it, earlier ones with the two empty experts, half and half.
        steps: of Adam at 3e-2, with a weight decay of 1e-4.
        seed: of nothing but the start, which is zero; kept for the record.
    """
    torch.manual_seed(seed)
    features = torch.cat([own for own, _ in examples] + [earlier for _, earlier in examples], dim=1)
    labels = [torch.full((own.shape[1],), number) for number, (own, _) in enumerate(examples)]
    target = torch.nn.functional.one_hot(torch.cat(labels), EXPERTS).float()
    none = torch.zeros(sum(earlier.shape[1] for _, earlier in examples), EXPERTS)
    none[:, list(EMPTY)] = 1 / len(EMPTY)
    target = torch.cat([target, none])
    # every expert weighs the same, and so do all earlier tokens together
    counts = torch.cat([torch.full((own.shape[1],), own.shape[1]) for own, _ in examples])
    weight = torch.cat([1 / counts, torch.full((len(none),), 1 / max(1, len(none)))])
    weight = weight / weight.sum()
    routers = torch.zeros(len(features), EXPERTS, features.shape[-1], requires_grad=True)
    optimizer = torch.optim.Adam([routers], lr=3e-2)
    for _ in range(steps):
        logits = features @ routers.transpose(1, 2)
        loss = -(weight[:, None] * target * logits.log_softmax(dim=-1)).sum(dim=(1, 2)).sum()
        loss = loss + 1e-4 * routers.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return routers.detach()


def routed(routers: Tensor, experts: Sequence[Expert]) -> Callable[[int, Tensor], Tensor]:
    """What `Suffix.run` needs to route as the finished model does, at the kept tokens."""

    def mixed(index: int, states: Tensor) -> Tensor:
        weights, chosen = (states @ routers[index].T).softmax(dim=-1).topk(TOP_K, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        output = torch.zeros_like(states)
        for number, expert in enumerate(experts):
            share = (weights * (chosen == number)).sum(dim=-1, keepdim=True)
            if share.any():
                output = output + share * expert_output(*expert[index], states)
        return output

    return mixed
