"""The reference bank: pathways and embeddings of the reference items, on disk, built once.

The folder is keyed by model, items, rendering and embedder (not by layers: the pathways of all routed layers
are kept). Building goes on where it was interrupted, and of several processes that want one bank only one
builds it.
"""

import logging
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from c3po_bench.contract import Item
from c3po_bench.errors import UserError, finite
from c3po_bench.rewiring.embedders import Embedder, finite_vectors
from c3po_bench.rewiring.engines.base import Engine, Sizes, distinct
from c3po_bench.rewiring.neighbors import Neighborhood
from c3po_bench.rewiring.states import VERSION, Prompt
from c3po_bench.rewiring.tokens import TokenizedItem, Tokenizer
from c3po_bench.runtime.locks import exclusive_lock
from c3po_bench.store.files import replacing, writing
from c3po_bench.store.identity import content_hash
from c3po_bench.store.records import file_checksum, lost_file, read_sealed, write_sealed
from c3po_bench.tasks.duplicates import question_hash

log = logging.getLogger(__name__)
NONE_LEFT = "no usable reference item is left: raise references.limit or name other references.tasks"
Progress = Callable[[str, int, int, float], None]


@dataclass
class ReferenceBank:
    """The usable references of one experiment.

    items: the references kept, in order. `embeddings` float32 [references, width] and `pathways` float32
    [references, routed layers, experts] are memory-mapped. `counts` says how many were left out, and why.
    """

    items: list[TokenizedItem]
    embeddings: np.ndarray
    pathways: np.ndarray
    counts: dict[str, int]
    # what each prompt is read together with
    groups: dict[Prompt, tuple[Prompt, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    def neighbor(self, reference: int, similarity: float) -> dict[str, Any]:
        """What the record keeps of a neighbor."""
        item = self.items[reference].item
        assert item.gold is not None
        answer = item.requests[item.gold][1].strip()
        return {
            "id": f"{item.id[0]}/{item.id[1]}",
            "similarity": round(similarity, 4),
            "question": item.question,
            "answer": answer,
        }

    def details(self, near: Neighborhood, query: int) -> dict[str, Any]:
        """What the record keeps of a query's neighbors, nearest first."""
        kept = near.weights[query] > 0
        found = zip(near.index[query][kept].tolist(), near.similarity[query][kept].tolist(), strict=True)
        return {
            "neighbors": [self.neighbor(*each) for each in found],
            "dropped_duplicates": int(near.dropped[query]),
        }


def build_bank(
    items: Sequence[Item],
    *,
    engine: Engine,
    tokenizer: Tokenizer,
    embedder: Embedder,
    folder: Path,
    model_hash: str,
    test_hashes: set[str],
    only_correct: bool,
    progress: Progress,
) -> ReferenceBank:
    """Load or build the bank of `items`.

    Args:
        items: candidate references.
        engine: any engine of the model.
        tokenizer: of the model.
        embedder: see `embedders`.
        folder: where banks are kept.
        model_hash: of the model's weights.
        test_hashes: question hashes of the test items; references that are test items are left out.
        only_correct: keep only references that the model answers correctly by itself (paper section 3).
        progress: called with (what, done, total, share of all tokens read).

    Raises:
        UserError: when no reference is left.
    """
    candidates = [item for item in items if question_hash(item.question) not in test_hashes]
    if not candidates:
        raise UserError(NONE_LEFT)
    questions = [tokenizer(item) for item in candidates]
    content = [[*item.id, item.question, item.requests, item.gold, item.lengths] for item in candidates]
    key = content_hash([model_hash, embedder.identity, VERSION, content], 16)
    home = folder / key
    home.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder, f"{key}.lock"):
        _build(home, candidates, questions, engine, embedder, progress)
    correct = np.load(home / "correct.npy")
    kept = np.flatnonzero(correct) if only_correct else np.arange(len(candidates))
    if not len(kept):
        raise UserError(NONE_LEFT)
    embeddings = np.load(home / "embeddings.npy", mmap_mode="r")[kept]
    pathways = np.load(home / "pathways.npy", mmap_mode="r")[kept]
    counts = {
        "references": len(kept),
        "references_read": len(items),
        "references_leaked": len(items) - len(candidates),
        "references_wrong": len(candidates) - len(kept),
    }
    groups: dict[Prompt, tuple[Prompt, ...]] = {}
    for chunk in _chunks(questions, engine.sizes):
        together = tuple(prompt for i in chunk for prompt in questions[i].prompts)
        groups |= {prompt: together for prompt in together if prompt not in groups}
    return ReferenceBank([questions[i] for i in kept], embeddings, pathways, counts, groups)


def _chunks(questions: list[TokenizedItem], sizes: Sizes) -> list[list[int]]:
    """Numbers of the questions that are read together: of similar lengths, as many as one forward takes."""
    order = sorted(range(len(questions)), key=lambda i: max(len(p.context) for p in questions[i].prompts))
    chunks: list[list[int]] = []
    tokens = 0
    for i in order:
        mine = sum(p.tokens for p in questions[i].prompts)
        tokens += mine
        if not chunks or len(chunks[-1]) == sizes.references or tokens > sizes.forward_tokens:
            chunks.append([])
            tokens = mine
        chunks[-1].append(i)
    return chunks


class Built(TypedDict):
    """progress.json: how far a bank is."""

    sizes: list[int]  # of the chunks that were read, in order
    checksums: list[str]  # of the pathways and the correctness of each
    embeddings: str | None  # of embeddings.npy, when all is done


def _build(
    home: Path,
    items: list[Item],
    questions: list[TokenizedItem],
    engine: Engine,
    embedder: Embedder,
    progress: Progress,
) -> None:
    """Write embeddings, pathways and correctness, a chunk of similar lengths at a time.

    What is there is checked, and what is missing or damaged is made, with whatever was made after it.
    """
    total, family = len(items), engine.family
    chunks = _chunks(questions, engine.sizes)
    record = home / "progress.json"
    built = read_sealed(record, Built) or {"sizes": [], "checksums": [], "embeddings": None}
    shape = (total, len(family.layers), family.num_experts)
    with writing(home):
        pathways = _open(home / "pathways.npy", np.dtype(np.float32), shape)
        correct = _open(home / "correct.npy", np.dtype(np.bool_), (total,))
    order, ends = [i for chunk in chunks for i in chunk], list(accumulate(map(len, chunks)))
    read: Built = {"sizes": [], "checksums": [], "embeddings": None}
    for size, known in zip(built["sizes"], built["checksums"], strict=False):
        start = sum(read["sizes"])
        if _checksum(pathways, correct, order[start : start + size]) != known:
            log.warning("%s is damaged: references are read again from the damage on", home)
            break
        read["sizes"].append(size)
        read["checksums"].append(known)
    while (done := sum(read["sizes"])) not in (0, *ends):  # another machine reads other chunks
        read["sizes"].pop()
        read["checksums"].pop()
    tokens = np.cumsum([0, *(sum(p.tokens for p in questions[i].prompts) for chunk in chunks for i in chunk)])
    for chunk, end in zip(chunks, ends, strict=True):
        if end <= done:
            continue
        states = engine.read_prompts([prompt for i in chunk for prompt in questions[i].prompts])
        firsts = [0, *accumulate(len(questions[i].prompts) for i in chunk)]
        rows, where = distinct(
            states,
            [(first + p, c) for i, first in zip(chunk, firsts, strict=False) for p, c in questions[i].rows],
        )
        scores = engine.batch(states, rows).score(None)[0].cpu()[where]
        right = []
        shares = scores.split([len(questions[i].rows) for i in chunk])
        for i, first, mine in zip(chunk, firsts, shares, strict=False):
            finite(float(mine.sum()), f"the score of reference {items[i].id[0]}/{items[i].id[1]}")
            correct[i] = int((mine / torch.tensor(items[i].lengths or 1.0)).argmax()) == items[i].gold
            right.append(states[first + questions[i].gold_row[0]])
            pathways[i] = right[-1].original.numpy()
        engine.keep(right)
        with writing(home):
            pathways.flush()
            correct.flush()
        read["sizes"].append(len(chunk))
        read["checksums"].append(_checksum(pathways, correct, chunk))
        write_sealed(record, {**read})
        progress("reading references", end, total, float(tokens[end] / tokens[-1]))
    vectors = home / "embeddings.npy"
    if built["embeddings"] is None or lost_file(home, {vectors.name: built["embeddings"]}):
        with replacing(vectors) as path:
            np.save(path, finite_vectors(embedder([item.question for item in items]).astype(np.float32)))
    read["embeddings"] = file_checksum(vectors)
    if read != built:
        write_sealed(record, {**read})


def _open(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """The array in a file, mapped to be written, made where it is missing or of another shape.

    All of the file is on disk before it is mapped: a disk that is full then says so here, and not by ending
    the process at a later write.
    """
    try:
        found = np.load(path, mmap_mode="r")
        fits = found.shape == shape and found.dtype == dtype
    except (OSError, ValueError, EOFError):
        fits = False
    if not fits:
        with replacing(path) as temporary, temporary.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            size = file.tell() + dtype.itemsize * int(np.prod(shape))
            file.truncate(size)
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return np.lib.format.open_memmap(path, mode="r+")


def _checksum(pathways: np.ndarray, correct: np.ndarray, chunk: list[int]) -> str:
    """Of a chunk's pathways and correctness."""
    return f"{zlib.crc32(correct[chunk].tobytes(), zlib.crc32(pathways[chunk].tobytes())):08x}"


def to_tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A tensor over a (memory-mapped) array, copied only where the device asks for it."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
