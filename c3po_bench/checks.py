"""Ranges of the values that every experiment has: refused in one line before anything is loaded."""

from __future__ import annotations

import math
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
    "feedback.n_in": 1,
    "feedback.n_near": 1,
    "feedback.n_out": 1,
}


def check_ranges(cfg: Config) -> None:
    """Numbers that are too small or no numbers, a name that is a path, an unknown way of tracking.

    Raises:
        UserError: naming the key, its value and what it may be.
    """
    for key, least in LEAST.items():
        value: Any = cfg
        for part in key.split("."):
            value = getattr(value, part)
        if value is not None and not (math.isfinite(value) and value >= least):
            raise UserError(f"{key}={value}: must be a number of at least {least}")
    if "/" in cfg.name or "\\" in cfg.name:
        raise UserError(f"name={cfg.name}: is a name, not a path; results_dir says where results go")
    if cfg.tracking.mode not in MODES:
        raise unknown("tracking.mode", cfg.tracking.mode, MODES)
