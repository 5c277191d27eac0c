"""The fast engine: reruns the overridden token and the answer's tokens, in the layers that can change.

Everything before is constant. Layers below the first critical one never see the override; by causality
neither do earlier tokens, in any layer. So a prompt is read once, keeping the hidden state that enters the
first critical layer at the last context token (and at each answer token), and the keys and values of the
earlier tokens from that layer up. One score is then a pass of 1 + answer tokens through those layers and the
head. Equal to `naive`, by tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from c3po_bench.rewiring.engines.base import Batch, Engine, share_flops
from c3po_bench.rewiring.engines.batching import (
    Tree,
    bucket_by_length,
    fill,
    min_cost_buckets,
    pack,
    with_earlier,
)
from c3po_bench.rewiring.engines.experts import (
    experts_by,
    moe_prefill,
    moe_step,
    needs_stock,
    replaces_experts,
)
from c3po_bench.rewiring.engines.facts import Rotary, embed, facts_of
from c3po_bench.rewiring.engines.layers import (
    FirstLayer,
    constant_prefix,
    keys_stay_apart,
    target_log_probs,
)
from c3po_bench.rewiring.engines.products import packed_linears
from c3po_bench.rewiring.hook import override, record_routing
from c3po_bench.rewiring.pathway import Mixture
from c3po_bench.rewiring.states import Prompt, State

ROW_TOKENS = 192
"""Tokens of prompts and answers read in one row: longer rows lose less to padding and more to attention."""


class _Cache:
    """The part of a transformers cache that attention uses: keys and values by layer.

    Recording, it keeps what it is given; else it puts the earlier tokens before what it is given.
    """

    def __init__(self, keys: dict[int, Tensor] | None = None, values: dict[int, Tensor] | None = None):
        self.recording = keys is None
        self.keys: dict[int, Tensor] = keys or {}
        self.values: dict[int, Tensor] = values or {}

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, heads, tokens, width] that attention should see."""
        if self.recording:
            self.keys[layer_idx], self.values[layer_idx] = keys, values
            return keys, values
        before_k, before_v = (t[layer_idx].to(keys.device) for t in (self.keys, self.values))
        return torch.cat([before_k, keys], dim=2), torch.cat([before_v, values], dim=2)


