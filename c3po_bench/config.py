"""The typed schema of everything under conf/. Strict: an unknown key or a wrong type is an error.

Sections live beside the code that reads them (rewiring/config.py, feedback/config.py, tracking/__init__.py);
this module puts them together. It imports nothing heavy.
"""

import warnings
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from c3po_bench.errors import UserError, unknown
from c3po_bench.feedback.config import FeedbackConfig
from c3po_bench.options import check_number, keys, option
from c3po_bench.rewiring.config import EmbedderConfig, MethodConfig, ReferencesConfig

MODES = ("disabled", "offline", "online")
"""What `tracking.mode` may be."""
MOST_THREADS = 1024  # torch takes any number, and crashes where the machine has no room for so many threads


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
        "smolmoe, specialists, smollm or planted (embedded), tiny (random, for tests) or hf (any Hugging Face folder or id)",
    )
    path: str | None = option(None, "folder or hub id, for kind=hf; the family, for kind=tiny")
    revision: str | None = option(None, "commit or tag of a hub model; pin it")
    dtype: str = option("float32", "float32, bfloat16 or float16")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    experts_implementation: str = option(
        "auto", "how transformers computes experts: auto, eager, grouped_mm or batched_mm"
    )


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
class TrackingConfig:
    """Where W&B runs go (conf/tracking). The store is the truth; W&B is a view of it."""

    mode: str = option("offline", "disabled, offline (files to sync later) or online")
    project: str = option("c3po-bench", "W&B project")
    entity: str | None = option(None, "W&B user or team; null = your default")
    time_limit: float = option(
        60.0, "seconds that publishing may take at the end of a run; what is left, publish does later"
    )


@dataclass
class Config:
    """A composed experiment."""

    name: str = option("custom", "name of the experiment")
    backend: BackendConfig = field(default_factory=BackendConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    arms: list[str] = option(["base"], "arms to run; base is always first")
    arm_options: dict[str, dict[str, Any]] = option(
        {}, "options of single arms: arm_options.NAME.OPTION=value"
    )
    tasks: list[str] = option([], "lm-evaluation-harness tasks to score")
    data: DataConfig = field(default_factory=DataConfig)
    references: ReferencesConfig = field(default_factory=ReferencesConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    engine: str = option("suffix", "suffix (fast) or naive (whole forward passes: the definition)")
    batch_size: int = option(32, "items scored or optimized at once; changes speed, not results", least=1)
    reference_cache_gb: float = option(
        8.0,
        "most disk for what the engine keeps of references (keys, values); beyond it they are read again",
        least=0,
    )
    limit: int | None = option(None, "first N items of each task; null = all", least=1)
    shard: str | None = option(None, "i/n: only the i-th of n shares of the items (1-based)")
    seed: int = option(0, "seed of everything that draws", least=0)
    threads: int | None = option(
        None, "torch threads; null = as many as torch likes", least=1, most=MOST_THREADS
    )
    results_dir: str = option("outputs/${name}", "the store of this experiment")
    log_level: str = option("info", "debug, info, warning or error")
    plugins: list[str] = option([], "modules to import first, e.g. with your own surrogates")


KEYS = dict(keys(Config()))
"""Every key of the schema by its dotted name, sections among them."""
_BOUNDS = {key: bounds for key, entry in KEYS.items() if (bounds := entry.metadata.get("bounds"))}
RENAMED = {
    "bank_gb": "reference_cache_gb",
    "model.experts": "model.experts_implementation",
    "method.mass": "method.preserve_total_weight (false for model, true for preserved)",
    "sweep=mass": "sweep=total_weight",
    "feedback.answers.batch": "feedback.answers.batch_size",
    "feedback.train.batch": "feedback.train.batch_size",
    "feedback.train.constraint_batch": "feedback.train.constraint_batch_size",
    "feedback.train.accumulation": "feedback.train.gradient_accumulation_steps",
    "feedback.train.warmup": "feedback.train.warmup_ratio",
    "arm": "arm_options",
    "sweep=layers": "sweep=layer_table",
}
"""Former keys, and former files of a group, with what they are called now: the answer to an override that names one."""


def check_ranges(cfg: Config) -> None:
    """Refuse numbers out of their bounds, a name that is a path, and an unknown way of tracking.

    Raises:
        UserError: naming the key, its value and what it may be.
    """
    for key, bounds in _BOUNDS.items():
        check_number(key, attrgetter(key)(cfg), **bounds)
    if cfg.seed >= 2**32:
        raise UserError(f"seed={cfg.seed}: must be below 2**32, numpy's largest")
    if "/" in cfg.name or "\\" in cfg.name or cfg.name in ("", ".", ".."):
        raise UserError(f"name={cfg.name}: is a name, not a path; results_dir says where results go")
    if cfg.tracking.mode not in MODES:
        raise unknown("tracking.mode", cfg.tracking.mode, MODES)


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
