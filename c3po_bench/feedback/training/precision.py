"""Which arithmetic a machine trains in."""

from __future__ import annotations

from c3po_bench.errors import unknown
from c3po_bench.feedback.training.values import PRECISIONS


def precision(name: str, device: str) -> str:
    """``auto`` is bfloat16 where the processor computes in it, float32 elsewhere."""
    import torch

    if name not in PRECISIONS:
        raise unknown("feedback.train.precision", name, PRECISIONS)
    if name != "auto":
        return name
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    able = device == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if able else "float32"
