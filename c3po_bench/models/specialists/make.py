"""Makes the weights of `model=specialists`.

`python -m c3po_bench.models.specialists.make --data DIR [--work DIR]`

About half an hour on one core. Three steps, each seeded:

1. For each domain the dense model reads its training questions once (`states`).
2. Each expert is trained alone on its domain, everything else frozen (`training.train_expert`).
3. The routers are trained with the experts frozen: on phrasing A of each rule, on the texts, and on earlier
   tokens.

Every finished expert is kept in the work folder: interrupted, the same command goes on with the next one.
`--data` is a folder with CommonsenseQA as JSON lines (`commonsense_qa/train.jsonl`).
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from c3po_bench.errors import UserError, exit_status
from c3po_bench.models import cache_dir
from c3po_bench.models.embedded import smollm
from c3po_bench.models.embedded.specialists import ROUTED, RULES, TEXTS, WEIGHTS
from c3po_bench.models.specialists.states import Question, Suffix
from c3po_bench.models.specialists.training import (
    RULE,
    SHORT,
    TEXT,
    Expert,
    Recipe,
    loaded,
    router_examples,
    shipped,
    train_expert,
    train_routers,
)
from c3po_bench.store.identity import content_hash
from c3po_bench.tasks.skills import generate

log = logging.getLogger(__name__)
SEED = 0
SHORTLY = ("first_place", "last_place", "giver", "receiver")
"""Skills that are learned soon: they take the short recipe, on the first `FEW` of their contents."""
FEW = 800
ROUTER_QUESTIONS = 60
"""Questions of each domain that routers are trained on."""
TEXT_QUESTIONS = 800
TEXT_FILES = {"commonsense": "commonsense_qa/train.jsonl"}
"""CommonsenseQA (Talmor et al. 2019, MIT), its training split only."""


@dataclass(frozen=True)
class Domain:
    """What an expert is trained on: pairs of prompt and answer.

    `routed` of them are in the phrasing that routers see. `candidates` are all answers of a rule.
    """

    name: str
    pairs: list[tuple[str, str]]
    routed: list[tuple[str, str]]
    recipe: Recipe
    candidates: list[str] | None = None


def rule_domain(skill: str, recipe: Recipe | None = None, limit: int | None = None) -> Domain:
    """A rule's training items in all trained phrasings; for routers those in phrasing A."""
    if recipe is None:
        recipe, limit = (SHORT, FEW) if skill in SHORTLY else (RULE, limit)
    documents = list(generate.training_documents(skill, limit))
    pairs = [(doc["question"], doc["choices"][doc["answer"]]) for doc in documents]
    routed = [pair for pair, doc in zip(pairs, documents, strict=True) if doc["phrasing"] == 0]
    return Domain(skill, pairs, routed, recipe, list(generate.FAMILIES[generate.SKILLS[skill]].answers))


def text_domain(name: str, data: Path, recipe: Recipe = TEXT) -> Domain:
    """Questions of a benchmark's training split with their right answers, as the stock ARC tasks ask them."""
    file = data / TEXT_FILES[name]
    if not file.is_file():
        raise UserError(f"no file {file}: --data needs {TEXT_FILES[name]} (JSON lines)")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    random.Random(f"{SEED}:{name}").shuffle(rows)
    pairs = []
    for row in rows[:TEXT_QUESTIONS]:
        answer = row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]
        pairs.append((f"Question: {row['question']}\nAnswer:", answer))
    return Domain(name, pairs, pairs, recipe)


def make(domains: Sequence[Domain], work: Path, *, seed: int = SEED) -> dict[str, Tensor]:
    """Train experts and routers.

    Args:
        domains: in the order of the experts' numbers.
        work: folder for finished experts; those of the same recipe and data are taken from it.
        seed: of everything that is drawn.

    Returns:
        The tensors that ship: experts in 8 bits with scales, routers in float32.
    """
    folder = smollm.checkpoint()
    dense: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    suffix = Suffix(dense, ROUTED)
    experts = [_expert(suffix, tokenizer, domain, work, seed) for domain in domains]
    tensors = shipped(experts)
    examples = []
    for domain, expert in zip(domains, loaded(tensors), strict=True):
        few = [_question(tokenizer, *pair) for pair in domain.routed[:ROUTER_QUESTIONS]]
        examples.append(router_examples(suffix, suffix.read(few, seed=seed), expert))
    log.info("routers: %d domains", len(examples))
    return tensors | {"router": train_routers(examples)}


def _expert(suffix: Suffix, tokenizer: Any, domain: Domain, work: Path, seed: int) -> Expert:
    recipe = [domain.pairs, domain.candidates, asdict(domain.recipe), suffix.routed, seed]
    file = work / f"{domain.name}-{content_hash(recipe, 12)}.safetensors"
    if not file.exists():
        started = time.perf_counter()
        kept = suffix.read([_question(tokenizer, *pair) for pair in domain.pairs], seed=seed)
        log.info("%s: read %d questions in %.0f s", domain.name, len(kept), time.perf_counter() - started)
        candidates = None
        if domain.candidates is not None:
            candidates = torch.tensor([answer_ids(tokenizer, answer)[0] for answer in domain.candidates])
        report: Callable[[int, float], None] = lambda step, loss: log.info(  # noqa: E731
            "%s: step %d, loss %.3f, %.0f s", domain.name, step, loss, time.perf_counter() - started
        )
        expert = train_expert(suffix, kept, domain.recipe, seed=seed, candidates=candidates, report=report)
        tensors = {
            f"{name}.{i}": pair[j]
            for i, pair in enumerate(expert)
            for j, name in enumerate(("gate_up", "down"))
        }
        work.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    tensors = load_file(file)
    return [(tensors[f"gate_up.{i}"], tensors[f"down.{i}"]) for i in range(len(suffix.routed))]


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """Tokens of an answer as it follows a prompt, after a blank."""
    return tokenizer(f" {answer}", add_special_tokens=False).input_ids


def _question(tokenizer: Any, prompt: str, answer: str) -> Question:
    return Question(tokenizer(prompt, add_special_tokens=False).input_ids, answer_ids(tokenizer, answer))


def main(argv: Sequence[str] | None = None) -> int:
    """The command: exit status 0, or 2 where data is missing."""
    parser = argparse.ArgumentParser(prog="python -m c3po_bench.models.specialists.make", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with CommonsenseQA")
    parser.add_argument("--work", type=Path, help="folder for finished experts (default: in the cache)")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="the file of weights to write")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    return exit_status(lambda: _write(options))


def _write(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    texts = [text_domain(name, options.data) for name in TEXTS]
    rules = [rule_domain(skill) for skill in RULES]
    tensors = make([*rules, *texts], options.work or cache_dir() / "specialists-work")
    save_file(tensors, options.output)
    log.info("%s: %.1f MB", options.output.name, options.output.stat().st_size / 1e6)


if __name__ == "__main__":
    sys.exit(main())
