"""Measures `model=specialists` on held-out items: `python -m c3po_bench.models.specialists.measure --data DIR --output DIR`.

Some fifteen minutes on one core. Writes three tables:

- `experts.csv`: for each skill in A and D the accuracy of the dense model, of the model as it routes, and of each expert
  forced at the last prompt token of all five routed layers; Wilson intervals.
- `criteria.csv`: paired differences with bootstrap intervals (own expert against the dense model and against the best other
  one, right expert forced against routed, ARC-Easy against the dense model).
- `spread.csv`: total variation between two items' own pathways, within a skill and across skills, and how often the right
  expert has the largest weight, by layer.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from c3po_bench.analysis.statistics import paired_bootstrap, wilson
from c3po_bench.errors import exit_status
from c3po_bench.models.embedded import smollm, specialists
from c3po_bench.models.embedded.specialists import DOMAINS, ROUTED, RULES, TOP_K
from c3po_bench.rewiring.engines.suffix import SuffixEngine
from c3po_bench.rewiring.pathway import Mixture
from c3po_bench.rewiring.states import Prompt
from c3po_bench.tasks.skills import generate
from c3po_bench.tasks.taskset import TaskSet

log = logging.getLogger(__name__)
CHUNK = 50
EXPERTS_HEAD = ["skill", "phrasing", "answered_by", "items", "accuracy", "low", "high"]
CRITERIA_HEAD = ["skill", "phrasing", "difference", "items", "value", "low", "high"]
SPREAD_HEAD = ["phrasing", "of", "layer", "value"]


class Measured:
    """The finished model under forced and under its own routing, beside the dense one."""

    def __init__(self, folder: Path) -> None:
        dense_folder = smollm.checkpoint()
        read: Any = AutoModelForCausalLM.from_pretrained
        self.dense = read(dense_folder, local_files_only=True).eval()
        self.engine = SuffixEngine(read(folder, local_files_only=True).eval(), list(ROUTED))
        self.tokenizer = AutoTokenizer.from_pretrained(dense_folder, local_files_only=True)

    def prompt(self, document: dict[str, Any]) -> Prompt:
        """A document of `skills` in tokens; its options are single tokens."""
        encode = self.tokenizer
        options = [encode(f" {choice}", add_special_tokens=False).input_ids for choice in document["choices"]]
        return Prompt(
            tuple(encode(document["question"], add_special_tokens=False).input_ids),
            tuple(map(tuple, options)),
        )

    @torch.no_grad()
    def right(self, documents: Sequence[dict[str, Any]]) -> tuple[dict[str, np.ndarray], Tensor]:
        """Whether each document is answered right, by the way of answering; and the model's own pathways."""
        found: dict[str, list[Tensor]] = {name: [] for name in ("dense", "routed", *DOMAINS)}
        pathways = []
        for start in range(0, len(documents), CHUNK):
            some = documents[start : start + CHUNK]
            prompts = [self.prompt(document) for document in some]
            gold = torch.tensor([document["answer"] for document in some])
            found["dense"].append(self._dense(prompts) == gold)
            states = self.engine.read(prompts)
            pathways.append(self.engine.original_pathways(states))
            rows = [(i, j) for i, prompt in enumerate(prompts) for j in range(len(prompt.continuations))]
            owner = torch.tensor([i for i, _ in rows])
            batch = self.engine.batch(states, rows)
            for name in ("routed", *DOMAINS):
                mixture = None if name == "routed" else forced(DOMAINS.index(name), len(some))
                scores, _ = batch.score(mixture, owner, greedy=False)
                best = torch.stack([scores[owner == i].argmax() for i in range(len(some))])
                found[name].append(best == gold)
            self.engine.forget()
        return {name: torch.cat(parts).numpy() for name, parts in found.items()}, torch.cat(pathways)

    def _dense(self, prompts: Sequence[Prompt]) -> Tensor:
        best = []
        for prompt in prompts:
            logits = self.dense(torch.tensor([prompt.context])).logits[0, -1]
            best.append(logits[torch.tensor([option[0] for option in prompt.continuations])].argmax())
        return torch.stack(best)


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
    """Write the three tables for the checkpoint in `folder`."""
    model = Measured(folder)
    experts, criteria, spread = [], [], []
    for phrasing in ("A", "D"):
        right: dict[str, dict[str, np.ndarray]] = {}
        pathways: dict[str, Tensor] = {}
        for skill in RULES:
            documents = generate.documents(skill, "test", *generate.asked_in(skill, phrasing))[:limit]
            right[skill], pathways[skill] = model.right(documents)
            log.info("%s %s: %s", skill, phrasing, _line(right[skill]))
            for name, values in right[skill].items():
                low, high = _interval(values)
                experts.append([skill, phrasing, name, len(values), _round(values.mean()), low, high])
            criteria += _criteria(skill, phrasing, right[skill])
        own = np.concatenate([right[skill][skill] for skill in RULES])
        routed = np.concatenate([right[skill]["routed"] for skill in RULES])
        criteria.append(_difference("all skills", phrasing, "right expert − routed", own, routed))
        spread += _spread(phrasing, pathways)
    criteria += _stock_accuracy(folder, data, experts)
    output.mkdir(parents=True, exist_ok=True)
    _write(output / "experts.csv", EXPERTS_HEAD, experts)
    _write(output / "criteria.csv", CRITERIA_HEAD, criteria)
    _write(output / "spread.csv", SPREAD_HEAD, spread)


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
    within, across = [], []
    for skill, own in pathways.items():
        distances = total_variation(own, own)
        within.append(distances[~np.eye(len(own), dtype=bool)].mean())
        rows.append([phrasing, f"within {skill}", "mean", _round(within[-1])])
        across += [total_variation(own, other).mean() for name, other in pathways.items() if name != skill]
        hits = (own.argmax(dim=-1) == DOMAINS.index(skill)).float().mean(dim=0)
        rows += [
            [phrasing, f"right expert first, {skill}", layer, _round(hit)]
            for layer, hit in zip(ROUTED, hits.tolist(), strict=True)
        ]
    rows.append([phrasing, "within a skill", "mean", _round(np.mean(within))])
    rows.append([phrasing, "across skills", "mean", _round(np.mean(across))])
    return rows


