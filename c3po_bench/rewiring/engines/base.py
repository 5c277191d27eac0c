"""What both engines offer: read prompts once, then score their continuations under any mixture."""

import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from c3po_bench.models.flops import ModelShape, shape_of
from c3po_bench.models.placement import input_device
from c3po_bench.models.routing import family_of
from c3po_bench.rewiring.pathway import Mixture
from c3po_bench.rewiring.states import Prompt, State, StateStore
from c3po_bench.runtime.meter import Meter, synchronize
from c3po_bench.runtime.resources import in_halves


def distinct(
    states: Sequence[State], rows: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], list[int]]:
    """`rows` (see `Engine.batch`) with each text once, and of each of `rows` the place of its text among these.

    Two options of the same tokens would else differ in the last digits, by where in a batch they stand, and
    these would choose between them.
    """
    places: dict[tuple[int, tuple[int, ...]], int] = {}
    kept, where = [], []
    for state, continuation in rows:
        text = state, states[state].prompt.continuations[continuation]
        if text not in places:
            places[text] = len(kept)
            kept.append((state, continuation))
        where.append(places[text])
    return kept, where


STATE_BYTES = 1 << 30
"""Memory for states of prompts; on a GPU a third of what the model leaves free, if that is more."""


@dataclass(frozen=True)
class Sizes:
    """What is done at once, measured on each kind of device.

    A processor wants activations that fit its cache; a GPU wants few passes, since a small one costs its
    launches alone.
    """

    prompts: int  # read in one call
    references: int  # questions read together when a bank is built, if they fit one forward
    forward_tokens: int  # of one forward that reads
    read_ratio: (
        float  # how much longer than the shortest a row of prompts may be to be read in a batch with it
    )
    pass_tokens: int  # tokens of answers that cost as much as one more pass to score some of them apart


CPU = Sizes(prompts=32, references=64, forward_tokens=768, read_ratio=1.25, pass_tokens=128)
GPU = Sizes(prompts=256, references=64, forward_tokens=16384, read_ratio=2.0, pass_tokens=1024)


