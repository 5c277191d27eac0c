"""The suffix engine against the naive one.

Neighborhood gradient descent, 10 steps, 3 neighbors, equal results.

An item's cost is its share of one optimization step (forward and backward over its three neighbors); all
steps are alike. The naive engine runs an item at a time, its three neighbors in one batch (`ratio`) or, as
the formula reads, one forward after the other (`ratio_forward_by_forward`); the suffix engine runs as many
items as the setting says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from c3po_bench.models.loading import device_of
from c3po_bench.perf.questions import questions, smolmoe
from c3po_bench.perf.timing import place, side_by_side
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.pathway import Mixer, core_experts
from c3po_bench.rewiring.states import Prompt
from c3po_bench.rewiring.surrogates import Problem
from c3po_bench.rewiring.surrogates.ngd import ngd

if TYPE_CHECKING:
    from c3po_bench.perf.__main__ import Options

K = 3
SMOLMOE_BATCHES = (1, 4, 16, 32)


def run(options: Options) -> Iterator[dict[str, Any]]:
    """OLMoE-shaped, mixed dense and hard; smolmoe 5-shot; smolmoe zero-shot last, at the default batch.

    On a GPU also OLMoE at its own size in bfloat16, and larger batches.
    """
    device = device_of(options.device)
    large = () if device == "cpu" else (128,)
    if large:
        whole = olmoe_shaped(device, 1, torch.bfloat16)
        for batch in (1,) if options.quick else (1, 8, 32, *large):
            yield compare("olmoe, 7B in bfloat16", whole, random_prompts(batch), batch, options.rounds)
        del whole
    shaped = olmoe_shaped(device)
    for batch in (1,) if options.quick else (1, 8, 32, *large):
        yield compare("olmoe-shaped", shaped, random_prompts(batch), batch, options.rounds)
    for batch in () if options.quick else (1, 32):
        yield compare(
            "olmoe-shaped, hard", shaped, random_prompts(batch), batch, options.rounds, mixing="hard"
        )
    del shaped
    loaded = smolmoe(options.device)
    for shots, name, batches in ((5, "smolmoe 5-shot", (1, 16)), (0, "smolmoe zero-shot", SMOLMOE_BATCHES)):
        batches = (1,) if options.quick else (*batches, *large)
        asked = questions(loaded, (1 + K) * max(SMOLMOE_BATCHES + large), options.data, num_fewshot=shots)
        prompts = [
            Prompt(q.prompts[0].context, (q.prompts[0].continuations[q.item.gold or 0],)) for q in asked
        ]
        for batch in batches:
            yield compare(name, loaded.model, prompts, batch, options.rounds)


def olmoe_shaped(device: str, share: int = 4, dtype: torch.dtype = torch.float32) -> Any:
    """A random OLMoE with the real one's depth, experts and proportions; its widths divided by `share`."""
    from transformers import AutoModelForCausalLM, OlmoeConfig

    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=50304 // share,
        hidden_size=2048 // share,
        intermediate_size=1024 // share,
        num_hidden_layers=16,
        num_attention_heads=16 // share,
        num_key_value_heads=16 // share,
        num_experts=64,
        num_experts_per_tok=8,
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def random_prompts(batch: int, tokens: int = 128) -> list[Prompt]:
    """Enough for `batch` items and their neighbors, each answered by one token."""
    drawn = torch.randint(5, 12000, (batch * (1 + K), tokens), generator=torch.Generator().manual_seed(0))
    return [Prompt(tuple(row), ((7,),)) for row in drawn.tolist()]


class Work:
    """NGD for `batch` items, each with three neighbors, on one engine."""

    def __init__(
        self, engine: Any, prompts: list[Prompt], batch: int, neighbors: int = K, mixing: str = "dense"
    ):
        self.engine, self.neighbors, self.mixing = engine, neighbors, mixing
        own_states = engine.read(prompts[:batch])
        neighbor_states = engine.read(prompts[batch : batch * (1 + neighbors)])
        self.original = engine.original_pathways(own_states)
        self.core = core_experts(self.original, "top:20", engine.family.top_k)
        self.mixer = Mixer(engine.family)
        self.rows = engine.batch(neighbor_states, [(i, 0) for i in range(batch * neighbors)])
        self.owner = torch.arange(batch, device=engine.device).repeat_interleave(neighbors)

    def loss(self, pathway: torch.Tensor) -> torch.Tensor:
        """Mean token NLL over the neighbors [items]."""
        mixture = self.mixer(pathway, self.original, self.core, self.mixing)
        scores, _ = self.rows.score(mixture, self.owner, greedy=False)
        each = -scores / self.rows.lengths / self.neighbors
        return each.new_zeros(len(self.original)).index_add(0, self.owner, each)

    def step(self) -> torch.Tensor:
        """One gradient."""
        pathway = self.original.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(pathway).sum(), pathway)
        return gradient

    def solve(self, steps: int) -> Any:
        """The whole optimization."""
        method = MethodConfig(steps=steps)
        return ngd(Problem(self.original, self.core, None, self.original[:0], self.loss, method, []))


def compare(
    name: str, model: Any, prompts: list[Prompt], batch: int, rounds: int, mixing: str = "dense"
) -> dict[str, Any]:
    """One setting."""
    layers = list(range(model.config.num_hidden_layers - 5, model.config.num_hidden_layers))
    naive, suffix = load_engine("naive", model, layers), load_engine("suffix", model, layers)
    one, many = Work(naive, prompts, 1, mixing=mixing), Work(suffix, prompts, batch, mixing=mixing)
    row = Work(naive, prompts, 1, neighbors=1, mixing=mixing)
    seconds = side_by_side(rounds, naive=one.step, naive_row=row.step, suffix=many.step)
    alone = Work(suffix, prompts, 1, mixing=mixing)
    left, right = one.solve(10), alone.solve(10)
    each = seconds["suffix"] / batch
    return {
        "name": "suffix",
        "setting": name,
        "batch": batch,
        "ratio": seconds["naive"] / each,
        "max_abs_diff": float((left.losses - right.losses).abs().max()),
        "max_pathway_diff": float((left.pathway - right.pathway).abs().max()),
        "ratio_forward_by_forward": K * seconds["naive_row"] / each,
        "naive_ms": 1000 * seconds["naive"],
        "suffix_ms": 1000 * each,
        "prompt_tokens": sum(len(p.context) for p in prompts) / len(prompts),
        "answer_tokens": sum(len(p.continuations[0]) for p in prompts) / len(prompts),
        **place(naive.device),
    }
