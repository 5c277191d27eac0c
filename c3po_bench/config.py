"""The typed schema of everything under conf/. Strict: an unknown key or a wrong type is an error.

Sections live beside the code that reads them (rewiring/config.py, feedback/config.py, tracking/config.py);
this module puts them together. It imports nothing heavy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from c3po_bench.feedback.config import FeedbackConfig
from c3po_bench.rewiring.config import EmbedderConfig, MethodConfig, ReferencesConfig
from c3po_bench.tracking.config import TrackingConfig

BACKENDS = ("rewiring", "feedback")


@dataclass
class BackendConfig:
    """Which backend builds the arms."""

    name: str = field(default="rewiring", metadata={"help": "rewiring or feedback"})


@dataclass
class ModelConfig:
    """The model all arms share."""

    name: str = field(default="smolmoe", metadata={"help": "short name, shown in tables"})
    kind: str = field(
        default="smolmoe",
        metadata={"help": "smolmoe, smollm or planted (embedded), tiny (random, for tests) or hf (any Hugging Face folder or id)"},
    )
    path: str | None = field(default=None, metadata={"help": "folder or hub id, for kind=hf; the family, for kind=tiny"})
    revision: str | None = field(default=None, metadata={"help": "commit or tag of a hub model; pin it"})
    dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1, mps"})
    experts: str = field(default="auto", metadata={"help": "experts implementation: auto, eager, grouped_mm or batched_mm"})


@dataclass
class DataConfig:
    """Where the data of stock tasks comes from."""

    root: str | None = field(default=None, metadata={"help": "folder with local copies of stock data; null = the hub"})


@dataclass
class ScoringConfig:
    """The one scoring rule that all arms share."""

    rule: str = field(default="cloze", metadata={"help": "cloze (stock), letters, or length_normalized"})
    num_fewshot: int = field(default=0, metadata={"help": "fixed examples before each question"})
    permute_options: bool = field(default=False, metadata={"help": "shuffle the order of the options (a control)"})


@dataclass
class Config:
    """A composed experiment."""

    name: str = field(default="custom", metadata={"help": "name of the experiment"})
    backend: BackendConfig = field(default_factory=BackendConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    arms: list[str] = field(default_factory=lambda: ["base"], metadata={"help": "arms to run; base is always first"})
    arm: dict[str, dict[str, Any]] = field(
        default_factory=dict, metadata={"help": "options of single arms: arm.NAME.OPTION=value"}
    )
    tasks: list[str] = field(default_factory=list, metadata={"help": "lm-evaluation-harness tasks to score"})
    data: DataConfig = field(default_factory=DataConfig)
    references: ReferencesConfig = field(default_factory=ReferencesConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    engine: str = field(default="suffix", metadata={"help": "suffix (fast) or naive (whole forward passes: the definition)"})
    batch_size: int = field(default=16, metadata={"help": "items scored or optimized at once; changes speed, not results"})
    limit: int | None = field(default=None, metadata={"help": "first N items of each task; null = all"})
    shard: str | None = field(default=None, metadata={"help": "i/n: only the i-th of n shares of the items (1-based)"})
    seed: int = field(default=0, metadata={"help": "seed of everything that draws"})
    threads: int | None = field(default=None, metadata={"help": "torch threads; null = as many as torch likes"})
    results_dir: str = field(default="outputs/${name}", metadata={"help": "the store of this experiment"})
    log_level: str = field(default="info", metadata={"help": "debug, info, warning or error"})
    plugins: list[str] = field(default_factory=list, metadata={"help": "modules to import first, e.g. with your own surrogates"})


def register() -> None:
    """Put the schema into Hydra's config store, where conf/config.yaml finds it as `_schema`."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="_schema", node=Config)
