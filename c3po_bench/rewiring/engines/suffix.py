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
from c3po_bench.rewiring.hook import override, record_routing

if TYPE_CHECKING:
    from torch import Tensor

    from c3po_bench.rewiring.pathway import Mixture

ANSWER_RATIO = 1.5
"""How much longer than the shortest an answer may be to be run in one batch with it."""


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
        answers = self._answers_below(prompts, lengths, cache, positions)
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

    def _answers_below(
        self, prompts: list[Prompt], lengths: Tensor, cache: _Cache, context_positions: Tensor
    ) -> list[list[Tensor]]:
        """Hidden states that enter the first critical layer at answer tokens (all but the last of each)."""
        inputs = [(i, c[:-1]) for i, p in enumerate(prompts) for c in p.continuations]
        width = self.decoder.embed_tokens.weight.shape[1]
        found = [torch.empty(0, width, device=self.device, dtype=self.dtype) for _ in inputs]
        for group in like_sizes([len(ids) for _, ids in inputs], ANSWER_RATIO):
            rows = [n for n in group if inputs[n][1]]
            if rows:
                of = torch.tensor([inputs[n][0] for n in rows], device=self.device)
                ids, counts = pad_right([inputs[n][1] for n in rows], self.device)
                hidden = self._answers_of(ids, of, lengths, cache, context_positions)
                for row, n in enumerate(rows):
                    found[n] = hidden[row, : int(counts[row])].clone()
        flat = iter(found)
        return [[next(flat) for _ in p.continuations] for p in prompts]

    def _answers_of(self, ids: Tensor, of: Tensor, lengths: Tensor, cache: _Cache, context_positions: Tensor) -> Tensor:
        """Answer tokens [rows, tokens] after contexts `of` [rows], through the layers below the first critical one."""
        start = lengths[of][:, None]
        positions = start + torch.arange(ids.shape[1], device=self.device)[None]
        key_positions = torch.cat([context_positions[of], positions], dim=1)
        back = positions[:, :, None] - key_positions[:, None, :]
        padding = context_positions[of] >= start
        back[:, :, : padding.shape[1]].masked_fill_(padding[:, None, :], -1)
        below = _Cache({i: cache.keys[i][of] for i in range(self.first)}, {i: cache.values[i][of] for i in range(self.first)})
        return self.run_layers(self.family.embed(self.model, ids), range(self.first), positions, back, below)

    def batch(self, states: list[State], rows: list[tuple[int, int]]) -> SuffixBatch:
        """Collate prefixes (right-padded) and the tokens to rerun."""
        return SuffixBatch(self, states, rows)


class SuffixBatch(Batch):
    """Rows in parts of like answer length, each run by itself: padding would cost more than the extra passes."""

    def __init__(self, engine: SuffixEngine, states: list[State], rows: list[tuple[int, int]]):
        sizes = [len(states[s].prompt.continuations[c]) for s, c in rows]
        groups = like_sizes(sizes, ANSWER_RATIO)
        self.lengths = torch.tensor(sizes, device=engine.device)
        self.chosen = [torch.tensor(group, device=engine.device) for group in groups]
        self.parts = [SuffixRows(engine, states, [rows[i] for i in group]) for group in groups]
        self.place = torch.cat(self.chosen).argsort()

    def score(self, mixture: Mixture | None, owner: Tensor | None = None, greedy: bool = True) -> tuple[Tensor, Tensor]:
        """Every part, put back in order."""
        owners = [None if owner is None else owner[chosen] for chosen in self.chosen]
        scored = [part.score(mixture, mine, greedy) for part, mine in zip(self.parts, owners, strict=True)]
        return torch.cat([s for s, _ in scored])[self.place], torch.cat([g for _, g in scored])[self.place]


class SuffixRows(Batch):
    """Tokens [override, answer[:-1]] of each row over the cached prefix."""

    def __init__(self, engine: SuffixEngine, states: list[State], rows: list[tuple[int, int]]):
        self.engine, self.rows = engine, len(rows)
        self.first_layer: FirstLayer | None = None
        self._scored = False
        device = engine.device
        kept = [states[s].kept for s, _ in rows]
        answers = [states[s].prompt.continuations[c] for s, c in rows]
        self.lengths = torch.tensor([len(a) for a in answers], device=device)
        earlier = torch.tensor([k["keys"][0].shape[1] for k in kept], device=device)
        tokens, prefix = int(self.lengths.max()), max(1, int(earlier.max()))
        width = kept[0]["entering"].shape[-1]
        self.hidden = torch.zeros(self.rows, tokens, width, dtype=engine.dtype, device=device)
        for row, (k, (_, c)) in enumerate(zip(kept, rows, strict=True)):
            self.hidden[row, 0] = k["entering"]
            self.hidden[row, 1 : 1 + len(k["answers"][c])] = k["answers"][c]
        self.keys = {
            layer: _stack([k["keys"][i] for k in kept], prefix) for i, layer in enumerate(range(engine.first, engine.depth))
        }
        self.values = {
            layer: _stack([k["values"][i] for k in kept], prefix) for i, layer in enumerate(range(engine.first, engine.depth))
        }
        offsets = torch.arange(tokens, device=device)
        self.positions = earlier[:, None] + offsets[None]
        at = torch.arange(prefix, device=device)[None].expand(self.rows, -1)
        keys_at = torch.cat([at, self.positions], dim=1)
        self.back = self.positions[:, :, None] - keys_at[:, None, :]
        self.back[:, :, :prefix].masked_fill_((at >= earlier[:, None])[:, None, :], -1)
        self.targets = torch.tensor([t for a in answers for t in a], device=device)
        self.row_of_target = torch.repeat_interleave(torch.arange(self.rows, device=device), self.lengths)
        first = torch.cumsum(self.lengths, 0) - self.lengths
        step = torch.arange(len(self.targets), device=device) - first[self.row_of_target]
        self.flat_of_target = self.row_of_target * tokens + step

    def score(self, mixture: Mixture | None, owner: Tensor | None = None, greedy: bool = True) -> tuple[Tensor, Tensor]:
        """One pass of the few tokens through the critical layers and the head."""
        engine = self.engine
        if mixture is None:
            with torch.no_grad():
                return self._finish(self._run(self.hidden, range(engine.first, engine.depth)), greedy)
        assert owner is not None
        tokens = self.hidden.shape[1]
        last_only = engine.position == "last"
        row = torch.arange(self.rows, device=self.hidden.device) if last_only else self.row_of_target
        at = row * tokens if last_only else self.flat_of_target
        weights, indices = mixture.weights[owner[row]], mixture.indices[owner[row]]
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
        total = chosen.new_zeros(self.rows).index_add(0, self.row_of_target, chosen)
        if not greedy:
            return total, torch.zeros(self.rows, dtype=torch.bool, device=total.device)
        wrong = (greedy_tokens(engine.family, engine.model, wanted) != self.targets).float()
        return total, wrong.new_zeros(self.rows).index_add(0, self.row_of_target, wrong) == 0


def _stack(parts: list[Tensor], width: int) -> Tensor:
    """Stack [heads, tokens, size] tensors of different token counts, zero-padded on the right to `width`."""
    out = parts[0].new_zeros(len(parts), parts[0].shape[0], width, parts[0].shape[2])
    for row, part in enumerate(parts):
        out[row, :, : part.shape[1]] = part
    return out
