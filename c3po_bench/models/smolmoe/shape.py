"""The shape of SmolMoE and the file that describes the split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

SPLIT_FILE = Path(__file__).with_name("split.safetensors")

LAYERS = 30
HIDDEN = 576
NEURONS = 1536
SHARED = 768
EXPERTS = 16
EXPERT_NEURONS = (NEURONS - SHARED) // EXPERTS
TOP_K = 8


@dataclass(frozen=True)
class Split:
    """Which neuron goes where, and who is routed to it.

    `permutation` is [layers, 1536] of neuron numbers: the shared expert's 768, then 48 for each routed
    expert. `router` is [layers, 16, 576], the weights of each layer's router.
    """

    permutation: Tensor
    router: Tensor

    @classmethod
    def load(cls, path: Path = SPLIT_FILE) -> Split:
        """Read a split, neurons as int64 and routers as float32."""
        from safetensors.torch import load_file

        tensors = load_file(path)
        return cls(tensors["permutation"].long(), tensors["router"].float())

    def save(self, path: Path, about: dict[str, str]) -> None:
        """Write the split in two bytes a number, with `about` as the file's metadata."""
        import torch
        from safetensors.torch import save_file

        tensors = {
            "permutation": self.permutation.to(torch.int16).contiguous(),
            "router": self.router.to(torch.float16).contiguous(),
        }
        save_file(tensors, path, metadata=about)
