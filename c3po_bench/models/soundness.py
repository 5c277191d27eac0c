"""Model folders that can't work, said in one line: which file is missing, cut or contradicts another."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from c3po_bench.errors import UserError, cause, nearest

TOP_K = ("num_experts_per_tok", "moe_topk", "num_selected_experts")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
LFS = b"version https://git-lfs"


def missing_folder(path: str) -> str | None:
    """The line for a path that is meant to be a folder and is none.

    None for a folder or the id of a hub model.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return f"model.path={path} is a file: give the folder that it is in"
    if place.is_dir() or not (path.startswith((".", "~", "/")) or path.count("/") > 1):
        return None
    there = [p.name for p in place.parent.iterdir() if p.is_dir()] if place.parent.is_dir() else []
    close = nearest(place.name, there, 1)
    hint = f": did you mean {str(place.parent / close[0])!r}?" if close else ""
    return f"model.path={path}: there is no such folder{hint}"


def fault_of_folder(folder: Path) -> str | None:
    """What is wrong with the files of a model that could not be loaded: the first fault found, or None."""
    config = folder / "config.json"
    if not config.is_file():
        if (folder / "adapter_config.json").is_file():
            return "it holds an adapter (PEFT), not a model: give the folder of the model, with the adapter merged"
        return "it holds no config.json"
    for path in sorted(folder.glob("*.json")):
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"{path.name} is no JSON ({error})"
        if path.name in ("config.json", "tokenizer.json", "tokenizer_config.json") and not isinstance(
            read, dict
        ):
            return f"{path.name} is no JSON object"
    weights = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
        if absent := sorted(set(named.values()) - {path.name for path in weights}):
            return f"{absent[0]} is missing, which model.safetensors.index.json names"
    if not weights and not any(folder.glob("*.bin")):
        return "it holds no weights (*.safetensors)"
    for path in weights:
        if path.open("rb").read(len(LFS)) == LFS:
            return f"{path.name} is a pointer of Git LFS, not the file: run git lfs pull"
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            return f"{path.name} is cut or damaged ({error}): get it again"
    return None


def check_config(path: str, config: Any) -> None:
    """`UserError` for a config that asks for more experts than there are."""
    used, there = (
        next((getattr(config, n) for n in names if getattr(config, n, None)), None)
        for names in (TOP_K, EXPERTS)
    )
    if isinstance(used, int) and isinstance(there, int) and used > there:
        raise UserError(f"model {path}: its config.json uses {used} experts for a token, and has {there}")


def check_weights(path: str, config: Any, info: dict[str, Any]) -> None:
    """`UserError` for weights that the config has no place for, or that it wants and that are not there.

    Without a word transformers would leave them out, or draw them at random.
    """
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"model {path} lacks {len(missing)} of its weights ({missing[0]}): get all files of the checkpoint"
        )
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int):  # layers that predict further tokens are numbered on, and not used here
        layers += getattr(config, "num_nextn_predict_layers", None) or 0
    for key in sorted(info.get("unexpected_keys", ())):
        _, found, rest = key.partition("layers.")
        number = rest.partition(".")[0]
        if found and number.isdigit() and isinstance(layers, int) and int(number) >= layers:
            raise UserError(
                f"model {path}: its config.json says {layers} layers, and its weights hold more ({key}): one of them is "
                "of another model"
            )


def check_tokenizer(path: str, tokenizer: Any, model: Any) -> None:
    """`UserError` for a tokenizer that makes nothing of text, names no special tokens, or numbers them beyond the model's."""
    if not tokenizer("one", add_special_tokens=False).input_ids:
        raise UserError(
            f"model {path} has no tokenizer: put its files (tokenizer.json, tokenizer_config.json) beside the weights"
        )
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise UserError(
            f"model {path}: its tokenizer has neither a BOS nor an EOS token, which begin and end texts: name its eos_token "
            "in tokenizer_config.json"
        )
    embedded = model.get_input_embeddings().weight.shape[0]
    for name in ("bos_token", "eos_token"):
        number = getattr(tokenizer, f"{name}_id")
        if number is not None and number >= embedded:
            raise UserError(
                f"model {path}: the tokenizer's {name} {getattr(tokenizer, name)!r} has number {number}, and the model embeds "
                f"only {embedded}: they do not belong together"
            )


def check_forward(path: str, tokenizer: Any, model: Any) -> None:
    """`UserError` for a model that fails at its first tokens, or gives nothing but NaN for them."""
    known = model.get_input_embeddings().weight.shape[0]
    ids = [i for i in tokenizer("one two", add_special_tokens=False).input_ids if i < known] or [0]
    try:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
    except Exception as error:
        raise UserError(
            f"model {path} can't be run, so its config.json and weights contradict each other ({cause(error)})"
        ) from error
    if bool(torch.isnan(logits).all()):
        raise UserError(
            f"model {path} gives no numbers (NaN): its weights are damaged, or too large for model.dtype={model.dtype}"
        )
