"""DeepSeekMoE-16B (`model_type: deepseek`), loaded exactly by the Qwen2-MoE class of transformers.

transformers 5 has no class for it and its remote code doesn't run there. Qwen2-MoE differs in three things
only:

- its shared expert is weighted by a sigmoid gate: a zero gate is sigmoid(0) = 1/2, so the down projection is
  doubled (exact in every float format), and the shared experts, which are stored as one wide one, become that
  one;
- which layers are dense is a list (`mlp_only_layers`);
- names of keys.

The rest (softmax over all experts, top-k with or without renormalisation, rotary embedding, norms) is the
same.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from c3po_bench.errors import UserError
from c3po_bench.models.cache import build_once

log = logging.getLogger(__name__)

RECIPE_VERSION = "1"
SHARD_BYTES = 2 * 10**9
"""Most bytes of weights held in memory at once, and the size of the written files."""
SAME_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "num_experts_per_tok", "norm_topk_prob", "hidden_act"),
    *("max_position_embeddings", "rms_norm_eps", "initializer_range", "tie_word_embeddings"),
    *("attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "torch_dtype"),
)
"""Keys of the configuration that both forms share."""
KEPT_FILES = ("tokenizer*", "special_tokens_map.json", "generation_config.json", "chat_template*")


def converted(path: str, revision: str | None = None) -> Path | None:
    """The folder to load instead of `path` (a folder or hub id) if that is a DeepSeekMoE.

    None for other models.

    A hub checkpoint is downloaded whole. What can't be reached is left to the caller's own loading to report.
    """
    folder = Path(path)
    if not folder.is_dir():
        try:
            config = Path(hf_hub_download(path, "config.json", revision=revision))
        except (OSError, ValueError):  # no such model, or no network
            return None
        if not is_deepseek(config.parent):
            return None
        patterns = ["*.json", "*.safetensors", "tokenizer*", "chat_template*"]
        folder = Path(snapshot_download(path, revision=revision, allow_patterns=patterns))
    return convert(folder) if is_deepseek(folder) else None


def is_deepseek(folder: Path) -> bool:
    """Whether `folder` is a checkpoint of `model_type: deepseek`."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no JSON object")
    return config.get("model_type") == "deepseek"


def convert(folder: Path) -> Path:
    """The Qwen2-MoE form of a DeepSeekMoE folder, made in the cache when it isn't there.

    It takes as much disk as the original (33 GB for the 16B model) and some 2 GB of memory, in the dtype of
    the original. An expert's matrices stay separate, as they are stored: transformers fuses them when it
    loads.

    Raises:
        UserError: if the folder has no safetensors files, or its configuration has no equal in Qwen2-MoE.
    """
    folder = Path(folder)
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise UserError(f"{folder} has no *.safetensors: download the safetensors files of the checkpoint")
    old = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    new = qwen2_moe_config(old)
    recipe = {"version": RECIPE_VERSION, "config": json.dumps(old, sort_keys=True)}
    recipe |= {shard.name: _fingerprint(shard) for shard in shards}
    return build_once("deepseek", recipe, lambda scratch: _write(folder, shards, new, scratch))


def qwen2_moe_config(old: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of the Qwen2-MoE form.

    Raises:
        UserError: for options that Qwen2-MoE can't express; DeepSeekMoE-16B uses none of them.
    """
    for key, value in (("scoring_func", "softmax"), ("attention_bias", False)):
        if old.get(key, value) != value:
            raise UserError(
                f"this deepseek checkpoint has {key}={old[key]!r}: only {value!r} can be loaded exactly"
            )
    if not old.get("n_shared_experts") or not old.get("n_routed_experts"):
        raise UserError(
            "this deepseek checkpoint has no shared or no routed experts: it can't be loaded exactly"
        )
    first, every = old.get("first_k_dense_replace", 0), old.get("moe_layer_freq", 1)
    dense = [i for i in range(old["num_hidden_layers"]) if i < first or i % every]
    rope = {"rope_type": "default", "rope_theta": old.get("rope_theta", 10000.0)}
    scaling = dict(old.get("rope_scaling") or {})
    if scaling:
        rope |= {"rope_type": scaling.pop("type", scaling.pop("rope_type", "default")), **scaling}
    return {
        **{key: old[key] for key in SAME_KEYS if key in old},
        "model_type": "qwen2_moe",
        "architectures": ["Qwen2MoeForCausalLM"],
        "num_experts": old["n_routed_experts"],
        "shared_expert_intermediate_size": old["n_shared_experts"] * old["moe_intermediate_size"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
        "qkv_bias": False,
        "use_sliding_window": False,
        "rope_parameters": rope,
    }


def renamed(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The keys of the Qwen2-MoE form that one key of the original becomes."""
    new = name.replace(".mlp.shared_experts.", ".mlp.shared_expert.")
    if new.endswith(".mlp.shared_expert.down_proj.weight"):
        yield new, tensor * 2
        gate = new.replace("shared_expert.down_proj", "shared_expert_gate")
        yield gate, tensor.new_zeros(1, tensor.shape[0])  # [1, hidden]
    else:
        yield new, tensor


def _write(folder: Path, shards: list[Path], config: dict[str, Any], target: Path) -> None:
    """Stream the weights of `shards` into files of at most about `SHARD_BYTES`, with their index."""
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for pattern in KEPT_FILES:
        for path in folder.glob(pattern):
            shutil.copyfile(path, target / path.name)
    where: dict[str, str] = {}
    total = 0
    for number, part in enumerate(_parts(shards), 1):
        name = f"model-{number:05d}.safetensors"
        save_file(part, target / name, metadata={"format": "pt"})
        where |= dict.fromkeys(part, name)
        total += sum(tensor.nbytes for tensor in part.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _parts(shards: list[Path]) -> Iterator[dict[str, Tensor]]:
    """The converted weights in parts of about `SHARD_BYTES`; each is emptied before the next is read."""
    part: dict[str, Tensor] = {}
    for shard in shards:
        log.info("converting %s to Qwen2-MoE form", shard.name)
        with safe_open(shard, framework="pt") as source:
            for key in source.keys():  # noqa: SIM118 (not a dict)
                part |= {name: t.contiguous() for name, t in renamed(key, source.get_tensor(key))}
                if sum(tensor.nbytes for tensor in part.values()) >= SHARD_BYTES:
                    yield part
                    part.clear()
    if part:
        yield part


def _fingerprint(path: Path, samples: int = 64, width: int = 4096) -> str:
    """A hash over a file's size and evenly spaced pieces.

    Milliseconds, where reading it all takes minutes.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for i in range(samples):
            stream.seek(i * max(0, size - width) // max(1, samples - 1))
            digest.update(stream.read(width))
    return digest.hexdigest()
