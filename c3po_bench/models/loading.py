"""Loading the model of an experiment, once a process."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    FineGrainedFP8Config,
    GenerationConfig,
    HqqConfig,
    QuantoConfig,
    TorchAoConfig,
)
from transformers.utils.quantization_config import Mxfp4Config

from c3po_bench.config import ModelConfig
from c3po_bench.errors import UserError, of_the_disk, unknown
from c3po_bench.models import cache_dir, deepseek, hub
from c3po_bench.models.cache import file_hash, folder_hash
from c3po_bench.models.soundness import (
    check_config,
    check_forward,
    check_tokenizer,
    check_weights,
    fault_of_folder,
    missing_folder,
)
from c3po_bench.models.tiny import tiny_model, tiny_tokenizer
from c3po_bench.registry import Registry

log = logging.getLogger(__name__)
EMBEDDED: Registry[Callable[[], Path]] = Registry(
    "model.kind",
    {
        name: f"c3po_bench.models.embedded.{name}:checkpoint"
        for name in ("smolmoe", "specialists", "smollm", "planted")
    }
    | {
        "planted_sigmoid": "c3po_bench.models.embedded.planted:sigmoid_checkpoint",
        "specialists_damaged": "c3po_bench.models.embedded.specialists:damaged_checkpoint",
    },
)
KINDS = (*EMBEDDED, "tiny", "hf")
DTYPES = ("float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_KEPT = ["lm_head", "gate", "router"]
"""Modules that no quantization touches: a router in 4 bits would choose other experts."""
QUANTIZATIONS: dict[str, tuple[Any, str | None]] = {
    "none": (None, None),
    "bnb4": (
        lambda: BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=_KEPT),
        "bitsandbytes",
    ),
    "bnb8": (
        lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_KEPT),
        "bitsandbytes",
    ),
    "fp8": (lambda: FineGrainedFP8Config(modules_to_not_convert=_KEPT), "kernels"),
    "mxfp4_dequantized": (lambda: Mxfp4Config(dequantize=True), None),
    "torchao_int8": (
        lambda: TorchAoConfig(
            import_module("torchao.quantization").Int8WeightOnlyConfig(), modules_to_not_convert=_KEPT
        ),
        "torchao",
    ),
    "hqq4": (lambda: HqqConfig(nbits=4, group_size=64, skip_modules=_KEPT), "hqq"),
    "quanto8": (lambda: QuantoConfig(weights="int8", modules_to_not_convert=_KEPT), "optimum"),
}
"""What `model.quantization` asks transformers for, and the package that it needs."""
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
    checked = (("kind", cfg.kind, KINDS), ("dtype", cfg.dtype, DTYPES))
    for key, value, choices in (*checked, ("quantization", cfg.quantization, QUANTIZATIONS)):
        if value not in choices:
            raise unknown(f"model.{key}", value, choices)
    if cfg.kind == "tiny":
        model: Any = tiny_model(cfg.path or "olmoe").to(getattr(torch, cfg.dtype))
        if cfg.device_map is not None or cfg.quantization != "none":
            raise UserError("model=tiny takes no device_map or quantization: save it and use model=hf")
        _place(model, cfg)
        return Loaded(model, tiny_tokenizer(), cfg.name, _hash("None", model), "tiny")
    path, revision = _source(cfg)
    if not Path(path).exists():
        hub.reachable()
    try:
        # transformers 5 has no class for DeepSeekMoE
        if cfg.kind == "hf" and (converted := deepseek.converted(path, revision)):
            path, revision = str(converted), None
        source: dict[str, Any] = {"revision": revision}
        folder = path
        if path.lower().endswith(".gguf"):
            folder, source = str(Path(path).parent), {"gguf_file": Path(path).name}
        source["trust_remote_code"] = False  # what a folder brings as Python is never run; None would ask
        tokenizer = AutoTokenizer.from_pretrained(folder, **source)
        read: Any = AutoModelForCausalLM.from_pretrained(
            folder, **source, **options(cfg), dtype=cfg.dtype, output_loading_info=True
        )
    except Exception as error:  # transformers raises many kinds; all of them are about the folder
        if of_the_disk(error):
            raise
        raise UserError(_unloadable(path, error)) from error
    model, info = read
    check_weights(path, model.config, info)
    check_config(path, model.config)
    _place(model, cfg)
    check_tokenizer(path, tokenizer, model)
    if cfg.kind == "hf":
        check_forward(path, tokenizer, model)
    if cfg.quantization not in ("none", "mxfp4_dequantized"):
        wide, whole = unquantized_experts(model)
        if wide:
            log.warning(
                "%s: model.quantization=%s leaves the experts as they are, %.1f of %.1f GB of weights",
                *(cfg.name, cfg.quantization, wide / 1e9, whole / 1e9),
            )
    left_out = _plain(model, cfg.name)
    digest = _hash(str(revision), model, _content(cfg, path, model) + left_out)
    return Loaded(model, tokenizer, cfg.name, digest, str(path))


def _unloadable(path: str, error: Exception) -> str:
    """The line for a model that transformers can't load."""
    why = " ".join(str(error).split())[:120] or type(error).__name__
    if "ignore_mismatched_sizes" in why:
        why = "its config.json and its weights are of different sizes: one of them is of another model"
    if "trust_remote_code" in str(error):
        why = (
            "it brings Python code of its own, which is never run here: give a model that transformers knows"
        )
    if Path(path).is_file():
        return f"model {path} can't be loaded from this file: {why}"
    if Path(path).is_dir():
        return f"model {path} can't be loaded from a local folder: {fault_of_folder(Path(path)) or why}"
    place = (
        "the hub or its cache" if hub.reachable() else "the hub's cache, and the hub is not reached from here"
    )
    return (
        f"model {path} can't be loaded from {place} ({_first_sentence(error)}): connect to the hub, give model.path=FOLDER, "
        "or use model=smolmoe, which needs neither: python -m c3po_bench +experiment=quickstart"
    )


