"""What training keeps of each question: the dense model's states below and beside the experts, computed once.

An expert acts on the last prompt token and on the answer. All earlier tokens are read by the dense model
alone (in the finished model its routers send them to the empty experts), so their keys and values never
change in training, and a question costs its last tokens through the last eight layers. The dense model's
products are computed in bfloat16 (a third of the time), its residual stream in float32: differences between
questions are small beside what they share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

READ_TOKENS = 1024
SAMPLED = 4
"""Earlier tokens of a question whose router inputs are kept, as examples of no domain."""


@dataclass(frozen=True)
class Question:
    """A prompt and its answer in tokens."""

    prompt: list[int]
    answer: list[int]


@dataclass
class Kept:
    """What is kept of a question: `s` tokens (the prompt's last, all but the answer's last) after `p` others.

    `hidden` [s, hidden] enters the first layer with experts; `cache` [layers, 2, heads, p, size] are keys
    and values from there up; `earlier` [routed, sampled, hidden] are inputs of the routed layers at earlier
    tokens.
    """

    hidden: Tensor
    cache: Tensor
    answer: Tensor
    earlier: Tensor


@dataclass
class Batch:
    """Questions side by side, padded: `mask` [n, 1, s, p + s] is true where attention looks."""

    hidden: Tensor
    cache: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor
    answer: Tensor  # [n, s] token ids, -100 where there is none

    @property
    def real(self) -> Tensor:
        """True at tokens that are not padding, [n, s]."""
        return self.answer >= 0


class Suffix:
    """The layers of a dense Llama model from the first with experts up, run on kept states."""

    def __init__(self, dense: Any, routed: tuple[int, ...]):
        self.dense, self.routed = dense, routed
        self.layers = list(dense.model.layers[routed[0] :])
        self.first = routed[0]
        for parameter in dense.parameters():
            parameter.requires_grad_(False)
        self._fast: Any = None

    def _reader(self, fast: bool) -> Any:
        """The decoder that reads prompts: the dense one, or a copy with the projections in bfloat16."""
        if not fast:
            return self.dense.model
        if self._fast is None:
            self._fast = deepcopy(self.dense.model)
            for module in self._fast.modules():
                if isinstance(module, nn.Linear):
                    module.to(torch.bfloat16)
        return self._fast

    @torch.no_grad()
    def read(self, questions: Sequence[Question], *, seed: int, fast: bool = True) -> list[Kept]:
        """Run the dense model over questions; `fast` multiplies in bfloat16."""
        generator = torch.Generator().manual_seed(seed)
        order = sorted(
            range(len(questions)), key=lambda i: len(questions[i].prompt) + len(questions[i].answer)
        )
        kept: dict[int, Kept] = {}
        for numbers in _batches(order, questions):
            for number, state in zip(
                numbers, self._read([questions[i] for i in numbers], generator, fast), strict=True
            ):
                kept[number] = state
        return [kept[number] for number in range(len(questions))]

    def _read(self, questions: list[Question], generator: torch.Generator, fast: bool) -> Iterator[Kept]:
        rows = [question.prompt + question.answer[:-1] for question in questions]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        seen: dict[int, Tensor] = {}
        reader = self._reader(fast)
        hooks = [
            reader.layers[self.first].register_forward_pre_hook(
                lambda _m, args: seen.__setitem__(-1, args[0])
            ),
            *(
                reader.layers[number].mlp.register_forward_pre_hook(
                    lambda _m, args, number=number: seen.__setitem__(number, args[0])
                )
                for number in self.routed
            ),
        ]
        cache: Any = DynamicCache()
        try:
            with torch.autocast("cpu", torch.bfloat16) if fast else nullcontext():
                reader(ids, past_key_values=cache, use_cache=True)
        finally:
            for hook in hooks:
                hook.remove()
        read: Any = cache.layers[self.first :]
        pairs = [(layer.keys, layer.values) for layer in read]
        keys_values = torch.stack([torch.stack([k, v]) for k, v in pairs])  # [layers, 2, n, heads, p, size]
        inputs = torch.stack([seen[number] for number in self.routed])
        for row, question in enumerate(questions):
            earlier = len(question.prompt) - 1
            chosen = torch.randint(earlier, (SAMPLED,), generator=generator)
            end = earlier + len(question.answer)
            yield Kept(
                seen[-1][row, earlier:end].float().clone(),
                keys_values[:, :, row, :, :earlier].to(torch.bfloat16 if fast else torch.float32).clone(),
                torch.tensor(question.answer),
                inputs[:, row, chosen].float().clone(),
            )

    def batch(self, kept: Sequence[Kept]) -> Batch:
        """Questions padded to one length."""
        n, earlier, own = len(kept), max(k.cache.shape[-2] for k in kept), max(len(k.answer) for k in kept)
        layers, _, heads, _, size = kept[0].cache.shape
        cache = torch.zeros(layers, 2, n, heads, earlier, size)
        hidden = torch.zeros(n, own, kept[0].hidden.shape[-1])
        mask = torch.zeros(n, 1, own, earlier + own, dtype=torch.bool)
        answer = torch.full((n, own), -100)
        positions = torch.zeros(n, own, dtype=torch.long)
        for row, k in enumerate(kept):
            p, s = k.cache.shape[-2], len(k.answer)
            cache[:, :, row, :, :p] = k.cache
            hidden[row, :s], answer[row, :s] = k.hidden, k.answer
            mask[row, 0, :, :p] = True
            positions[row] = p + torch.arange(own)
        mask[:, 0, :, earlier:] = torch.ones(own, own, dtype=torch.bool).tril()
        cos, sin = self.dense.model.rotary_emb(hidden, positions)
        return Batch(hidden, cache, cos, sin, mask, answer)

    def run(self, batch: Batch, experts: Any = None, inputs: dict[int, Tensor] | None = None) -> Tensor:
        """Final hidden states [n, s, hidden], normed for the head.

        `experts(layer index in routed, states)` gives what the experts add; None is the dense model.
        `inputs` is filled with the inputs of the routed layers, by index.
        """
        hidden = batch.hidden
        for number, layer in enumerate(self.layers):
            hidden = hidden + self._attention(layer.self_attn, layer.input_layernorm(hidden), batch, number)
            states = layer.post_attention_layernorm(hidden)
            hidden = hidden + layer.mlp(states)
            if self.first + number in self.routed:
                index = self.routed.index(self.first + number)
                if inputs is not None:
                    inputs[index] = states.detach()
                if experts is not None:
                    hidden = hidden + experts(index, states)
        return self.dense.model.norm(hidden)

    def _attention(self, attention: Any, states: Tensor, batch: Batch, number: int) -> Tensor:
        n, own, _ = states.shape
        query, key, value = (
            project(states).view(n, own, -1, attention.head_dim).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, batch.cos, batch.sin)
        keys = torch.cat([batch.cache[number, 0], key], dim=2)
        values = torch.cat([batch.cache[number, 1], value], dim=2)
        mixed = scaled_dot_product_attention(query, keys, values, attn_mask=batch.mask, enable_gqa=True)
        return attention.o_proj(mixed.transpose(1, 2).reshape(n, own, -1))


def expert_output(gate_up: Tensor, down: Tensor, states: Tensor) -> Tensor:
    """A gated MLP: `gate_up` [2 x neurons, hidden], `down` [hidden, neurons]."""
    gate, up = (states @ gate_up.T).chunk(2, dim=-1)
    return (silu(gate) * up) @ down.T


def _batches(order: list[int], questions: Sequence[Question]) -> Iterator[list[int]]:
    batch: list[int] = []
    for number in order:
        width = len(questions[number].prompt) + len(questions[number].answer)
        if batch and width * (len(batch) + 1) > READ_TOKENS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
