"""Ranges of the values that every experiment has: refused in one line before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from c3po_bench.errors import UserError, unknown
from c3po_bench.tracking import MODES

if TYPE_CHECKING:
    from c3po_bench.config import Config

LEAST = {
    "limit": 1,
    "batch_size": 1,
    "threads": 1,
    "seed": 0,
    "references.limit": 1,
    "bank_gb": 0,
    "embedder.batch_size": 1,
    "method.steps": 0,
    "method.neighbors.k": 1,
    "method.neighbors.max_similarity": -1,
    "method.neighbors.epsilon": 0,
    "method.neighbors.epsilon_most": 1,
    "method.learning_rate": 0,
    "method.final_learning_rate": 0,
    "feedback.n_categories": 1,
    "feedback.n_in": 1,
    "feedback.n_near": 1,
    "feedback.n_out": 1,
    "feedback.answers.max_new_tokens": 1,
    "feedback.answers.temperature": 0,
    "feedback.answers.batch": 1,
}
_CHATS = ("generator", "reviser.writer", "judge.chat")
LEAST |= {
    f"feedback.{chat}.{key}": least
    for chat in _CHATS
    for key, least in {
        "temperature": 0,
        "max_tokens": 1,
        "retries": 0,
        "concurrency": 1,
    }.items()
}
MOST_THREADS = 1024  # torch takes what it is told, and crashes where the machine has no room for so many
ABOVE = (
    "feedback.answers.top_p",
    *(f"feedback.{chat}.{key}" for chat in _CHATS for key in ("top_p", "timeout")),
)


def check_least(cfg: Any, least: Mapping[str, float], section: str = "") -> None:
    """`UserError` for a number of `section` that is below its least value or no number."""
    for key, bound in least.items():
        value = attrgetter(key)(cfg)
        if value is not None and not (math.isfinite(value) and value >= bound):
            raise UserError(f"{section}{key}={value}: must be a number of at least {bound}")


def check_ranges(cfg: Config) -> None:
    """Numbers that are too small or no numbers, a name that is a path, an unknown way of tracking.

    Raises:
        UserError: naming the key, its value and what it may be.
    """
    check_least(cfg, LEAST)
    for key in ABOVE:
        value, most = attrgetter(key)(cfg), 1 if key.endswith("top_p") else math.inf
        if not (0 < value <= most and math.isfinite(value)):
            raise UserError(f"{key}={value}: must be above 0{' and at most 1' if most == 1 else ''}")
    if cfg.threads is not None and cfg.threads > MOST_THREADS:
        raise UserError(f"threads={cfg.threads}: must be at most {MOST_THREADS}")
    if cfg.seed >= 2**32:
        raise UserError(f"seed={cfg.seed}: must be below 2**32, numpy's largest")
    if "/" in cfg.name or "\\" in cfg.name or cfg.name in ("", ".", ".."):
        raise UserError(f"name={cfg.name}: is a name, not a path; results_dir says where results go")
    if cfg.tracking.mode not in MODES:
        raise unknown("tracking.mode", cfg.tracking.mode, MODES)