def _first_sentence(error: Exception) -> str:
    """What an error says, up to the end of its first sentence."""
    return " ".join(str(error).split()).partition(". ")[0].rstrip(".") or type(error).__name__


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
        if not Path(cfg.path).expanduser().is_file():
            raise UserError(f"model.path={cfg.path}: no such file; a GGUF is read from this machine only")
        return str(Path(cfg.path).expanduser()), None
    if line := missing_folder(cfg.path):
        raise UserError(line)
    here = Path(cfg.path).expanduser()
    return str(here) if here.is_dir() else cfg.path, cfg.revision


def _place(model: Any, cfg: ModelConfig) -> None:
    """Experts and device as the config says, or `UserError` where this machine does not have them."""
    try:
        if cfg.experts_implementation != "auto":
            model.set_experts_implementation(cfg.experts_implementation)
        if cfg.attn_implementation != "auto":
            model.set_attn_implementation(cfg.attn_implementation)
        if not hasattr(model, "hf_device_map"):
            model.to(device_of(cfg.device))
        model.eval()
    except (AssertionError, ImportError, KeyError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise UserError(
            f"model.device={cfg.device}, model.experts_implementation={cfg.experts_implementation} or "
            f"model.attn_implementation={cfg.attn_implementation} can't be had here: {reason}"
        ) from error


def options(cfg: ModelConfig) -> dict[str, Any]:
    """What transformers' `from_pretrained` is told of placement and quantization.

    Raises:
        UserError: for a map that can't be read, or a quantization whose library is not installed.
    """
    found: dict[str, Any] = {}
    if cfg.device_map is not None:
        place: Any = cfg.device_map
        if place not in DEVICE_MAPS:
            try:
                place = json.loads(Path(place).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UserError(
                    f"model.device_map={place}: use {', '.join(DEVICE_MAPS)} or a JSON file of module to device"
                ) from error
        folder = cfg.offload_folder or str(cache_dir() / "offload")
        found |= {"device_map": place, "offload_folder": folder}
    if cfg.quantization != "none":
        make, package = QUANTIZATIONS[cfg.quantization]
        if package and find_spec(package) is None:
            raise UserError(
                f"model.quantization={cfg.quantization} needs {package}: pip install {package}; "
                "none and mxfp4_dequantized need nothing"
            )
        found["quantization_config"] = make()
    return found


def unquantized_experts(model: Any) -> tuple[int, int]:
    """Bytes of the routed experts' weights that are still in 16 or 32 bits, and of all weights."""
    named = list(model.named_parameters())
    sizes = {name: p.numel() * p.element_size() for name, p in named}
    wide = [n for n, p in named if ".experts." in n and p.is_floating_point() and p.element_size() > 1]
    return sum(sizes[name] for name in wide), sum(sizes.values())


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
        if parameter.is_meta:  # offloaded: the files' content tells
            continue
        flat = parameter.detach().flatten()
        step = max(1, flat.numel() // 64)
        digest.update(key.encode() + flat[::step][:64].float().cpu().numpy().tobytes())
    digest.update(content.encode())
    return digest.hexdigest()[:16]


def _content(cfg: ModelConfig, path: str, model: Any) -> str:
    """What identifies the files behind a model of kind hf."""
    if cfg.kind != "hf":
        return ""
    if cfg.path and Path(cfg.path).is_file():
        return file_hash(Path(cfg.path))
    if Path(path).is_dir():
        return folder_hash(Path(path))
    return str(getattr(model.config, "_commit_hash", None))
