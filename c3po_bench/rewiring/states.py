"""States of reference prompts on disk.

Read by the model once, then shared by arms, sweep cells and processes.

An append-only data file of safetensors blobs and an index of JSON lines. Writers take a lock; readers copy
what they need, so resident memory does not grow with the number of references. What is cut short or damaged
counts as not kept.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from c3po_bench.runtime.locks import exclusive_lock
from c3po_bench.store.files import drop_torn_line, read_jsonl
from c3po_bench.store.identity import content_hash

if TYPE_CHECKING:
    from c3po_bench.rewiring.engines.base import Prompt, State

VERSION = 4  # of states and banks: raise when reading changes its numbers, even in the last digits
CPU = torch.device("cpu")
PLACE = ("offset", "size", "crc")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class StateStore:
    """Keeps what an engine kept of prompts. `most_bytes` bounds the data file.

    Beyond it nothing more is written.
    """

    def __init__(self, folder: Path, most_bytes: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.data, self.index_file, self.most_bytes = (
            folder / "states.bin",
            folder / "index.jsonl",
            most_bytes,
        )
        self.folder = folder
        self._index: dict[str, tuple[int, int, int]] = {}  # what `PLACE` names
        self._seen = 0
        self._file: int | None = None
        self._refresh()

    def _refresh(self) -> None:
        """Take in what other processes have added."""
        size = self.index_file.stat().st_size if self.index_file.exists() else 0
        if size != self._seen:
            rows = (r for r in read_jsonl(self.index_file) if "crc" in r)  # older stores have none
            self._index = {r["key"]: (r["offset"], r["size"], r["crc"]) for r in rows}
            self._seen = size

    def __contains__(self, prompt: Prompt) -> bool:
        return key_of(prompt) in self._index

    def get(self, prompts: Sequence[Prompt], device: torch.device = CPU) -> dict[Prompt, State]:
        """The states of those of the prompts that are here; what was kept of them on `device`."""
        from c3po_bench.rewiring.engines.base import State

        found = {}
        if any(prompt not in self for prompt in prompts):
            self._refresh()
        for prompt in prompts:
            place = self._index.get(key_of(prompt))
            if place is None:
                continue
            offset, size, crc = place
            blob = self._blob(offset, size)
            if zlib.crc32(blob) != crc:
                del self._index[key_of(prompt)]
                continue
            kept = _unpack(blob, device)
            found[prompt] = State(prompt, kept.pop("own").cpu(), kept)
        return found

    def _blob(self, offset: int, size: int) -> bytearray:
        blob = bytearray(size)
        with suppress(FileNotFoundError):
            if self._file is None:
                self._file = os.open(self.data, os.O_RDONLY)
            os.preadv(self._file, [blob], offset)
        return blob

    def put(self, states: Sequence[State]) -> None:
        """Add states; those that are here already, or find no room or no lock, are left out."""
        new = [state for state in states if state.prompt not in self]
        if not new:
            return
        with exclusive_lock(self.folder, "lock") as held:
            if not held:  # places in the data file are told from its size
                return
            self._refresh()
            lines = []
            with open(self.data, "ab") as file:
                for state in new:
                    blob = _pack(state)
                    offset = file.tell()
                    if state.prompt in self or offset + len(blob) > self.most_bytes:
                        continue
                    file.write(blob)
                    place = (offset, len(blob), zlib.crc32(blob))
                    self._index[key_of(state.prompt)] = place
                    lines.append(
                        json.dumps(dict(zip(PLACE, place, strict=True)) | {"key": key_of(state.prompt)})
                    )
                file.flush()
            drop_torn_line(self.index_file)
            with open(self.index_file, "a", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in lines)
            self._seen = self.index_file.stat().st_size


def key_of(prompt: Prompt) -> str:
    """Content address of a prompt."""
    return content_hash([prompt.context, prompt.continuations], 24)


def _pack(state: State) -> bytes:
    from safetensors.torch import save

    tensors = {"own": state.own}
    for name, value in state.kept.items():
        parts = value if isinstance(value, list) else [value]
        tensors |= {
            f"{name}.{i}" if isinstance(value, list) else name: t.contiguous().cpu()
            for i, t in enumerate(parts)
        }
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
