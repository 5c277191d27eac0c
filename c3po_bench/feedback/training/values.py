"""What the values of a training may be: refused in one line before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, get_args, get_origin, get_type_hints

from c3po_bench.errors import UserError, unknown
from c3po_bench.feedback.config import FeedbackConfig, LoraConfig, TrainConfig
from c3po_bench.options import check_least

LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)
CONSTRAINTS = ("nll", "kl")
PRECISIONS = ("auto", "float32", "bfloat16")
SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
"""Transformers' schedules that need no further number and no evaluation."""

LEAST = {
    "lambda_near": 0,
    "lambda_out": 0,
    "lora.rank": 1,
    "train.lr": 0,
    "train.sft_lr": 0,
    "train.warmup": 0,
    "train.steps": 0,
    "train.sft_steps": 0,
    "train.eval_every": 0,
    "train.batch": 1,
    "train.constraint_batch": 1,
    "train.accumulation": 1,
    "train.max_length": 1,
}
_ABOVE = ("beta", "lora.alpha", "train.epochs")
_SHARES = ("test_share", "validation_share", "lora.dropout")
_WORDS = {
    float: ("a number", "numbers"),
    int: ("a whole number", "whole numbers"),
    str: ("a name", "names"),
    bool: ("true or false",),
}


def check_values(cfg: FeedbackConfig) -> None:
    """`UserError` for choices and numbers that no training can use."""
    for loss in cfg.loss_type:
        if loss not in LOSSES:
            raise unknown("feedback.loss_type", loss, LOSSES)
    for name, value, choices in (
        ("constraint", cfg.constraint, CONSTRAINTS),
        ("train.precision", cfg.train.precision, PRECISIONS),
        ("train.scheduler", cfg.train.scheduler, SCHEDULERS),
    ):
        if value not in choices:
            raise unknown(f"feedback.{name}", value, choices)
    check_least(cfg, LEAST, "feedback.")
    for name in _SHARES:
        if not 0 <= (value := attrgetter(name)(cfg)) < 1:
            raise UserError(f"feedback.{name}={value}: a share is at least 0 and below 1")
    for name in _ABOVE:
        if not 0 < (value := attrgetter(name)(cfg)) < float("inf"):
            raise UserError(f"feedback.{name}={value}: must be above 0")


def check_types(arm: str, options: Mapping[str, Any]) -> None:
    """`UserError` for an arm's option that is no value of its kind: Hydra looks at those of sections only."""
    hints = {
        name: hint
        for kind in (FeedbackConfig, TrainConfig, LoraConfig)
        for name, hint in get_type_hints(kind).items()
    }
    for key, value in options.items():
        several = get_origin(hints[key]) is list
        kind = get_args(hints[key])[0] if several else hints[key]
        listed = isinstance(value, list | tuple)
        if listed != several or not all(_is(v, kind) for v in (value if listed else [value])):
            words = (
                f"a list of {_WORDS[kind][1]}, such as [{value}]"
                if several and not listed
                else _WORDS[kind][several]
            )
            raise UserError(f"arm.{arm}.{key}={value}: must be {words}")


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)