def _stock_accuracy(
    folder: Path, data: str | None, experts: list[list[Any]], limit: int = 400
) -> list[list[Any]]:
    """ARC-Easy under stock lm-eval, the model as it routes beside the dense one."""
    if data is None:
        return []
    scores: dict[str, np.ndarray] = {}
    tasks = TaskSet(["arc_easy"], data_root=data)
    for name, place in (("dense", smollm.checkpoint()), ("routed", folder)):
        read: Any = AutoModelForCausalLM.from_pretrained
        lm: Any = HFLM(
            pretrained=read(place, local_files_only=True).eval(),
            tokenizer=AutoTokenizer.from_pretrained(place),
            batch_size=16,
        )
        found: Any = lm_eval.simple_evaluate(
            model=lm, tasks=tasks.specs, limit=limit, bootstrap_iters=0, log_samples=True
        )
        samples = sorted(found["samples"]["arc_easy"], key=lambda row: row["doc_id"])
        scores[name] = np.array([row["acc"] for row in samples])
        low, high = _interval(scores[name])
        experts.append(["arc_easy", "stock", name, len(samples), _round(scores[name].mean()), low, high])
    return [_difference("arc_easy", "stock", "routed − dense", scores["routed"], scores["dense"])]


def _interval(right: np.ndarray) -> tuple[float, float]:
    interval = wilson(float(right.sum()), len(right))
    return _round(interval.low), _round(interval.high)


def _round(value: Any) -> float:
    return round(float(value), 4)


def _line(right: dict[str, np.ndarray]) -> str:
    return " ".join(f"{name} {values.mean():.2f}" for name, values in right.items())


def _write(path: Path, head: list[str], rows: Iterable[list[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
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
