"""The typed schema of everything under conf/. Strict: an unknown key or a wrong type is an error.

Sections live beside the code that reads them (rewiring/config.py, feedback/config.py, tracking/__init__.py);
this module puts them together. It imports nothing heavy.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from c3po_bench.feedback.config import FeedbackConfig
from c3po_bench.options import option
from c3po_bench.rewiring.config import EmbedderConfig, MethodConfig, ReferencesConfig
from c3po_bench.tracking import TrackingConfig


@dataclass
class BackendConfig:
    """Which backend builds the arms."""

    name: str = option("rewiring", "rewiring, feedback or both")


@dataclass
class ModelConfig:
    """The model all arms share."""

    name: str = option("smolmoe", "short name, shown in tables")
    kind: str = option(
        "smolmoe",
        "smolmoe, smollm or planted (embedded), tiny (random, for tests) or hf (any Hugging Face folder or id)",
    )
    path: str | None = option(None, "folder or hub id, for kind=hf; the family, for kind=tiny")
    revision: str | None = option(None, "commit or tag of a hub model; pin it")
    dtype: str = option("float32", "float32, bfloat16 or float16")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    experts: str = option("auto", "experts implementation: auto, eager, grouped_mm or batched_mm")


@dataclass
class DataConfig:
    """Where the data of stock tasks comes from."""

    root: str | None = option(None, "folder with local copies of stock data; null = the hub")


@dataclass
class ScoringConfig:
    """The one scoring rule that all arms share."""

    rule: str = option("cloze", "cloze (stock), letters, or length_normalized")
    num_fewshot: int = option(0, "fixed examples before each question")
    permute_options: bool = option(False, "shuffle the order of the options (a control)")


@dataclass
class Config:
    """A composed experiment."""

    name: str = option("custom", "name of the experiment")
    backend: BackendConfig = field(default_factory=BackendConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    arms: list[str] = option(["base"], "arms to run; base is always first")
    arm: dict[str, dict[str, Any]] = option({}, "options of single arms: +arm.NAME.OPTION=value")
    tasks: list[str] = option([], "lm-evaluation-harness tasks to score")
    data: DataConfig = field(default_factory=DataConfig)
    references: ReferencesConfig = field(default_factory=ReferencesConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    engine: str = option("suffix", "suffix (fast) or naive (whole forward passes: the definition)")
    batch_size: int = option(32, "items scored or optimized at once; changes speed, not results")
    bank_gb: float = option(
        8.0, "most disk for what the engine keeps of references (keys, values); beyond it they are read again"
    )
    limit: int | None = option(None, "first N items of each task; null = all")
    shard: str | None = option(None, "i/n: only the i-th of n shares of the items (1-based)")
    seed: int = option(0, "seed of everything that draws")
    threads: int | None = option(None, "torch threads; null = as many as torch likes")
    results_dir: str = option("outputs/${name}", "the store of this experiment")
    log_level: str = option("info", "debug, info, warning or error")
    plugins: list[str] = option([], "modules to import first, e.g. with your own surrogates")


RENAMED = {"sweep=layers": "sweep=layer_table"}
"""Former keys, and former files of a group, with what they are called now: the answer to an override that names one."""


def conf_dir() -> Path:
    """The configuration folder: inside an installed package, else beside it in the source tree."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def register() -> None:
    """Put the schema into Hydra's config store, where conf/config.yaml finds it as `_schema`."""
    from hydra.core.config_store import ConfigStore

    # conf/hydra/launcher/joblib.yaml is meant to be checked against the plugin's own schema of that name
    warnings.filterwarnings("ignore", message=r"(?s).*validated against ConfigStore schema")
    ConfigStore.instance().store(name="_schema", node=Config)
