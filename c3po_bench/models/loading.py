"""Loading the model of an experiment, once a process."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c3po_bench.errors import UserError, unknown
from c3po_bench.models import deepseek

if TYPE_CHECKING:
    from c3po_bench.config import ModelConfig

KINDS = ("smolmoe", "smollm", "planted", "tiny", "hf")
DTYPES = ("float32", "bfloat16", "float16")
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
    if cfg.kind not in KINDS:
        raise unknown("model.kind", cfg.kind, KINDS)
    if cfg.dtype not in DTYPES:
        raise unknown("model.dtype", cfg.dtype, DTYPES)
    if cfg.kind == "tiny":
        return _tiny(cfg)
    path, revision = _source(cfg)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if cfg.kind == "hf" and (form := deepseek.converted(path, revision)):  # transformers 5 has no class for it
        path, revision = str(form), None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
        model: Any = AutoModelForCausalLM.from_pretrained(path, revision=revision, dtype=cfg.dtype)
    except (OSError, ValueError) as error:
        where = "a local folder" if Path(path).exists() else "the hub or its cache"
        raise UserError(
            f"model {path} can't be loaded from {where} ({str(error).splitlines()[0][:120]}): connect to the hub, "
            "give model.path=FOLDER, or use model=smolmoe, which needs neither"
        ) from error
    if cfg.experts != "auto":
        model.set_experts_implementation(cfg.experts)
    model.to(_device(cfg.device)).eval()
    return Loaded(model, tokenizer, cfg.name, _hash(path, revision, model), str(path))


def _source(cfg: ModelConfig) -> tuple[str, str | None]:
    """Folder or hub id, and revision."""
    if cfg.kind == "hf":
        if not cfg.path:
            raise UserError("model=hf needs model.path=FOLDER or a hub id")
        return cfg.path, cfg.revision
    if cfg.kind == "smollm":
        from c3po_bench.models.smollm import checkpoint
    elif cfg.kind == "smolmoe":
        from c3po_bench.models.smolmoe.build import checkpoint
    else:
        from c3po_bench.models.planted.build import checkpoint
    return str(checkpoint()), None


def _tiny(cfg: ModelConfig) -> Loaded:
    from c3po_bench.models.tiny import tiny_model, tiny_tokenizer

    model: Any = tiny_model(cfg.path or "olmoe")
    model.to(_device(cfg.device))
    return Loaded(model, tiny_tokenizer(), cfg.name, _hash(f"tiny-{cfg.path}", None, model), "tiny")


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    if torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return "cpu"


def _hash(path: str, revision: str | None, model: Any) -> str:
    """Identity of the weights: of the files where they are local and small, else of name, revision and a sample."""
    digest = hashlib.sha256(f"{revision}|{model.config.to_json_string()}".encode())
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        step = max(1, flat.numel() // 64)
        digest.update(name.encode() + flat[::step][:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
