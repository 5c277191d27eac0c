"""From the shipped weights to a Hugging Face folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

from c3po_bench.models.built import build_once

WEIGHTS = Path(__file__).with_name("weights.safetensors")
RECIPE_VERSION = "1"


def checkpoint() -> Path:
    """The testbed's folder (OLMoE, float32, 3 MB, with tokenizer), built in the cache when it is not there."""
    recipe = {"weights": hashlib.sha256(WEIGHTS.read_bytes()).hexdigest(), "version": RECIPE_VERSION}
    return build_once("planted", recipe, _build)


def _build(folder: Path) -> None:
    from safetensors.torch import load_file
    from transformers import OlmoeForCausalLM

    from c3po_bench.models.planted import shape

    model = OlmoeForCausalLM(shape.config())
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()}, strict=True)
    model.save_pretrained(folder)
    shape.tokenizer().save_pretrained(folder)
