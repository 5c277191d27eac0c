"""Options of tracking (conf/tracking)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TrackingConfig:
    """Where Weights & Biases runs go. The store is the truth; W&B is a view of it."""

    mode: str = field(
        default="offline", metadata={"help": "disabled, offline (files to sync later) or online"}
    )
    project: str = field(default="c3po-bench", metadata={"help": "W&B project"})
    entity: str | None = field(default=None, metadata={"help": "W&B user or team; null = your default"})
    time_limit: float = field(
        default=60.0,
        metadata={
            "help": "seconds that publishing may take at the end of a run; what is left, publish does later"
        },
    )
