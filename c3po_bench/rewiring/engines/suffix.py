"""The fast engine: reruns only the overridden token and the answer's tokens, only in the layers that can change.

Everything before is constant. Layers below the first critical one never see the override; by causality neither do
earlier tokens, in any layer. So a prompt is read once, keeping the hidden state that enters the first critical layer
at the last context token (and at each answer token), and the keys and values of the earlier tokens from that layer
up. One score is then a pass of 1 + answer tokens through those layers and the head. Equal to `naive`, by tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from c3po_bench.rewiring.engines.base import Batch, Engine, Prompt, State, like_sizes, pad_right
from c3po_bench.rewiring.engines.first_layer import FirstLayer
from c3po_bench.rewiring.engines.head import greedy_tokens, target_log_probs
from c3po_bench.rewiring.engines.packing import pack, with_earlier
from c3po_bench.rewiring.hook import override, record_routing

if TYPE_CHECKING:
    from torch import Tensor

    from c3po_bench.rewiring.pathway import Mixture

PACKED_RATIO = 1.5
"""How much longer than the shortest a row of packed answers may be to be run in one batch with it."""


class _Cache:
    """The part of a transformers cache that attention uses: keys and values of earlier tokens, by layer.

    Recording, it keeps what it is given; else it puts the earlier tokens before what it is given.
    """

    def __init__(self, keys: dict[int, Tensor] | None = None, values: dict[int, Tensor] | None = None):
        self.recording = keys is None
        self.keys: dict[int, Tensor] = keys or {}
        self.values: dict[int, Tensor] = values or {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, heads, tokens, width] that attention should see."""
        if self.recording:
            self.keys[layer_idx], self.values[layer_idx] = keys, values
            return keys, values
        before_k, before_v = self.keys[layer_idx], self.values[layer_idx]
        return torch.cat([before_k, keys], dim=2), torch.cat([before_v, values], dim=2)


class SuffixEngine(Engine):
    """See the module's docstring."""

    def __init__(self, model: Any, layers: list[int], position: str = "last"):
        super().__init__(model, layers, position)
        self.first = min(layers)
        self.decoder = self.family.decoder_of(model)
        self.depth = len(self.decoder.layers)
        self.dtype = next(model.parameters()).dtype

    def run_layers(self, hidden: Tensor, span: range, positions: Tensor, allowed: Tensor, cache: _Cache) -> Tensor:
        """Pass hidden [rows, tokens, width] through decoder layers `span`.

        Args:
            hidden: what enters the first layer of the span.
            span: decoder layers.
            positions: [rows, tokens] positions of the tokens.
            allowed: [rows or 1, tokens, keys] the distance back to each visible key, negative where hidden.
            cache: earlier keys and values, or a recording one.
        """
        rotary = self.decoder.rotary_emb(hidden, positions)
        masks: dict[int | None, Tensor] = {}
        for index in span:
            layer = self.decoder.layers[index]
            window = getattr(layer.self_attn, "sliding_window", None)
            if window not in masks:
                visible = (allowed >= 0) if window is None else (allowed >= 0) & (allowed < window)
                masks[window] = torch.zeros_like(visible, dtype=hidden.dtype).masked_fill_(
                    ~visible, torch.finfo(hidden.dtype).min
                )[:, None]
            hidden = layer(
                hidden,
                attention_mask=masks[window],
                position_ids=positions,
                past_key_values=cache,
                position_embeddings=rotary,
            )
        return hidden

    @torch.no_grad()
    def read_new(self, prompts: list[Prompt]) -> list[State]:
        """Contexts through all layers, answers through the layers below the first critical one."""
        ids, lengths = pad_right([p.context for p in prompts], self.device)
        rows, width = ids.shape
        positions = torch.arange(width, device=self.device)[None].expand(rows, -1)
        back = (positions[0][:, None] - positions[0][None, :])[None]
        cache = _Cache()
        last = torch.arange(rows, device=self.device) * width + lengths - 1
        with record_routing(self.family, self.model, list(self.family.layers)) as logits:
            entering = self.run_layers(self.family.embed(self.model, ids), range(self.first), positions, back, cache)
            self.run_layers(entering, range(self.first, self.depth), positions, back, cache)
        own = torch.stack([logits[i][last].float().softmax(-1) for i in self.family.layers], dim=1).cpu()
        at_last = entering.flatten(0, 1)[last]
        answers = self._answers_below(prompts, lengths, cache, width)
        states = []
        for i, prompt in enumerate(prompts):
            earlier = int(lengths[i]) - 1
            span = range(self.first, self.depth)
            kept = {
                "entering": at_last[i].clone(),
                "answers": answers[i],
                "keys": [cache.keys[layer][i, :, :earlier].clone() for layer in span],
                "values": [cache.values[layer][i, :, :earlier].clone() for layer in span],
            }
            states.append(State(prompt, own[i], kept))
        return states

    def _answers_below(self, prompts: list[Prompt], lengths: Tensor, cache: _Cache, width: int) -> list[list[Tensor]]:
        """Hidden states that enter the first critical layer at answer tokens (all but the last of each)."""
        sizes = [[len(c) - 1 for c in p.continuations] for p in prompts]
        empty = torch.empty(0, self.decoder.embed_tokens.weight.shape[1], device=self.device, dtype=self.dtype)
        found: list[list[Tensor]] = [[empty for _ in row] for row in sizes]
        for group in like_sizes([sum(row) for row in sizes], PACKED_RATIO):
            rows = [i for i in group if sum(sizes[i])]
            if not rows:
                continue
            of = torch.tensor(rows, device=self.device)
            packed = pack([sizes[i] for i in rows], 0, self.device)
            ids, _ = pad_right([tuple(t for c in prompts[i].continuations for t in c[:-1]) for i in rows], self.device)
            positions, back = with_earlier(packed, lengths[of], width)
            below = _Cache(
                {layer: cache.keys[layer][of] for layer in range(self.first)},
                {layer: cache.values[layer][of] for layer in range(self.first)},
            )
            hidden = self.run_layers(self.family.embed(self.model, ids), range(self.first), positions, back, below)
            for n, i in enumerate(rows):
                spans = zip(packed.start[n], sizes[i], strict=True)
                found[i] = [hidden[n, start : start + size].clone() for start, size in spans]
        return found

    def batch(self, states: list[State], rows: list[tuple[int, int]]) -> SuffixBatch:
        """Collate prefixes (right-padded) and the tokens to rerun. Rows of one state must have one owner."""
        return SuffixBatch(self, states, rows)


