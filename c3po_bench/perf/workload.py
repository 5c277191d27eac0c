"""What is measured, and how.

Models, prompts and steps of descent; pieces of work in turn, and the median of several rounds.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, OlmoeConfig

from c3po_bench.config import ModelConfig
from c3po_bench.contract import Item
from c3po_bench.models.loading import load
from c3po_bench.models.routing import family_of
from c3po_bench.perf import Options
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.methods import Queries
from c3po_bench.rewiring.methods.ngd import ngd
from c3po_bench.rewiring.pathway import Mixer, core_experts
from c3po_bench.rewiring.states import Prompt
from c3po_bench.rewiring.tokens import TokenizedItem, Tokenizer
from c3po_bench.runtime.meter import synchronize
from c3po_bench.tasks.taskset import TaskSet

NEIGHBORS = 3


def side_by_side(rounds: int, **work: Callable[[], Any]) -> dict[str, float]:
    """Median seconds of each piece of work after a warm-up.

    They run in turn, A B A B ..., so that drift of the machine hits all alike.
    """
    taken: dict[str, list[float]] = {name: [] for name in work}
    for piece in work.values():
        piece()
    for _ in range(rounds):
        for name, piece in work.items():
            synchronize()
            start = time.perf_counter()
            piece()
            synchronize()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def place(device: torch.device) -> dict[str, Any]:
    """What a record says of where it was measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads()}


def embedded(options: Options) -> Any:
    """The embedded model that the command line names."""
    return load(ModelConfig(name=options.model, kind=options.model, device=options.device))


def olmoe_shaped(device: str, share: int = 4, dtype: torch.dtype = torch.float32) -> Any:
    """A random OLMoE with the real one's depth, experts and proportions; its widths divided by `share`."""
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


def last_layers(model: Any) -> list[int]:
    """The last five layers that have routed experts."""
    return list(family_of(model).layers[-5:])


def tasks(data: Path | None, num_fewshot: int = 0, rule: str = "cloze") -> TaskSet:
    """ARC-Easy where there is local data, else our own facts."""
    return TaskSet(["arc_easy" if data else "facts"], data_root=data, num_fewshot=num_fewshot, rule=rule)


def first_items(data: Path | None, count: int, num_fewshot: int = 0, rule: str = "cloze") -> list[Item]:
    """The first `count` items, with labels."""
    asked = tasks(data, num_fewshot, rule)
    items: list[Item] = []
    for name, task in asked.load().items():
        docs: Any = islice(enumerate(task.eval_docs), count - len(items))
        items += asked.references(name, docs)
    return items


def stock_requests(items: Sequence[Item]) -> list[Instance]:
    """The same as lm-eval asks its own models."""
    return [
        Instance("loglikelihood", {}, pair, i, (*item.id, 1))
        for item in items
        for i, pair in enumerate(item.requests)
    ]


def questions(loaded: Any, count: int, data: Path | None, num_fewshot: int = 0) -> list[TokenizedItem]:
    """The first `count` items in tokens."""
    tokenizer = Tokenizer(loaded.model, loaded.tokenizer)
    return [tokenizer(item) for item in first_items(data, count, num_fewshot)]


def random_prompts(batch: int, tokens: int = 128) -> list[Prompt]:
    """Enough for `batch` items and their neighbors, each answered by one token."""
    size = (batch * (1 + NEIGHBORS), tokens)
    drawn = torch.randint(5, 12000, size, generator=torch.Generator().manual_seed(0))
    return [Prompt(tuple(row), ((7,),)) for row in drawn.tolist()]


class Work:
    """NGD for `batch` items, each with its neighbors, on one engine; of the prompts the items come first."""

    def __init__(
        self,
        engine: Any,
        prompts: list[Prompt],
        batch: int,
        neighbors: int = NEIGHBORS,
        mixing: str = "dense",
    ):
        self.engine, self.neighbors, self.mixing = engine, neighbors, mixing
        states = engine.read(prompts[:batch])
        near = engine.read(prompts[batch : batch * (1 + neighbors)])
        self.original = engine.original_pathways(states)
        self.core = core_experts(self.original, "top:20", engine.family.top_k)
        self.mixer = Mixer(engine.family)
        self.rows = engine.batch(near, [(i, 0) for i in range(batch * neighbors)])
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
        return torch.autograd.grad(self.loss(pathway).sum(), pathway)[0]

    def solve(self, steps: int) -> Any:
        """The whole optimization."""
        method = MethodConfig(steps=steps)
        return ngd(Queries(self.original, self.core, None, self.original[:0], self.loss, method, []))
