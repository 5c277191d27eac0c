"""What both engines offer: read prompts once, then score their continuations under any mixture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from c3po_bench.models.families import family_of
from c3po_bench.rewiring.meter import Meter

if TYPE_CHECKING:
    from torch import Tensor

    from c3po_bench.rewiring.pathway import Mixture
    from c3po_bench.rewiring.states import StateStore


STATE_BYTES = 1 << 30
"""Memory for the states of prompts read before.

On a GPU a third of what the model leaves free, if that is more.
"""


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
        float  # how much longer than the shortest a row of prompts may be to be read in one batch with it
    )
    pass_tokens: int  # tokens of answers that cost as much as one more pass to score some of them apart


CPU = Sizes(prompts=32, references=64, forward_tokens=768, read_ratio=1.25, pass_tokens=128)
GPU = Sizes(prompts=256, references=64, forward_tokens=16384, read_ratio=2.0, pass_tokens=1024)


@dataclass(frozen=True)
class Prompt:
    """Token ids of one context and of the continuations scored after it."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """What reading it passes through the model: of each continuation all but the last token."""
        return len(self.context) + sum(len(c) - 1 for c in self.continuations)


@dataclass
class State:
    """What an engine keeps of one prompt.

    `own` is the model's own pathway at the last context token, [routed layers, experts], float32; `kept` is
    whatever else the engine needs; `seconds` and `flops` are what reading it cost.
    """

    prompt: Prompt
    own: Tensor
    kept: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    flops: int = 0

    def nbytes(self) -> int:
        """Memory of the tensors kept."""
        tensors = [self.own, *(t for value in self.kept.values() for t in _tensors(value))]
        return sum(t.numel() * t.element_size() for t in tensors)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in _tensors(v)] if isinstance(value, list | tuple) else []


class Batch(ABC):
    """Rows = (prompt, continuation) pairs, ready to be scored again and again."""

    lengths: Tensor  # [rows] continuation tokens

    @abstractmethod
    def score(
        self, mixture: Mixture | None, owner: Tensor | None = None, greedy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Log-likelihood of each row's continuation.

        Args:
            mixture: the override, or None for the model's own routing.
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
        self.family = family_of(model)
        self.layers = layers
        self.position = position
        self.device = next(model.parameters()).device
        self.sizes, self.state_bytes = (CPU if self.device.type == "cpu" else GPU), STATE_BYTES
        if self.device.type == "cuda":
            self.state_bytes = max(STATE_BYTES, torch.cuda.mem_get_info(self.device)[0] // 3)
        index = {layer: i for i, layer in enumerate(self.family.layers)}
        self.critical = torch.tensor([index[layer] for layer in layers])
        self._states: OrderedDict[Prompt, State] = OrderedDict()
        self._bytes = 0
        self.reading = Meter()
        self.store: StateStore | None = None
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model.eval()

    def read(
        self,
        prompts: Sequence[Prompt],
        meter: Meter | None = None,
        keep: bool = False,
        groups: Mapping[Prompt, Sequence[Prompt]] | None = None,
        aside: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> list[State]:
        """Run the prompts once (no gradient) and keep what scoring needs.

        What was read before is taken from a cache of bounded size, shared by all arms of an experiment;
        `meter` is charged what reading it cost, so that an arm's cost does not depend on the arms before it.
        With `keep` (for reference prompts) the store on disk is asked too, and given what it lacks: what is
        read for that, within `aside`, is no item's cost.

        What is read together does not depend on what was read before, since it moves the last digits: a
        reference is read with its whole group (`groups`, as the bank was built), the other prompts with all
        of their call.
        """
        wanted = dict.fromkeys(prompts)
        held = {p: self._states[p] for p in wanted if p in self._states}
        missing = [p for p in wanted if p not in held]
        if missing and not keep:
            held, missing = {}, list(wanted)
        if keep and self.store is not None:
            stored = self.store.get(missing, self.device)
            for prompt, state in stored.items():
                held[prompt] = self._remember(state)
            missing = [p for p in missing if p not in stored]
        if meter is not None:
            for state in held.values():
                meter.credit("read", state.seconds, state.flops)
        for chunk in _together(missing, self.sizes.prompts, groups if keep else None):
            if keep:
                with aside():
                    states = self.read_new(chunk)
                    self.keep(states)
            else:
                states = self._measured(chunk)
            for prompt, state in zip(chunk, states, strict=True):
                held[prompt] = self._remember(state)
                if meter is not None and prompt in wanted:
                    meter.add("read", state.seconds, state.flops)
        for prompt in held:
            self._states.move_to_end(prompt)
        while self._bytes > self.state_bytes and len(self._states) > len(held):
            _, old = self._states.popitem(last=False)
            self._bytes -= old.nbytes()
        return [held[p] for p in prompts]

    def _measured(self, prompts: list[Prompt]) -> list[State]:
        """Read prompts, each with its share of the cost by tokens.

        FLOPs are counted once and then taken as alike.
        """
        tokens = [p.tokens for p in prompts]
        before = self.reading.spent("read")
        with self.reading.phase("read", sum(tokens)):
            states = self.read_new(prompts)
        seconds, flops = (now - then for now, then in zip(self.reading.spent("read"), before, strict=True))
        for state, mine in zip(states, tokens, strict=True):
            share = mine / sum(tokens)
            state.seconds = seconds * share
            state.flops = round(flops * share)
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

    @abstractmethod
    def read_new(self, prompts: list[Prompt]) -> list[State]:
        """Read prompts that are not in the cache."""

    @abstractmethod
    def batch(self, states: list[State], rows: list[tuple[int, int]]) -> Batch:
        """Collate rows (index into `states`, index of the continuation) for scoring."""

    def own_pathways(self, states: list[State]) -> Tensor:
        """The models' own pathways in the critical layers, [states, layers, experts]."""
        return torch.stack([s.own[self.critical] for s in states]).to(self.device)


