"""What a model needs, from its config alone: is its family covered, by which engine, how much memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from c3po_bench.config import conf_dir
from c3po_bench.errors import UserError
from c3po_bench.models import hub
from c3po_bench.models.families import Family, family_by_type
from c3po_bench.models.placement import device_memory

PRESETS = Path(__file__).with_name("presets.json")
MOSTLY = 0.9
"""Share of a device's memory that weights may fill: states of prompts and activations need the rest."""
BYTES = {
    "float32": (4.0, 4.0),
    "bfloat16": (2.0, 2.0),
    "fp8": (1.0, 1.0),
    "bnb8": (1.0, 2.0),
    "bnb4": (0.56, 2.0),
    "torchao_int8": (1.0, 2.0),
}
"""Bytes a weight of linear maps, and one of routed experts: most quantizations leave these in 16 bits."""


@dataclass(frozen=True)
class Needs:
    """Numbers of weights: in all, of routed experts, and of embeddings and head, which stay in 16 bits."""

    family: Family
    weights: int
    experts: int
    outside: int

    def memory(self, kind: str) -> float:
        """Bytes of the weights as a dtype or quantization, a key of `BYTES`."""
        linear, expert = BYTES[kind]
        kept = self.outside * (linear if kind == "float32" else 2.0)
        return (self.weights - self.experts - self.outside) * linear + self.experts * expert + kept

    def lines(self) -> Iterator[tuple[str, bool, str]]:
        """For each dtype and quantization: its name, whether weights fit in one device here, and words."""
        has = device_memory()
        for kind in BYTES:
            size = self.memory(kind)
            stay = "" if BYTES[kind][0] == BYTES[kind][1] else ", the experts staying in 16 bits"
            fits = size <= MOSTLY * has
            verdict = (
                "fits here" if fits else f"does not fit here ({has / 1e9:.0f} GB): model.device_map=auto"
            )
            yield kind, fits, f"{size / 1e9:.1f} GB of weights{stay}: {verdict}"


def config_of(name: str) -> Any:
    """The config of a preset, a folder, or a hub id; of summarized presets without the hub.

    Raises:
        UserError: where none can be had.
    """
    known = json.loads(PRESETS.read_text(encoding="utf-8"))
    if name in known:
        return AutoConfig.for_model(**known[name])
    preset = conf_dir() / "model" / f"{name}.yaml"
    path = name
    if preset.is_file():
        lines = [line.partition(":") for line in preset.read_text(encoding="utf-8").splitlines()]
        path = next((value.strip() for key, _, value in lines if key == "path"), name)
    if not Path(path).exists():
        hub.reachable()
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"no config of model {name} can be had ({reason}): connect to the hub, give a folder, or one of "
            f"{', '.join(known)}"
        ) from error


def needs_of(config: Any) -> Needs:
    """What a model of this config needs; it is built without weights.

    Raises:
        UserError: where rewiring can't cover the family, or the model is dense.
    """
    family = family_by_type(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    ends = {
        id(p): p.numel() for p in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    }
    return Needs(family, sum(sizes.values()), experts, sum(ends.values()))