class SuffixEngine(Engine):
    """See the module's docstring."""

    def __init__(self, model: Any, layers: list[int], position: str = "last"):
        super().__init__(model, layers, position)
        self.first = min(layers)
        self.decoder = self.family.decoder_of(model)
        self.facts = facts_of(self.family, model)
        self.depth = len(self.decoder.layers)
        self.dtype = model.dtype
        self.experts_factor = self._experts_factor()

    def _experts_factor(self) -> float | None:
        """What a critical first layer adds to its output for each unit that its routed experts give.

        None where that isn't linear, because a norm follows the experts: such a layer can't be opened.
        """
        layer, gave = self.decoder.layers[self.first], []
        width, count = self.model.config.get_text_config().hidden_size, self.family.num_experts
        hidden = torch.arange(2.0 * width).sin().view(1, 2, width).to(self.device, self.dtype)
        at, each = torch.arange(2, device=self.device), torch.arange(count, device=self.device)
        back, span = (at[:, None] - at)[None], range(self.first, self.first + 1)
        hook = self.family.experts_of(self.model, self.first).register_forward_hook(
            lambda _module, _args, output: gave.append(output.float())
        )
        found = []
        try:
            with torch.no_grad():
                for weight in (0.0, 32.0, 64.0):
                    weights = at.new_full((2, 1, count), weight, dtype=torch.float32)
                    mixture = Mixture(weights, each.expand(2, 1, count))
                    with override(self.family, self.model, [self.first], at, mixture):
                        found.append(self.run_layers(hidden, span, at[None], back, None)[0].float())
        finally:
            hook.remove()
        exact = 1e-3 if self.dtype == torch.float32 else 5e-2
        for factor in (1.0, getattr(layer, "residual_multiplier", 1.0), self.family.factor, 0.5):
            wrong = [
                (out - found[0] - factor * by).norm() / by.norm()
                for out, by in zip(found[1:], gave[1:], strict=True)
            ]
            if max(wrong) < exact * factor:
                return factor
        return None

    def run_layers(
        self, hidden: Tensor, span: range, positions: Tensor, allowed: Tensor, cache: _Cache | None
    ) -> Tensor:
        """Pass hidden [rows, tokens, width] through decoder layers `span`.

        Args:
            hidden: what enters the first layer of the span.
            span: decoder layers.
            positions: [rows, tokens] positions of the tokens.
            allowed: [rows or 1, tokens, keys] the distance back to each visible key, negative where hidden.
            cache: earlier keys and values, a recording one, or none.
        """
        made: dict[Rotary, Any] = {}
        masks: dict[int | None, Tensor] = {}
        for index in span:
            window, rotary = self.facts.windows[index], self.facts.rotaries[index]
            if rotary not in made:
                made[rotary] = rotary(hidden, positions)
            if window not in masks:
                visible = (allowed >= 0) if window is None else (allowed >= 0) & (allowed < window)
                masks[window] = torch.zeros_like(visible, dtype=hidden.dtype).masked_fill_(
                    ~visible, torch.finfo(hidden.dtype).min
                )[:, None]
            hidden = self.decoder.layers[index](
                hidden,
                attention_mask=masks[window],
                position_ids=positions,
                past_key_values=cache,
                position_embeddings=made[rotary],
            )
        return hidden.to(self.device)

    @torch.no_grad()
    def read_new(self, prompts: list[Prompt]) -> list[State]:
        """Contexts through all layers, answers through those below the first critical one, in packed rows."""
        trees = [Tree(len(p.context), tuple(len(c) - 1 for c in p.continuations)) for p in prompts]
        rows = fill([tree.size for tree in trees], max(ROW_TOKENS, max(tree.size for tree in trees)))
        states: dict[int, State] = {}
        widths = [sum(trees[i].size for i in row) for row in rows]
        for group in self._forwards(widths):
            chosen = [i for r in group for i in rows[r]]
            number = {i: n for n, i in enumerate(chosen)}
            packed = [[(number[i], trees[i]) for i in rows[r]] for r in group]
            states |= zip(chosen, self._read([prompts[i] for i in chosen], packed), strict=True)
        return [states[i] for i in range(len(prompts))]

    def _forwards(self, widths: list[int]) -> list[list[int]]:
        """Rows that go through the model at once: of like width, no more tokens than are read fastest."""
        forwards = []
        for group in bucket_by_length(widths, self.sizes.read_ratio):
            step = max(1, self.sizes.forward_tokens // widths[group[-1]])
            forwards += [group[start : start + step] for start in range(0, len(group), step)]
        return forwards

    def _read(self, prompts: list[Prompt], rows: list[list[tuple[int, Tree]]]) -> list[State]:
        """The prompts of some packed rows."""
        whole = pack(rows, self.device)
        above = pack([[(n, Tree(tree.lead, ())) for n, tree in row] for row in rows], self.device)
        ids = torch.zeros(whole.offset.numel(), dtype=torch.long)
        for prompt, lead, branches in zip(prompts, whole.lead, whole.branches, strict=True):
            ids[lead : lead + len(prompt.context)] = torch.tensor(prompt.context)
            for start, answer in zip(branches, prompt.continuations, strict=True):
                ids[start : start + len(answer) - 1] = torch.tensor(answer[:-1], dtype=torch.long)
        cache, (below, rest) = _Cache(), (range(self.first), range(self.first, self.depth))
        with (
            experts_by(moe_prefill, self.model),
            record_routing(self.family, self.model, list(self.family.layers), self.device) as routed,
        ):
            embedded = embed(self.family, self.model, ids.to(self.device).view_as(whole.offset))
            low = self.run_layers(embedded, below, whole.offset, whole.back, None).flatten(0, 1)
            entering = low.new_zeros(*above.offset.shape, low.shape[-1])
            for prompt, source, target in zip(prompts, whole.lead, above.lead, strict=True):
                size = len(prompt.context)
                entering.flatten(0, 1)[target : target + size] = low[source : source + size]
            self.run_layers(entering, rest, above.offset, above.back, cache)
        keys, values = (
            [t.transpose(1, 2).flatten(0, 1).to(self.device) for t in (c[i] for i in rest)]
            for c in (cache.keys, cache.values)
        )
        lasts = torch.tensor([len(p.context) - 1 for p in prompts])
        at = [(torch.tensor(packed.lead) + lasts).to(self.device) for packed in (whole, above)]
        pathways = [self.family.pathway(routed[i][at[i >= self.first]]) for i in self.family.layers]
        original = torch.stack(pathways, dim=1).cpu()
        states = []
        for n, prompt in enumerate(prompts):
            last = len(prompt.context) - 1
            earlier = slice(above.lead[n], above.lead[n] + last)
            spans = zip(whole.branches[n], prompt.continuations, strict=True)
            kept = {
                "entering": low[whole.lead[n] + last].clone(),
                "answers": [low[start : start + len(answer) - 1].clone() for start, answer in spans],
                "keys": [k[earlier].transpose(0, 1).contiguous() for k in keys],
                "values": [v[earlier].transpose(0, 1).contiguous() for v in values],
            }
            states.append(State(prompt, original[n].clone(), kept))
        cost = self.shape.forward(below, *whole.back.shape) + self.shape.forward(rest, *above.back.shape)
        return share_flops(states, cost)

    def batch(self, states: list[State], rows: list[tuple[int, int]]) -> SuffixBatch:
        """Collate prefixes (right-padded) and the tokens to rerun. Rows of one state must have one owner."""
        return SuffixBatch(self, states, rows)


class SuffixBatch(Batch):
    """Rows of one prompt packed together, in parts of like size: padding would cost more than more passes."""

    def __init__(self, engine: SuffixEngine, states: list[State], rows: list[tuple[int, int]]):
        answers = [states[s].prompt.continuations[c] for s, c in rows]
        self.lengths = torch.tensor([len(a) for a in answers], device=engine.device)
        of_state: dict[int, list[int]] = {}
        for row, (state, _) in enumerate(rows):
            of_state.setdefault(state, []).append(row)
        packs = list(of_state.items())
        sizes = [1 + sum(len(answers[row]) - 1 for row in mine) for _, mine in packs]
        groups = [[packs[i] for i in group] for group in min_cost_buckets(sizes, engine.sizes.pass_tokens)]
        self.chosen = [
            torch.tensor([row for _, mine in group for row in mine], device=engine.device) for group in groups
        ]
        self.place = torch.cat(self.chosen).argsort()
        self.parts = [
            SuffixRows(engine, [(states[s], [rows[row][1] for row in mine]) for s, mine in group])
            for group in groups
        ]

    def score(
        self, mixture: Mixture | None, owner: Tensor | None = None, greedy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Every part, put back in order."""
        owners = [None if owner is None else owner[chosen] for chosen in self.chosen]
        scored = [part.score(mixture, mine, greedy) for part, mine in zip(self.parts, owners, strict=True)]
        self.flops = sum(part.flops for part in self.parts)
        return torch.cat([s for s, _ in scored])[self.place], torch.cat([g for _, g in scored])[self.place]


class SuffixRows(Batch):
    """A prompt a row: the overridden token and its answers' tokens, over the cached keys and values."""

    def __init__(self, engine: SuffixEngine, packs: list[tuple[State, list[int]]]):
        self.engine = engine
        self.first_layer: FirstLayer | None = None
        self._scored = False
        device = engine.device
        kept = [state.kept for state, _ in packs]
        answers = [[state.prompt.continuations[c] for c in mine] for state, mine in packs]
        packed = pack(
            [[(n, Tree(1, tuple(len(a) - 1 for a in row)))] for n, row in enumerate(answers)], device
        )
        self.lengths = torch.tensor([len(a) for row in answers for a in row], device=device)
        self.hidden = torch.zeros(
            *packed.offset.shape, kept[0]["entering"].shape[-1], dtype=engine.dtype, device=device
        )
        flat_hidden = self.hidden.flatten(0, 1)
        for n, (k, (_, mine)) in enumerate(zip(kept, packs, strict=True)):
            self.hidden[n, 0] = k["entering"]
            for start, c in zip(packed.branches[n], mine, strict=True):
                flat_hidden[start : start + len(k["answers"][c])] = k["answers"][c]
        span = list(enumerate(range(engine.first, engine.depth)))
        earlier = torch.tensor([k["keys"][0].shape[1] for k in kept], device=device)
        prefix = max(1, int(earlier.max()))
        self.constant_keys = prefix if keys_stay_apart(engine.model) else 0
        self.keys = {layer: _stack([k["keys"][i] for k in kept], prefix) for i, layer in span}
        self.values = {layer: _stack([k["values"][i] for k in kept], prefix) for i, layer in span}
        self.positions, self.back = with_earlier(packed, earlier, prefix)
        flat, row_of_target, targets, answer = [], [], [], 0
        width = self.hidden.shape[1]
        for n, row in enumerate(answers):
            for start, tokens in zip(packed.branches[n], row, strict=True):
                flat += [n * width, *range(start, start + len(tokens) - 1)]
                row_of_target += [answer] * len(tokens)
                targets += tokens
                answer += 1
        self.targets, self.flat_of_target, self.row_of_target = (
            torch.tensor(numbers, device=device) for numbers in (targets, flat, row_of_target)
        )
        self.first_answer = torch.tensor([0, *[len(row) for row in answers[:-1]]], device=device).cumsum(0)

    def score(
        self, mixture: Mixture | None, owner: Tensor | None = None, greedy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """One pass of the few tokens through the critical layers and the head."""
        engine, span = self.engine, range(self.engine.first, self.engine.depth)
        size, targets = self.back.shape, len(self.targets)
        if mixture is None:
            self.flops += engine.shape.score(span, size, targets)
            with torch.no_grad():
                return self._finish(self._run(self.hidden, span), greedy)
        assert owner is not None
        rows, tokens = self.hidden.shape[:2]
        last_only = engine.position == "last"
        starts = torch.arange(rows, device=self.hidden.device) * tokens
        at = starts if last_only else self.flat_of_target.unique()
        mine = owner[self.first_answer][at // tokens]
        weights, indices = mixture.weights[mine], mixture.indices[mine]
        hidden, layers, more = self.hidden, engine.layers, len(at) * (weights.shape[-1] - engine.family.top_k)
        gradient = weights.requires_grad
        # a loss is asked again and again, and its digits must not depend on whether a descent asked before
        opened = gradient or not greedy or self._scored
        if last_only and opened and engine.experts_factor:
            hidden = self._opened().mixed(weights[:, 0], indices[:, 0])
            weights, indices, layers, span = weights[:, 1:], indices[:, 1:], layers[1:], span[1:]
        elif gradient:
            self._count_weighing(more)
        self._scored = True
        lowest = engine.first + 1 if gradient else None  # nothing that enters the first layer has one
        self.flops += engine.shape.score(span, size, targets, layers, more, lowest, self.constant_keys)
        with override(engine.family, engine.model, layers, at, Mixture(weights, indices)):
            return self._finish(self._run(hidden, span), greedy)

    def _opened(self) -> FirstLayer:
        """The first critical layer with its experts apart, computed at the first call."""
        if self.first_layer is None:
            engine, first = self.engine, self.engine.first
            span, (rows, tokens) = range(first, first + 1), self.hidden.shape[:2]
            self.first_layer = FirstLayer(
                engine, lambda: self._run(self.hidden, span), rows, tokens, engine.experts_factor or 1.0
            )
            self.flops += engine.shape.forward(span, *self.back.shape)
            self.flops += engine.shape.mixing(span, rows * engine.family.num_experts)
        return self.first_layer

    def _count_weighing(self, more: int) -> None:
        """FLOPs of the gradient of the first layer's mixing weights.

        `moe_step` weighs what enters the experts' last product, a third of their work; stock functions weigh
        what comes out.
        """
        engine = self.engine
        experts = engine.family.experts_of(engine.model, engine.first)
        if replaces_experts(engine.model) and not needs_stock(experts):
            pairs = self.hidden.shape[:2].numel() * engine.family.top_k + more
            self.flops += engine.shape.mixing([engine.first], pairs) / 3

    def _run(self, hidden: Tensor, span: range) -> Tensor:
        model, layers = self.engine.model, self.engine.decoder.layers[span.start : span.stop]
        with (
            experts_by(moe_step, model),
            packed_linears(layers),
            constant_prefix(model, self.keys, self.values) as apart,
        ):
            cache = None if apart else _Cache(self.keys, self.values)
            return self.engine.run_layers(hidden, span, self.positions, self.back, cache)

    def _finish(self, hidden: Tensor, greedy: bool) -> tuple[Tensor, Tensor]:
        """Norm and head at the tokens that predict an answer token."""
        engine = self.engine
        wanted = engine.decoder.norm(hidden.flatten(0, 1)[self.flat_of_target]).to(engine.device)
        chosen, hits = target_log_probs(engine.family, engine.model, wanted, self.targets, greedy)
        none = chosen.new_zeros(len(self.lengths))
        missed = none.index_add(0, self.row_of_target, (~hits).to(none.dtype))
        return none.index_add(0, self.row_of_target, chosen), missed == 0


def _stack(parts: list[Tensor], width: int) -> Tensor:
    """Stack [heads, tokens, size] tensors of different token counts, zero-padded on the right to `width`."""
    out = parts[0].new_zeros(len(parts), parts[0].shape[0], width, parts[0].shape[2])
    for row, part in enumerate(parts):
        out[row, :, : part.shape[1]] = part
    return out