class SuffixBatch(Batch):
    """Rows of one prompt packed together, in parts of like size: padding would cost more than the extra passes."""

    def __init__(self, engine: SuffixEngine, states: list[State], rows: list[tuple[int, int]]):
        answers = [states[s].prompt.continuations[c] for s, c in rows]
        self.lengths = torch.tensor([len(a) for a in answers], device=engine.device)
        of_state: dict[int, list[int]] = {}
        for row, (state, _) in enumerate(rows):
            of_state.setdefault(state, []).append(row)
        packs = list(of_state.items())
        sizes = [1 + sum(len(answers[row]) - 1 for row in mine) for _, mine in packs]
        groups = [[packs[i] for i in group] for group in like_sizes(sizes, PACKED_RATIO)]
        self.chosen = [torch.tensor([row for _, mine in group for row in mine], device=engine.device) for group in groups]
        self.place = torch.cat(self.chosen).argsort()
        self.parts = [
            SuffixRows(engine, [(states[s], [rows[row][1] for row in mine]) for s, mine in group]) for group in groups
        ]

    def score(self, mixture: Mixture | None, owner: Tensor | None = None, greedy: bool = True) -> tuple[Tensor, Tensor]:
        """Every part, put back in order."""
        owners = [None if owner is None else owner[chosen] for chosen in self.chosen]
        scored = [part.score(mixture, mine, greedy) for part, mine in zip(self.parts, owners, strict=True)]
        return torch.cat([s for s, _ in scored])[self.place], torch.cat([g for _, g in scored])[self.place]


