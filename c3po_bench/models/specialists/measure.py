"""Measures `model=specialists` on held-out items.

`python -m c3po_bench.models.specialists.measure --data DIR --output DIR [--limit N]`

Some fifteen minutes on one core. Writes three tables:

- `experts.csv`: for each skill in A and D the accuracy of the dense model, of the model as it routes, and
  of each expert forced at the last prompt token of all five routed layers; Wilson intervals.
- `criteria.csv`: paired differences with bootstrap intervals (own expert against the dense model and
  against the best other one, right expert forced against routed, ARC-Easy against the dense model).
- `spread.csv`: total variation between two items' own pathways, within a skill and across skills, and how
  often the right expert has the largest weight, by layer.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from c3po_bench.analysis.statistics import paired_bootstrap, wilson
from c3po_bench.errors import exit_status
from c3po_bench.models.embedded import smollm, specialists
from c3po_bench.models.embedded.specialists import DOMAINS, ROUTED, RULES, TOP_K
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.engines.suffix import SuffixEngine
from c3po_bench.rewiring.pathway import Mixture
from c3po_bench.rewiring.rewirer import Rewirer
from c3po_bench.rewiring.states import Prompt
from c3po_bench.rewiring.tokens import Tokenizer
from c3po_bench.tasks.skills import generate
from c3po_bench.tasks.taskset import TaskSet

log = logging.getLogger(__name__)
CHUNK = 50
STOCK_ITEMS = 400
TABLES = {
    "experts": ["skill", "phrasing", "answered_by", "items", "accuracy", "low", "high"],
    "criteria": ["skill", "phrasing", "difference", "items", "value", "low", "high"],
    "spread": ["phrasing", "of", "layer", "value"],
}


class Measured:
    """The finished model under forced and under its own routing, beside the dense one.

    The dense model is the finished one with empty experts only: so the same engine reads both.
    """

    def __init__(self, folder: Path) -> None:
        read: Any = AutoModelForCausalLM.from_pretrained
        model = read(folder, local_files_only=True).eval()
        dense = read(smollm.checkpoint(), local_files_only=True)
        empty = {name: torch.zeros_like(tensor) for name, tensor in specialists.load().items()}
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.engines = {
            "dense": SuffixEngine(specialists.from_dense(dense, empty), list(ROUTED)),
            "routed": SuffixEngine(model, list(ROUTED)),
        }

    @torch.no_grad()
    def right(self, documents: Sequence[dict[str, Any]]) -> tuple[dict[str, np.ndarray], Tensor]:
        """Whether each document of `skills` is answered right by each way of answering.

        With them come the original pathways.
        """
        correct: dict[str, list[Tensor]] = {name: [] for name in ("dense", "routed", *DOMAINS)}
        pathways = []
        for start in range(0, len(documents), CHUNK):
            some = documents[start : start + CHUNK]
            prompts = [prompt_of(self.tokenizer, document) for document in some]
            gold = torch.tensor([document["answer"] for document in some])
            rows = [(i, j) for i, prompt in enumerate(prompts) for j in range(len(prompt.continuations))]
            owner = torch.tensor([i for i, _ in rows])
            for kind, engine in self.engines.items():
                states = engine.read(prompts)
                batch = engine.batch(states, rows)
                for name in (kind, *(DOMAINS if kind == "routed" else ())):
                    mixture = None if name == kind else forced(DOMAINS.index(name), len(some))
                    scores, _ = batch.score(mixture, owner, greedy=False)
                    best = torch.stack([scores[owner == i].argmax() for i in range(len(some))])
                    correct[name].append(best == gold)
                if kind == "routed":
                    pathways.append(engine.original_pathways(states))
                engine.forget()
        return {name: torch.cat(parts).numpy() for name, parts in correct.items()}, torch.cat(pathways)

    def stock_right(self, task: str, data: str, limit: int) -> dict[str, np.ndarray]:
        """Whether the dense and the finished model answer the first items of a stock task right."""
        tasks = TaskSet([task], data_root=data)
        documents: Any = islice(enumerate(tasks.load()[task].eval_docs), limit)
        items = tasks.references(task, documents)
        correct = {}
        for kind, engine in self.engines.items():
            rewirer = Rewirer(engine, Tokenizer(engine.model, self.tokenizer), MethodConfig())
            right = []
            for start in range(0, len(items), CHUNK):
                some = items[start : start + CHUNK]
                for item, answer in zip(some, rewirer.answer(some), strict=True):
                    scores = [score for score, _ in answer.scores[: item.n_choices]]
                    right.append(int(np.argmax(scores)) == item.gold)
                engine.forget()
            correct[kind] = np.array(right)
        return correct


def prompt_of(tokenizer: Any, document: dict[str, Any]) -> Prompt:
    """A document of `skills` in tokens; its options are single tokens."""
    options = [tokenizer(f" {choice}", add_special_tokens=False).input_ids for choice in document["choices"]]
    context = tokenizer(document["question"], add_special_tokens=False).input_ids
    return Prompt(tuple(context), tuple(map(tuple, options)))


def forced(expert: int, items: int) -> Mixture:
    """All weight on one expert in every routed layer."""
    weights = torch.zeros(items, len(ROUTED), TOP_K)
    weights[..., 0] = 1
    indices = torch.full(weights.shape, expert)
    indices[..., 1] = (expert + 1) % specialists.EXPERTS
    return Mixture(weights, indices)


def total_variation(one: Tensor, other: Tensor) -> np.ndarray:
    """Mean over layers of half the L1 distance, between all pathways of two sets [items, layers, experts]."""
    return (0.5 * (one[:, None] - other[None]).abs().sum(dim=-1)).mean(dim=-1).numpy()


def measure(folder: Path, data: str | None, limit: int, output: Path) -> None:
    """Write the three tables for the checkpoint in `folder`; they grow as phrasings are done."""
    model = Measured(folder)
    experts, criteria, spread = [], [], []
    for phrasing in ("D", "A"):
        right: dict[str, dict[str, np.ndarray]] = {}
        pathways: dict[str, Tensor] = {}
        for skill in RULES:
            documents = generate.documents(skill, "test", *generate.asked_in(skill, phrasing))[:limit]
            right[skill], pathways[skill] = model.right(documents)
            log.info("%s %s: %s", skill, phrasing, _line(right[skill]))
            experts += [[skill, phrasing, name, *_accuracy(values)] for name, values in right[skill].items()]
            criteria += _criteria(skill, phrasing, right[skill])
        own = np.concatenate([right[skill][skill] for skill in RULES])
        routed = np.concatenate([right[skill]["routed"] for skill in RULES])
        criteria.append(_difference("all skills", phrasing, "right expert − routed", own, routed))
        spread += _spread(phrasing, pathways)
        _write(output, experts, criteria, spread)
    if data is not None:
        correct = model.stock_right("arc_easy", data, STOCK_ITEMS)
        experts += [["arc_easy", "stock", name, *_accuracy(values)] for name, values in correct.items()]
        routed, dense = correct["routed"], correct["dense"]
        criteria.append(_difference("arc_easy", "stock", "routed − dense", routed, dense))
        _write(output, experts, criteria, spread)


def _criteria(skill: str, phrasing: str, right: dict[str, np.ndarray]) -> list[list[Any]]:
    others = [name for name in DOMAINS if name != skill]
    best = max(others, key=lambda name: right[name].mean())
    return [
        _difference(skill, phrasing, "own expert − dense", right[skill], right["dense"]),
        _difference(skill, phrasing, f"own expert − best other ({best})", right[skill], right[best]),
        _difference(skill, phrasing, "right expert − routed", right[skill], right["routed"]),
    ]


def _difference(skill: str, phrasing: str, name: str, one: np.ndarray, other: np.ndarray) -> list[Any]:
    interval = paired_bootstrap(one.astype(float), other.astype(float))
    value = one.mean() - other.mean()
    return [skill, phrasing, name, len(one), _round(value), _round(interval.low), _round(interval.high)]


def _spread(phrasing: str, pathways: dict[str, Tensor]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    within, same_wording, across = [], [], []
    for skill, own in pathways.items():
        within.append(_pairs(total_variation(own, own)))
        rows.append([phrasing, f"within {skill}", "mean", _round(within[-1])])
        wordings = len(generate.asked_in(skill, phrasing))
        for wording in range(wordings):
            same_wording.append(_pairs(total_variation(own[wording::wordings], own[wording::wordings])))
        across += [total_variation(own, other).mean() for name, other in pathways.items() if name != skill]
        hits = (own.argmax(dim=-1) == DOMAINS.index(skill)).float().mean(dim=0)
        rows += [
            [phrasing, f"right expert first, {skill}", layer, _round(hit)]
            for layer, hit in zip(ROUTED, hits.tolist(), strict=True)
        ]
    for name, values in {
        "within a skill": within,
        "within a wording of a skill": same_wording,
        "across skills": across,
    }.items():
        rows.append([phrasing, name, "mean", _round(np.mean(values))])
    return rows


def _pairs(distances: np.ndarray) -> float:
    """The mean over pairs of two different items."""
    return float(distances[~np.eye(len(distances), dtype=bool)].mean())


def _accuracy(right: np.ndarray) -> list[Any]:
    interval = wilson(float(right.sum()), len(right))
    return [len(right), _round(right.mean()), _round(interval.low), _round(interval.high)]


def _round(value: Any) -> float:
    return round(float(value), 4)


def _line(right: dict[str, np.ndarray]) -> str:
    return " ".join(f"{name} {values.mean():.2f}" for name, values in right.items())


def _write(output: Path, *tables: list[list[Any]]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for (name, head), rows in zip(TABLES.items(), tables, strict=True):
        with (output / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(head)
            writer.writerows(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m c3po_bench.models.specialists.measure", description=__doc__
    )
    parser.add_argument(
        "--data", default=None, help="folder of local task data, for ARC-Easy; none leaves it out"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--limit", type=int, default=200, help="items of each skill and phrasing")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    return exit_status(lambda: measure(specialists.checkpoint(), options.data, options.limit, options.output))


if __name__ == "__main__":
    sys.exit(main())
