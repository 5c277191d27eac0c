"""What reading a prompt leaves behind, and the store that keeps it for reference prompts.

References are read by the model once, then shared by arms, sweep cells and processes. The store is an
append-only data file of safetensors blobs and an index of JSON lines. Writers take a lock; readers copy what
they need, so resident memory does not grow with the number of references. What is cut short or damaged counts
as not kept.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from c3po_bench.runtime.locks import exclusive_lock
from c3po_bench.store.files import Journal, write_all, writing
from c3po_bench.store.identity import content_hash

VERSION = 4  # of states and banks: raise when reading changes its numbers, even in the last digits
CPU = torch.device("cpu")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Prompt:
    """Token ids of one context and of the continuations scored after it."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """What reading it passes through the model: of each continuation all but the last token."""
        return len(self.context) + sum(len(c) - 1 for c in self.continuations)


@dataclass
class State:
    """What an engine keeps of one prompt.

    original: the model's own routing at the last context token, [routed layers, experts], float32.
    kept: whatever else the engine needs: tensors, or lists of them, by name.
    seconds, flops: what reading it cost.
    """

    prompt: Prompt
    original: torch.Tensor
    kept: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    flops: float = 0

    def nbytes(self) -> int:
        """Memory of the tensors kept."""
        lists = [value if isinstance(value, list) else [value] for value in self.kept.values()]
        return sum(t.numel() * t.element_size() for tensors in [[self.original], *lists] for t in tensors)


class StateStore:
    """States of prompts on disk. `most_bytes` bounds the data file: beyond it nothing more is written."""

    def __init__(self, folder: Path, most_bytes: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.most_bytes = folder, most_bytes
        self.data, self.index_file = folder / "states.bin", folder / "index.jsonl"
        self._size_seen = -1
        self._refresh()

    def _refresh(self) -> None:
        """Take in what other processes have added."""
        size = self.index_file.stat().st_size if self.index_file.exists() else 0
        if size != self._size_seen:
            self._index = Journal(self.index_file, valid=lambda row: "crc" in row)
            self._size_seen = size

    def __contains__(self, prompt: Prompt) -> bool:
        return key_of(prompt) in self._index.rows

    def get(self, prompts: Sequence[Prompt], device: torch.device = CPU) -> dict[Prompt, State]:
        """The states of those of the prompts that are here; what was kept of them on `device`."""
        if any(prompt not in self for prompt in prompts):
            self._refresh()
        states = {}
        for prompt in prompts:
            if place := self._index.rows.get(key_of(prompt)):
                if (blob := self._read(place["offset"], place["size"])) and zlib.crc32(blob) == place["crc"]:
                    kept = _unpack(blob, device)
                    states[prompt] = State(prompt, kept.pop("own").cpu(), kept)
                else:
                    del self._index.rows[key_of(prompt)]
        return states

    def _read(self, offset: int, size: int) -> bytearray | None:
        if not self.data.exists():
            return None
        with open(self.data, "rb") as file:
            file.seek(offset)
            return bytearray(file.read(size))

    def put(self, states: Sequence[State]) -> None:
        """Add states; those that are here already, or find no room or no lock, are left out."""
        if all(state.prompt in self for state in states):
            return
        with exclusive_lock(self.folder, "lock") as held:
            if not held:  # places in the data file are told from its size
                return
            self._refresh()
            places: dict[str, dict[str, Any]] = {}
            new = {key_of(state.prompt): state for state in states if state.prompt not in self}
            with writing(self.data), open(self.data, "ab", buffering=0) as file:
                for key, state in new.items():
                    blob, offset = _pack(state), file.tell()
                    if offset + len(blob) <= self.most_bytes:
                        write_all(file, blob)
                        crc = zlib.crc32(blob)
                        places[key] = {"key": key, "offset": offset, "size": len(blob), "crc": crc}
            self._index.append(places.values())
            self._size_seen = self.index_file.stat().st_size


def key_of(prompt: Prompt) -> str:
    """Content address of a prompt."""
    return content_hash([prompt.context, prompt.continuations], 24)


def _pack(state: State) -> bytes:
    tensors = {"own": state.original}  # the name on disk
    for name, value in state.kept.items():
        parts = {f"{name}.{i}": t for i, t in enumerate(value)} if isinstance(value, list) else {name: value}
        tensors |= {key: tensor.contiguous().cpu() for key, tensor in parts.items()}
    return save(tensors)


def _unpack(blob: bytearray, device: torch.device) -> dict[str, Any]:
    """The tensors of a safetensors blob as parts of one, moved as a whole: a third of the library's time."""
    start = 8 + int.from_bytes(blob[:8], "little")
    data = torch.frombuffer(blob, dtype=torch.uint8, offset=start).to(device)
    kept: dict[str, Any] = {}
    header: dict[str, Any] = json.loads(blob[8:start])
    for name in sorted(header, key=lambda n: (n.partition(".")[0], int(n.partition(".")[2] or 0))):
        entry = header[name]
        first, last = entry["data_offsets"]
        tensor = data[first:last].view(DTYPES[entry["dtype"]]).view(entry["shape"])
        stem, dot, _ = name.partition(".")
        if dot:
            kept.setdefault(stem, []).append(tensor)
        else:
            kept[stem] = tensor
    return kept
