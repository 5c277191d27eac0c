"""Drift: how far a policy has moved from the base model, along the base model's own answers.

For an answer y of the base model to prompt x: mean over its tokens of KL(base(. | x, y_<t) || policy(. | x',
y_<t)), in nats. x' is the prompt as the policy sees it (with the feedback, for in-context arms). 0 means
unchanged; rules cannot see it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from c3po_bench.feedback.training.heads import labelled_logits
from c3po_bench.feedback.training.rows import Row, pad_rows

Context = Callable[[], contextlib.AbstractContextManager[Any]]


def _log_probabilities(model: Any, rows: Sequence[Row], pad: int) -> torch.Tensor:
    """Log-probabilities at every answer token, row by row [tokens, vocabulary], float32."""
    ids, labels = pad_rows(rows, pad, None)
    lengths = torch.tensor([len(r.prompt_ids) + len(r.completion_ids) for r in rows])
    attention = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    device = model.device
    logits, _ = labelled_logits(model, ids.to(device), labels.to(device), attention_mask=attention.to(device))
    return logits.float().log_softmax(dim=-1)


def token_drift(
    model: Any,
    base_rows: Sequence[Row],
    policy_rows: Sequence[Row],
    pad: int,
    as_base: Context,
    as_policy: Context,
) -> list[float | None]:
    """The drift of each row; both lists hold the same completions. `as_base`, `as_policy` switch adapters.

    An empty answer has no drift (None). Values are in nats a token, at least 0.
    """
    kept = [i for i, row in enumerate(base_rows) if row.completion_ids]
    drifts: list[float | None] = [None] * len(base_rows)
    if not kept:
        return drifts
    with torch.inference_mode():
        with as_base():
            base = _log_probabilities(model, [base_rows[i] for i in kept], pad)
        with as_policy():
            policy = _log_probabilities(model, [policy_rows[i] for i in kept], pad)
        values = (base.exp() * (base - policy)).sum(dim=-1)
    start = 0
    for i in kept:
        count = len(base_rows[i].completion_ids)
        drifts[i] = max(0.0, float(values[start : start + count].mean()))
        start += count
    return drifts
