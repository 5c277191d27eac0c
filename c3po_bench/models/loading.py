"""Loading the model of an experiment, once a process."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from c3po_bench.config import ModelConfig
from c3po_bench.errors import UserError, unknown
from c3po_bench.models import deepseek
from c3po_bench.models.cache import folder_hash
from c3po_bench.models.tiny import tiny_model, tiny_tokenizer
from c3po_bench.registry import Registry

log = logging.getLogger(__name__)
EMBEDDED: Registry[Callable[[], Path]] = Registry(
    "model.kind",
    {
        name: f"c3po_bench.models.embedded.{name}:checkpoint"
        for name in ("smolmoe", "specialists", "smollm", "planted")
    },
)
KINDS = (*EMBEDDED, "tiny", "hf")
DTYPES = ("float32", "bfloat16", "float16")
WRITTEN = (
    *(
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "top_h",
        "typical_p",
        "epsilon_cutoff",
        "eta_cutoff",
    ),
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "max_length", "use_cache"),
    *("cache_implementation", "transformers_version", "_from_model_config"),
)
"""What of a model's generation config is kept: how an answer is drawn that is asked to be, and what ends one."""
_loaded: dict[str, Loaded] = {}


@dataclass
class Loaded:
    """A model ready to run: `hash` identifies its weights, `path` is where they came from.

    `adapted` is the PEFT model whose layers are in `model` now, if any.
    """

    model: Any
    tokenizer: Any
    name: str
    hash: str
    path: str
    adapted: Any = None

    def release(self) -> None:
        """Take every adapter off the model."""
        if self.adapted is not None:
            self.adapted.unload()
            self.adapted = None


def load(cfg: ModelConfig) -> Loaded:
    """The model that `cfg` names, without adapters; the same object if this process has it already.

    Raises:
        UserError: for an unknown kind or dtype, or weights that can't be had.
    """
    key = json.dumps(asdict(cfg), sort_keys=True)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = _load(cfg)
    _loaded[key].release()
    return _loaded[key]


def _load(cfg: ModelConfig) -> Loaded:
    for key, value, choices in (("kind", cfg.kind, KINDS), ("dtype", cfg.dtype, DTYPES)):
        if value not in choices:
            raise unknown(f"model.{key}", value, choices)
    if cfg.kind == "tiny":
        model: Any = tiny_model(cfg.path or "olmoe").to(getattr(torch, cfg.dtype))
        _place(model, cfg)
        return Loaded(model, tiny_tokenizer(), cfg.name, _hash("None", model), "tiny")
    path, revision = _source(cfg)
    try:
        # transformers 5 has no class for DeepSeekMoE
        if cfg.kind == "hf" and (converted := deepseek.converted(path, revision)):
            path, revision = str(converted), None
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
        read: Any = AutoModelForCausalLM.from_pretrained(
            path, revision=revision, dtype=cfg.dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, LookupError, SafetensorError) as error:
        where = "a local folder" if Path(path).exists() else "the hub or its cache"
        raise UserError(
            f"model {path} can't be loaded from {where} ({' '.join(str(error).split())[:120]}): connect to the hub, "
            "give model.path=FOLDER, or use model=smolmoe, which needs neither"
        ) from error
    # what transformers makes of a folder without a tokenizer
    if not tokenizer("one", add_special_tokens=False).input_ids:
        raise UserError(
            f"model {path} has no tokenizer: put its files (tokenizer.json, tokenizer_config.json) beside the weights"
        )
    model, info = read
    if missing := sorted(info["missing_keys"]):  # transformers would fill them in at random, with a warning
        raise UserError(
            f"model {path} lacks {len(missing)} of its weights ({missing[0]}): get all files of the checkpoint"
        )
    _place(model, cfg)
    left_out = _plain(model, cfg.name)
    digest = _hash(str(revision), model, _content(cfg, path, model) + left_out)
    return Loaded(model, tokenizer, cfg.name, digest, str(path))


def _plain(model: Any, name: str) -> str:
    """Make `model` write by its own probabilities: which settings of its generation config are left out.

    A penalty of repetitions, say, is known to transformers' `generate` alone: rewired arms, which write
    otherwise, would not have it, and what it changes would count as rewiring's.
    """
    settings, usual = (
        model.generation_config.to_diff_dict(),
        GenerationConfig._get_default_generation_params(),
    )
    left_out = sorted(k for k, v in settings.items() if k not in WRITTEN and v and v != usual.get(k))
    if not left_out:
        return ""
    kept = {key: value for key, value in settings.items() if key in WRITTEN}
    model.generation_config = GenerationConfig(**kept)
    listing = ", ".join(f"{key}={settings[key]}" for key in left_out)
    log.warning("%s: its generation config asks for %s, which is left out for every arm", name, listing)
    return f"|without {listing}"


def _source(cfg: ModelConfig) -> tuple[str, str | None]:
    """Folder or hub id, and revision."""
    if cfg.kind != "hf":
        return str(EMBEDDED[cfg.kind]()), None
    if not cfg.path:
        raise UserError("model=hf needs model.path=FOLDER or a hub id")
    if cfg.path.lower().endswith(".gguf"):
        raise UserError(
            f"model.path={cfg.path}: GGUF is not read; give the folder or hub id of the model's safetensors"
        )
    return cfg.path, cfg.revision


def _place(model: Any, cfg: ModelConfig) -> None:
    """Experts and device as the config says, or `UserError` where this machine does not have them."""
    try:
        if cfg.experts_implementation != "auto":
            model.set_experts_implementation(cfg.experts_implementation)
        model.to(device_of(cfg.device)).eval()
    except (AssertionError, KeyError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise UserError(
            f"model.device={cfg.device} or model.experts_implementation={cfg.experts_implementation} "
            f"can't be had here: {reason}"
        ) from error


def device_of(name: str) -> str:
    """What `model.device` means here: auto is this process's GPU, if there is one."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return "cpu"


def _hash(name: str, model: Any, content: str = "") -> str:
    """Identity of a model: its config, 64 numbers of each tensor, and `content`.

    `content` is of all files of a local folder, or the commit of a hub model. The models that the program
    makes itself, from a recipe that it checks (embedded) or a seed (tiny), need none.
    """
    digest = hashlib.sha256(f"{name}|{model.config.to_json_string()}".encode())
    for key, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        step = max(1, flat.numel() // 64)
        digest.update(key.encode() + flat[::step][:64].float().cpu().numpy().tobytes())
    digest.update(content.encode())
    return digest.hexdigest()[:16]


def _content(cfg: ModelConfig, path: str, model: Any) -> str:
    """What identifies the files behind a model of kind hf."""
    if cfg.kind != "hf":
        return ""
    if Path(path).is_dir():
        return folder_hash(Path(path))
    return str(getattr(model.config, "_commit_hash", None))
