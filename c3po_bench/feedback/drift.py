"""Drift: how far a policy has moved from the base model, along the base model's own answers.

For an answer y of the base model to prompt x: the mean over its tokens of KL(base(. | x, y_<t) || policy(. |
x', y_<t)), in nats. x' is the prompt as the policy sees it (with the feedback, for in-context arms). 0 means
unchanged; rules cannot see it.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from c3po_bench.feedback.training.rows import Row, labelled_logits, pad_rows, token_kl

Context = Callable[[], contextlib.AbstractContextManager[Any]]


def token_drift(
    model: Any,
    base_rows: Sequence[Row],
    policy_rows: Sequence[Row],
    pad: int,
    as_base: Context,
    as_policy: Context,
) -> list[float | None]:
    """How far the policy has moved from the base model along each answer.

    Args:
        model: with the policy's adapter, if it has one.
        base_rows: prompts as the base model sees them, with its answers.
        policy_rows: prompts as the policy sees them, with the same answers.
        pad: a token id.
        as_base: makes the model the base model within a block.
        as_policy: makes it the policy.

    Returns:
        The drift of each row, in nats a token, at least 0; None for an empty answer.
    """
    kept = [i for i, row in enumerate(base_rows) if row.completion_ids]
    drifts: list[float | None] = [None] * len(base_rows)
    if not kept:
        return drifts
    with torch.inference_mode():
        with as_base():
            base = _answer_logits(model, [base_rows[i] for i in kept], pad)
        with as_policy():
            policy = _answer_logits(model, [policy_rows[i] for i in kept], pad)
        values = token_kl(base, policy)
    for i, tokens in zip(kept, values.split([len(base_rows[i].completion_ids) for i in kept]), strict=True):
        drifts[i] = max(0.0, float(tokens.mean()))
    return drifts


def _answer_logits(model: Any, rows: Sequence[Row], pad: int) -> torch.Tensor:
    """The logits of every answer token, row by row [tokens, vocabulary]."""
    ids, labels, attention = (tensor.to(model.device) for tensor in pad_rows(rows, pad, None))
    return labelled_logits(model, ids, labels, attention_mask=attention)[0]
