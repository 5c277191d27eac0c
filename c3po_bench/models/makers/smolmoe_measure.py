"""How much the split keeps.

`python -m c3po_bench.models.makers.smolmoe_measure --data DIR [--task arc_easy] [--limit 200]`.

Stock lm-eval accuracy of the dense model, of SmolMoE, and of SmolMoE with experts drawn at random (the sanity
figure: were it as good, routing would not matter). 5 to 25 minutes on one core.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportTypedDictNotRequiredAccess=false

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from c3po_bench.errors import exit_status
from c3po_bench.models.embedded import smollm, smolmoe
from c3po_bench.tasks.taskset import TaskSet


@contextmanager
def random_experts(model: nn.Module, *, seed: int) -> Iterator[None]:
    """While it lasts, every router of a Qwen2-MoE `model` draws its experts at random, each with weight one."""
    generator = torch.Generator().manual_seed(seed)

    def draw(
        module: nn.Module, arguments: Any, output: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, indices = output
        drawn = torch.rand(logits.shape, generator=generator).topk(indices.shape[-1], dim=-1).indices
        return logits, torch.full_like(weights, 1 / smolmoe.EXPERTS), drawn.to(indices.device)

    gates = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    handles = [gate.register_forward_hook(draw) for gate in gates]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def divergence(dense: nn.Module, model: nn.Module, ids: Tensor) -> Tensor:
    """KL divergence in nats of `model`'s next token from `dense`'s at each position of `ids` [texts, length]."""
    with torch.no_grad():
        expected = dense(ids).logits.log_softmax(dim=-1)
        predicted = model(ids).logits.log_softmax(dim=-1)
    return (expected.exp() * (expected - predicted)).sum(dim=-1)


def accuracy(folder: Path, tasks: TaskSet, limit: int | None, *, seed: int | None = None) -> dict[str, float]:
    """Stock accuracy of the checkpoint in `folder` by task; with `seed`, with random experts."""
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=16)
    with nullcontext() if seed is None else random_experts(model, seed=seed):
        evaluation = lm_eval.simple_evaluate(model=lm, tasks=tasks.specs, limit=limit, bootstrap_iters=0)
    assert evaluation is not None
    return {task: float(metrics["acc,none"]) for task, metrics in evaluation["results"].items()}


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m c3po_bench.models.makers.smolmoe_measure", description=__doc__
    )
    parser.add_argument("--data", default=None, help="folder of local task data (default: the hub)")
    parser.add_argument("--task", nargs="+", default=["arc_easy"])
    parser.add_argument("--limit", type=int, default=200, help="items of each task")
    parser.add_argument("--seed", type=int, default=0, help="of the random experts")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)

    def work() -> None:
        tasks = TaskSet(options.task, data_root=options.data)
        split = smolmoe.checkpoint()
        arms = {
            "dense": (smollm.checkpoint(), None),
            "smolmoe": (split, None),
            "random": (split, options.seed),
        }
        for name, (folder, seed) in arms.items():
            for task, value in accuracy(folder, tasks, options.limit, seed=seed).items():
                sys.stdout.write(f"{name:8} {task} acc {value:.3f} (n = {options.limit})\n")
                sys.stdout.flush()

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