class SuffixRows(Batch):
    """A prompt a row: the overridden token and its answers' tokens, over the cached keys and values."""

    def __init__(self, engine: SuffixEngine, packs: list[tuple[State, list[int]]]):
        self.engine, self.rows = engine, len(packs)
        self.first_layer: FirstLayer | None = None
        self._scored = False
        device = engine.device
        kept = [state.kept for state, _ in packs]
        answers = [[state.prompt.continuations[c] for c in mine] for state, mine in packs]
        packed = pack([[len(a) - 1 for a in row] for row in answers], 1, device)
        self.lengths = torch.tensor([len(a) for row in answers for a in row], device=device)
        self.hidden = torch.zeros(*packed.offset.shape, kept[0]["entering"].shape[-1], dtype=engine.dtype, device=device)
        for n, (k, (_, mine)) in enumerate(zip(kept, packs, strict=True)):
            self.hidden[n, 0] = k["entering"]
            for start, c in zip(packed.start[n], mine, strict=True):
                self.hidden[n, start : start + len(k["answers"][c])] = k["answers"][c]
        span = list(enumerate(range(engine.first, engine.depth)))
        earlier = torch.tensor([k["keys"][0].shape[1] for k in kept], device=device)
        prefix = max(1, int(earlier.max()))
        self.keys = {layer: _stack([k["keys"][i] for k in kept], prefix) for i, layer in span}
        self.values = {layer: _stack([k["values"][i] for k in kept], prefix) for i, layer in span}
        self.positions, self.back = with_earlier(packed, earlier, prefix)
        flat, row_of_target, targets, answer = [], [], [], 0
        width = self.hidden.shape[1]
        for n, row in enumerate(answers):
            for start, tokens in zip(packed.start[n], row, strict=True):
                flat += [n * width, *range(n * width + start, n * width + start + len(tokens) - 1)]
                row_of_target += [answer] * len(tokens)
                targets += tokens
                answer += 1
        self.targets, self.flat_of_target = torch.tensor(targets, device=device), torch.tensor(flat, device=device)
        self.row_of_target = torch.tensor(row_of_target, device=device)
        self.first_answer = torch.tensor([0, *[len(row) for row in answers[:-1]]], device=device).cumsum(0)

    def score(self, mixture: Mixture | None, owner: Tensor | None = None, greedy: bool = True) -> tuple[Tensor, Tensor]:
        """One pass of the few tokens through the critical layers and the head."""
        engine = self.engine
        if mixture is None:
            with torch.no_grad():
                return self._finish(self._run(self.hidden, range(engine.first, engine.depth)), greedy)
        assert owner is not None
        tokens = self.hidden.shape[1]
        last_only = engine.position == "last"
        at = torch.arange(self.rows, device=self.hidden.device) * tokens if last_only else self.flat_of_target.unique()
        mine = owner[self.first_answer][at // tokens]
        weights, indices = mixture.weights[mine], mixture.indices[mine]
        hidden, layers, start = self.hidden, engine.layers, engine.first
        if last_only and (self.first_layer or weights.requires_grad or self._scored):
            if self.first_layer is None:
                span = range(engine.first, engine.first + 1)
                self.first_layer = FirstLayer(engine, lambda: self._run(self.hidden, span), self.rows, tokens)
            hidden = self.first_layer.mixed(weights[:, 0], indices[:, 0])
            weights, indices, layers, start = weights[:, 1:], indices[:, 1:], layers[1:], start + 1
        self._scored = True
        with override(engine.family, engine.model, layers, at, type(mixture)(weights, indices)):
            return self._finish(self._run(hidden, range(start, engine.depth)), greedy)

    def _run(self, hidden: Tensor, span: range) -> Tensor:
        cache = _Cache(self.keys, self.values)
        return self.engine.run_layers(hidden, span, self.positions, self.back, cache)

    def _finish(self, hidden: Tensor, greedy: bool) -> tuple[Tensor, Tensor]:
        """Norm and head at the tokens that predict an answer token."""
        engine = self.engine
        wanted = engine.decoder.norm(hidden.flatten(0, 1)[self.flat_of_target])
        chosen = target_log_probs(engine.family, engine.model, wanted, self.targets)
        total = chosen.new_zeros(len(self.lengths)).index_add(0, self.row_of_target, chosen)
        if not greedy:
            return total, torch.zeros_like(total, dtype=torch.bool)
        wrong = (greedy_tokens(engine.family, engine.model, wanted) != self.targets).float()
        return total, wrong.new_zeros(len(self.lengths)).index_add(0, self.row_of_target, wrong) == 0


def _stack(parts: list[Tensor], width: int) -> Tensor:
    """Stack [heads, tokens, size] tensors of different token counts, zero-padded on the right to `width`."""
    out = parts[0].new_zeros(len(parts), parts[0].shape[0], width, parts[0].shape[2])
    for row, part in enumerate(parts):
        out[row, :, : part.shape[1]] = part
    return out
