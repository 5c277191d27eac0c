"""Where a model's weights are, and how they are reached: on one device, on several, in memory or on disk.

`model.device_map` spreads a model by accelerate, whose hooks move what enters a module to the module's device
and load offloaded weights for the time of a forward. Outside a forward offloaded weights are on the device
`meta`, without values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def is_spread(model: Any) -> bool:
    """Whether accelerate's hooks run the model: over several devices, or with offloaded weights."""
    places = set(getattr(model, "hf_device_map", {}).values())
    return len(places) > 1 or "disk" in places


def input_device(model: Any) -> torch.device:
    """The device on which token ids are expected and hidden states begin."""
    embeddings = model.get_input_embeddings()
    hook = getattr(embeddings, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(embeddings.weight.device if device is None else device)


@contextmanager
def at_hand(module: Any) -> Iterator[Any]:
    """Within the block the module's own parameters have values, wherever they are kept."""
    if not hasattr(module, "_hf_hook"):
        yield module
        return
    from accelerate.utils import align_module_device  # only models that accelerate has spread need it

    with align_module_device(module):
        yield module


def device_memory() -> int:
    """Bytes of memory of the first GPU, or of the machine where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # not a Unix
        return 0