class Batch(ABC):
    """Rows = (prompt, continuation) pairs, ready to be scored again and again."""

    lengths: Tensor  # [rows] continuation tokens
    flops: float = 0  # of all scores so far; those of a mixture with a gradient include the backward pass

    @abstractmethod
    def score(
        self, mixture: Mixture | None, owner: Tensor | None = None, greedy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Log-likelihood of each row's continuation.

        Args:
            mixture: the override, or None for the original routing.
            owner: [rows] which entry of the mixture's first axis each row uses.
            greedy: whether the second result is wanted; an engine may leave it out (all false) if not.

        Returns:
            Summed log-probabilities [rows] in float32, differentiable in the mixture's weights, and whether
            greedy decoding would have written the continuation, boolean [rows].
        """


class Engine(ABC):
    """Runs one model with the routing of `layers` open to override at the last context token."""

    def __init__(self, model: Any, layers: list[int], position: str = "last"):
        self.model = model
        self.layers = layers
        self.position = position
        self.device = input_device(model)
        self.family = family_of(model).at(layers, self.device)
        self.sizes, self.state_bytes = (CPU if self.device.type == "cpu" else GPU), STATE_BYTES
        if self.device.type == "cuda":
            self.state_bytes = max(STATE_BYTES, torch.cuda.mem_get_info(self.device)[0] // 3)
        index = {layer: i for i, layer in enumerate(self.family.layers)}
        self.critical = torch.tensor([index[layer] for layer in layers])
        self.notes: list[str] = []
        self._states: OrderedDict[Prompt, State] = OrderedDict()
        self._bytes = 0
        self.store: StateStore | None = None
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model.eval()

    @cached_property
    def shape(self) -> ModelShape:
        """What the model's passes cost, adapters that are in it at first use included."""
        return shape_of(self.model)

    def read(
        self,
        prompts: Sequence[Prompt],
        meter: Meter | None = None,
        keep: bool = False,
        groups: Mapping[Prompt, Sequence[Prompt]] | None = None,
        exclude: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> list[State]:
        """Run the prompts once (no gradient) and keep what scoring needs.

        What was read before is taken from a cache of bounded size, shared by all arms of an experiment. What
        is read together does not depend on that, since it moves the last digits: a reference is read with its
        whole group, the other prompts with all of their call.

        Args:
            prompts: what to read.
            meter: is charged what reading cost, whoever did it, so that an arm's cost does not depend on the
                arms before it.
            keep: for reference prompts: the store on disk is asked too, and given what it lacks.
            groups: what each reference is read together with, as the bank was built.
            exclude: entered while references are read, which is no item's cost.

        Returns:
            States in the order of the prompts.
        """
        wanted = dict.fromkeys(prompts)
        known = {p: self._states[p] for p in wanted if p in self._states}
        missing = [p for p in wanted if p not in known]
        if missing and not keep:
            known, missing = {}, list(wanted)
        if keep and self.store is not None:
            stored = self.store.get(missing, self.device)
            for prompt, state in stored.items():
                known[prompt] = self._remember(state)
            missing = [p for p in missing if p not in stored]
        if meter is not None:
            for state in known.values():
                meter.add_cached_cost("read", state.seconds, state.flops)
        for chunk in _together(missing, self.sizes.prompts, groups if keep else None):
            if keep:
                with exclude():
                    states = self.read_prompts(chunk)
                    self.keep(states)
            else:
                states = self._measured(chunk)
            for prompt, state in zip(chunk, states, strict=True):
                known[prompt] = self._remember(state)
                if meter is not None and prompt in wanted:
                    meter.add("read", state.seconds, state.flops)
        for prompt in known:
            self._states.move_to_end(prompt)
        while self._bytes > self.state_bytes and len(self._states) > len(known):
            _, old = self._states.popitem(last=False)
            self._bytes -= old.nbytes()
        return [known[p] for p in prompts]

    def _measured(self, prompts: list[Prompt]) -> list[State]:
        """Read prompts, each with its share of the seconds by tokens."""
        synchronize()
        start = time.perf_counter()
        states = self.read_prompts(prompts)
        synchronize()
        per_token = (time.perf_counter() - start) / sum(p.tokens for p in prompts)
        for state in states:
            state.seconds = per_token * state.prompt.tokens
        return states

    def _remember(self, state: State) -> State:
        old = self._states.pop(state.prompt, None)
        self._bytes -= old.nbytes() if old is not None else 0
        self._states[state.prompt] = state
        self._bytes += state.nbytes()
        return state

    def forget(self) -> None:
        """Empty the cache in memory (not the store on disk)."""
        self._states.clear()
        self._bytes = 0

    def keep(self, states: Sequence[State]) -> None:
        """Put states of reference prompts into the store on disk, if there is one."""
        if self.store is not None:
            self.store.put(states)

    def read_prompts(self, prompts: list[Prompt]) -> list[State]:
        """Read prompts that are not in the cache, at once if memory suffices for it."""
        return in_halves(
            lambda part: self.read_new(list(part)), prompts, "prompts", lambda p: f"{p.tokens} tokens"
        )

    @abstractmethod
    def read_new(self, prompts: list[Prompt]) -> list[State]:
        """Read prompts that are not in the cache, each with its share of the FLOPs by tokens."""

    @abstractmethod
    def batch(self, states: list[State], rows: list[tuple[int, int]]) -> Batch:
        """Collate rows (index into `states`, index of the continuation) for scoring."""

    def original_pathways(self, states: list[State]) -> Tensor:
        """The model's own routing in the critical layers, [states, layers, experts]."""
        return torch.stack([state.original[self.critical] for state in states]).to(self.device)


def share_flops(states: list[State], flops: float) -> list[State]:
    """The states of prompts that were read at once, each with its share of the FLOPs by tokens."""
    per_token = flops / sum(state.prompt.tokens for state in states)
    for state in states:
        state.flops = per_token * state.prompt.tokens
    return states


def _together(
    prompts: list[Prompt], most: int, groups: Mapping[Prompt, Sequence[Prompt]] | None
) -> list[list[Prompt]]:
    """Which prompts are read at once: the groups that they belong to, or at most `most` of like length."""
    if groups is None:
        ordered = sorted(prompts, key=lambda p: (len(p.context), p.context))
        return [ordered[start : start + most] for start in range(0, len(ordered), most)]
    return [list(group) for group in dict.fromkeys(tuple(groups.get(p, (p,))) for p in prompts)]
