"""The reference bank: pathways and embeddings of the reference items, on disk, built once.

The folder is keyed by model, items, rendering and embedder (not by layers: the pathways of all routed layers
are kept). Building goes on where it was interrupted, and of several processes that want one bank only one
builds it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from c3po_bench.errors import UserError
from c3po_bench.rewiring.states import VERSION
from c3po_bench.runtime.locks import exclusive_lock
from c3po_bench.tasks.duplicates import question_hash

if TYPE_CHECKING:
    from c3po_bench.contract import Item
    from c3po_bench.rewiring.embedders import Embedder
    from c3po_bench.rewiring.engines.base import Engine, Sizes
    from c3po_bench.rewiring.states import Prompt
    from c3po_bench.rewiring.tokens import TokenizedItem, Tokenizer

NONE_LEFT = "no usable reference item is left: raise references.limit or name other references.tasks"
FILES = ("correct", "pathways", "embeddings")
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
    groups: dict[Prompt, tuple[Prompt, ...]] = field(
        default_factory=dict
    )  # what each prompt is read together with

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
    leaked = len(items) - len(candidates)
    if not candidates:
        raise UserError(NONE_LEFT)
    questions = [tokenizer(item) for item in candidates]
    digest = hashlib.sha256()
    for item in candidates:
        digest.update(json.dumps([*item.id, item.question, item.requests, item.gold, item.lengths]).encode())
    key = hashlib.sha256(
        f"{model_hash}|{digest.hexdigest()}|{embedder.identity}|{VERSION}".encode()
    ).hexdigest()[:16]
    home = folder / key
    home.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder, f"{key}.lock"):
        if not ((home / "done.json").exists() and _whole(home, len(candidates), *FILES)):
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
        "references_leaked": leaked,
        "references_wrong": len(candidates) - len(kept),
    }
    groups: dict[Prompt, tuple[Prompt, ...]] = {}
    for chunk in _chunks(questions, engine.sizes):
        together = tuple(p for i in chunk for p in questions[i].prompts)
        for prompt in together:
            groups.setdefault(prompt, together)
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


def _build(
    home: Path,
    items: list[Item],
    questions: list[TokenizedItem],
    engine: Engine,
    embedder: Embedder,
    progress: Progress,
) -> None:
    """Write embeddings, pathways and correctness, a chunk of similar lengths at a time."""
    total = len(items)
    family = engine.family
    shape = (total, len(family.layers), family.num_experts)
    state_file = home / "progress.json"
    done = _done(state_file) if _whole(home, total, "pathways", "correct") else 0
    pathways = _open(home / "pathways.npy", shape, np.float32, done)
    correct = _open(home / "correct.npy", (total,), np.bool_, done)
    begun, chunks = 0, _chunks(questions, engine.sizes)
    tokens = np.cumsum([0, *(sum(p.tokens for p in questions[i].prompts) for chunk in chunks for i in chunk)])
    for chunk in chunks:
        begun += len(chunk)
        if begun <= done:
            continue
        prompts = [p for i in chunk for p in questions[i].prompts]
        states = engine.read_new(prompts)
        offset, rows, where, keep = 0, [], [], []
        for i in chunk:
            question = questions[i]
            where.append((len(rows), offset))
            rows += [(offset + p, c) for p, c in question.rows]
            offset += len(question.prompts)
        scores = engine.batch(states, rows).score(None)[0].cpu()
        for i, (start, first) in zip(chunk, where, strict=True):
            question = questions[i]
            gold = question.item.gold
            mine = scores[start : start + len(question.rows)] / torch.tensor(items[i].lengths or 1.0)
            correct[i] = int(mine.argmax()) == gold
            right = states[first + question.gold_row[0]]
            pathways[i] = right.original.numpy()
            keep.append(right)
        engine.keep(keep)
        done = begun
        pathways.flush()
        correct.flush()
        _write(state_file, {"done": done})
        progress("reading references", done, total, float(tokens[done] / tokens[-1]))
    if not _whole(home, total, "embeddings"):
        np.save(home / "embeddings.tmp.npy", embedder([item.question for item in items]).astype(np.float32))
        os.replace(home / "embeddings.tmp.npy", home / "embeddings.npy")
    _write(home / "done.json", {"references": total})


def _whole(home: Path, count: int, *names: str) -> bool:
    """Whether these arrays are there, with a row for each of `count` references and none cut short."""
    try:
        return all(len(np.load(home / f"{name}.npy", mmap_mode="r")) == count for name in names)
    except (OSError, ValueError, EOFError):
        return False


def _done(path: Path) -> int:
    """How many references were read before; 0 where nobody can tell."""
    try:
        return int(json.loads(path.read_text())["done"])
    except (OSError, ValueError):
        return 0


def _open(path: Path, shape: tuple[int, ...], dtype: Any, done: int) -> Any:
    mode = "r+" if done else "w+"
    return np.lib.format.open_memmap(path, mode=mode, dtype=dtype, shape=shape)


def _write(path: Path, data: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data))
    os.replace(temporary, path)


def to_tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A tensor over a (memory-mapped) array, copied only where the device asks for it."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
