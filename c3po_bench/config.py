"""The typed schema of everything under conf/. Strict: an unknown key or a wrong type is an error.

Sections live beside the code that reads them (rewiring/config.py, feedback/config.py, tracking/__init__.py);
this module puts them together. It imports nothing heavy.
"""

import os
import sys
import warnings
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from c3po_bench.analysis.config import AnalysisConfig
from c3po_bench.errors import UserError, check_name, unknown
from c3po_bench.feedback.config import FeedbackConfig
from c3po_bench.masking import holding_secrets
from c3po_bench.options import A_DAY, MOST, check_finite, check_number, keys, option, seconds_of
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
        "smolmoe, specialists, specialists_damaged, smollm, planted or planted_sigmoid (embedded), "
        "tiny (random, for tests) or hf (any Hugging Face folder or id)",
    )
    path: str | None = option(None, "folder or hub id, for kind=hf; the family, for kind=tiny")
    revision: str | None = option(None, "commit or tag of a hub model; pin it")
    dtype: str = option("float32", "float32, bfloat16 or float16")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    experts_implementation: str = option(
        "auto", "how transformers computes experts: auto, eager, grouped_mm or batched_mm"
    )
    attn_implementation: str = option(
        "auto", "how transformers computes attention: auto, eager, sdpa, flash_attention_2, flex_attention"
    )
    device_map: str | None = option(
        None,
        "spread the weights over GPUs, memory and disk: auto, balanced, balanced_low_0, sequential or a JSON "
        "file of module to device; null: all on `device`",
    )
    offload_folder: str | None = option(
        None, "where weights on disk are kept, with device_map; null: a folder in the cache"
    )
    quantization: str = option(
        "none",
        "none, bnb4, bnb8, fp8, mxfp4_dequantized, torchao_int8, hqq4 or quanto8: what weights are made of on "
        "loading; most leave fused experts as they are, and a warning then says what is left",
    )
    published: dict[str, float] = option(
        {},
        "accuracy by task, 0 to 1, that is published for this model, zero-shot by log-likelihood; base is compared with it "
        "before other arms start, where it is scored so",
    )


@dataclass
class DataConfig:
    """Where the data of stock tasks comes from."""

    root: str | None = option(None, "folder with local copies of stock data; null = the hub")


@dataclass
class ScoringConfig:
    """The one scoring rule that all arms share."""

    rule: str = option("cloze", "cloze (stock), letters, or length_normalized")
    num_fewshot: int = option(0, "fixed examples before each question", least=0, most=1000)
    permute_options: bool = option(False, "shuffle the order of the options (a control)")


@dataclass
class TrackingConfig:
    """Where W&B runs go (conf/tracking). The store is the truth; W&B is a view of it."""

    mode: str = option("offline", "disabled, offline (files to sync later) or online")
    project: str = option("c3po-bench", "W&B project")
    entity: str | None = option(None, "W&B user or team; null = your default")
    time_limit: float = option(
        60.0,
        "seconds that publishing may take at the end of a run; what is left, publish does later",
        above=0,
        most=A_DAY,
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
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    engine: str = option("suffix", "suffix (fast) or naive (whole forward passes: the definition)")
    batch_size: int = option(
        32, "items scored or optimized at once; changes speed, not results", least=1, most=MOST
    )
    reference_cache_gb: float = option(
        8.0,
        "most disk for what the engine keeps of references (keys, values); beyond it they are read again",
        least=0,
    )
    limit: int | None = option(None, "first N items of each task; null = all", least=1, most=MOST)
    budget: str | None = option(
        None,
        "time that the experiment, or all cells of a sweep, may take here, like 90s, 10min or 2h: chooses `limit`, once",
    )
    shard: str | None = option(None, "i/n: only the i-th of n shares of the items (1-based)")
    seed: int = option(0, "seed of everything that draws", least=0)
    seeds: list[int] = option(
        [],
        "training seeds: arms that train run once for each, and stand in tables as one row; empty: `seed` alone",
    )
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
    check_secrets(cfg)
    for key in KEYS:
        check_finite(key, attrgetter(key)(cfg))
    for key, bounds in _BOUNDS.items():
        check_number(key, attrgetter(key)(cfg), **bounds)
    for task, accuracy in cfg.model.published.items():
        check_number(f"model.published.{task}", accuracy, least=0.0, most=1.0)
    if cfg.budget is not None:
        seconds_of("budget", cfg.budget)
    if cfg.seed >= 2**32:
        raise UserError(f"seed={cfg.seed}: must be below 2**32, numpy's largest")
    check_name("name", cfg.name, "; results_dir says where results go")
    for key in ("model.name", "tracking.project"):
        check_name(key, attrgetter(key)(cfg), path=True)
    if not cfg.results_dir.strip():
        raise UserError("results_dir is empty: name the folder that results go to")
    if len(set(cfg.seeds)) < len(cfg.seeds) or any(not 0 <= seed < 2**32 for seed in cfg.seeds):
        raise UserError(f"seeds={cfg.seeds}: each once, from 0 to 2**32 - 1")
    if cfg.analysis.primary and cfg.analysis.primary.partition(":")[0] not in cfg.arms:
        raise unknown("arm in analysis.primary", cfg.analysis.primary.partition(":")[0], cfg.arms)
    if cfg.tracking.mode not in MODES:
        raise unknown("tracking.mode", cfg.tracking.mode, MODES)


def check_secrets(values: Any) -> None:
    """Refuse a config with a key or a password in it, since configs are written down: before any is.

    Raises:
        UserError: naming the key of the config, never what it holds.
    """
    for key, why in holding_secrets(values):
        hint = (
            ""
            if key.endswith("api_key_env")
            else ": give it by an environment variable (api_key_env names it)"
        )
        raise UserError(f"{key} {why}{hint}; what a config says is written into results")


def conf_dir() -> Path:
    """The configuration folder: inside an installed package, else beside it in the source tree."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


HYDRA_PLUGINS = "C3PO_HYDRA_PLUGINS"


def leave_out_plugins_here() -> None:
    """Let Hydra import no `hydra_plugins` of the working folder, where anybody's files may lie.

    `python -m` puts that folder on the path, and Hydra imports all plugins that it finds there. Installed
    ones are kept; `C3PO_HYDRA_PLUGINS=1` asks for those of the working folder, too.
    """
    here, asked = Path.cwd().resolve(), os.environ.get(HYDRA_PLUGINS, "0") not in ("", "0")
    if asked or "hydra_plugins" in sys.modules or not any(here.glob("hydra_plugins*")):
        return
    others = [Path(folder or ".") / "hydra_plugins" for folder in sys.path]
    package = ModuleType("hydra_plugins")
    package.__path__ = [str(path) for path in others if path.is_dir() and path.resolve().parent != here]
    sys.modules["hydra_plugins"] = package


def register() -> None:
    """Put the schema into Hydra's config store, where conf/config.yaml finds it as `_schema`."""
    from hydra.core.config_store import ConfigStore

    leave_out_plugins_here()
    # conf/hydra/launcher/joblib.yaml is meant to be checked against the plugin's own schema of that name
    warnings.filterwarnings("ignore", message=r"(?s).*validated against ConfigStore schema")
    ConfigStore.instance().store(name="_schema", node=Config)
