"""The dataset behind `planted.yaml`."""

from __future__ import annotations

from typing import Any


def load(**_: Any) -> dict[str, Any]:
    """Train and test splits as `datasets.Dataset`."""
    from datasets import Dataset

    from c3po_bench.models.planted.items import SIZES, documents

    return {split: Dataset.from_list(documents(split)) for split in SIZES}
