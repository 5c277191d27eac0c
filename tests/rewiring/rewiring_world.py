"""Prompts and engine pairs that several tests of the rewiring room use."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from c3po_bench.config import Config
from c3po_bench.contract import CHOICES, TEXT, Item
from c3po_bench.models.routing import family_of
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.states import Prompt
from c3po_bench.tasks.taskset import TaskSet


def reference(
    number: int, question: str, pairs: tuple[tuple[str, str], ...], gold: int | None = None
) -> Item:
    """A multiple-choice item that no task made."""
    return Item(("made_up", number), CHOICES, str(number), question, pairs, len(pairs), gold=gold)


def written_item(prompt: str, until: Sequence[str] = (), tokens: int = 12) -> Item:
    """An item whose answer is written, at most `tokens` long."""
    decoding = {"until": list(until), "max_gen_toks": tokens, "do_sample": False}
    return Item(("t", 0), TEXT, "k", "what is it?", prompt=prompt, decoding=decoding)


FAMILIES = ["olmoe", "qwen2_moe", "qwen3_moe", "mixtral", "gpt_oss", "granitemoe", "deepseek_v2"]


def make_prompts(count: int, seed: int = 0, answers: int = 3) -> list[Prompt]:
    """Prompts of unlike lengths (one of a single token) with answers of one to five tokens."""
    rng = random.Random(seed)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, 98) for _ in range(n))

    lengths = [1, *[rng.randrange(2, 24) for _ in range(count - 1)]]
    return [
        Prompt(tokens(n), tuple(tokens(1 + (i + a) % 5) for a in range(answers)))
        for i, n in enumerate(lengths)
    ]


def all_rows(prompts: list[Prompt]) -> list[tuple[int, int]]:
    """Every (prompt, answer) pair."""
    return [(i, c) for i, p in enumerate(prompts) for c in range(len(p.continuations))]


def both_engines(model: Any, layers: list[int] | None = None, position: str = "last") -> tuple[Any, Any]:
    """The naive and the suffix engine over the last three routed layers, or `layers`."""
    chosen = layers or list(family_of(model).layers)[-3:]
    return load_engine("naive", model, chosen, position), load_engine("suffix", model, chosen, position)


def tasks_of(cfg: Config) -> TaskSet:
    """The tasks of an experiment, as the harness loads them."""
    return TaskSet(
        cfg.tasks,
        rule=cfg.scoring.rule,
        num_fewshot=cfg.scoring.num_fewshot,
        seed=cfg.seed,
        permute_options=cfg.scoring.permute_options,
    )