def _together(
    prompts: list[Prompt], most: int, groups: Mapping[Prompt, Sequence[Prompt]] | None
) -> list[list[Prompt]]:
    """Which prompts are read at once: the groups that they belong to, or at most `most` of like length."""
    if groups is None:
        ordered = sorted(prompts, key=lambda p: (len(p.context), p.context))
        return [ordered[start : start + most] for start in range(0, len(ordered), most)]
    return [list(group) for group in dict.fromkeys(tuple(groups.get(p, (p,))) for p in prompts)]


def bucket_by_length(sizes: Sequence[int], ratio: float) -> list[list[int]]:
    """Indices in groups whose sizes differ by at most `ratio` (and one), smallest first.

    Little is lost to padding.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: (sizes[i], i)):
        if groups and sizes[index] <= ratio * sizes[groups[-1][0]] + 1:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def min_cost_buckets(sizes: Sequence[int], group: int) -> list[list[int]]:
    """Indices in groups, each padded to its largest size, such that padded tokens plus `group` a group are fewest."""
    counts = sorted(Counter(sizes).items())
    best: list[tuple[int, int]] = [
        (0, 0)
    ]  # of the smallest sizes: the cost, and how many of them come before the last group
    for end in range(1, len(counts) + 1):
        widest, costs, rows = counts[end - 1][0], [], 0
        for start in reversed(range(end)):
            rows += counts[start][1]
            costs.append((best[start][0] + group + widest * rows, start))
        best.append(min(costs))
    groups, end = [], len(counts)
    while end:
        start = best[end][1]
        of_group = {size for size, _ in counts[start:end]}
        groups.append([index for index, size in enumerate(sizes) if size in of_group])
        end = start
    return groups[::-1]


def pad_right(
    sequences: list[tuple[int, ...]] | list[list[int]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids [rows, longest], padded with 0 on the right, and lengths [rows]."""
    lengths = torch.tensor([len(s) for s in sequences], device=device)
    ids = torch.zeros(len(sequences), max(1, int(lengths.max())), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
    return ids.to(device), lengths


def continuation_scores(
    logits: Tensor, targets: Tensor, row_of_target: Tensor, rows: int
) -> tuple[Tensor, Tensor]:
    """Sum target log-probabilities by row: logits [targets, vocabulary] -> ([rows], all-greedy [rows])."""
    logits = logits.float()
    chosen = logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(dim=-1)
    total = chosen.new_zeros(rows).index_add(0, row_of_target, chosen)
    with torch.no_grad():
        wrong = (logits.argmax(dim=-1) != targets).float()
        greedy = wrong.new_zeros(rows).index_add(0, row_of_target, wrong) == 0
    return total, greedy
