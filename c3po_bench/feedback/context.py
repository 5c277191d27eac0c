"""What the stages of a synthesis share: the model being tuned, caches of finished calls, counts of gaps."""

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from c3po_bench.feedback.calls import CallCache, Reply
from c3po_bench.feedback.config import FeedbackConfig
from c3po_bench.models import cache_dir, loading


class Subject:
    """The model being tuned: loaded when first needed, always without adapters at rest."""

    def __init__(self, model_cfg: Any) -> None:
        self._cfg, self._switched_off = model_cfg, False

    @cached_property
    def _loaded(self) -> loading.Loaded:
        return loading.load(self._cfg)

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self._loaded.model

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._loaded.tokenizer

    @property
    def hash(self) -> str:
        """The identity of its weights."""
        return self._loaded.hash

    def release(self) -> None:
        """Take every adapter off the model."""
        if "_loaded" in self.__dict__:
            self._loaded.release()

    def forget(self) -> None:
        """Load the model anew when it is next needed, because its weights were changed."""
        loading._loaded.clear()
        self.__dict__.pop("_loaded", None)

    @contextlib.contextmanager
    def model_for_training(self) -> Iterator[Any]:
        """The bare model for a training, which unloads its adapter.

        A training that fails costs a new load.
        """
        self.release()
        model = bare(self.model)
        try:
            yield model
        except BaseException:
            self.forget()
            raise
        model.__dict__.pop("forward", None)  # TRL's fused head
        model.config.use_cache = True
        bare(model).eval()

    def adapted(self, adapters: Mapping[str, Path]) -> Any:
        """The model with the named adapters on it (one active at a time).

        They stay until the next call or `release`.
        """
        from peft import PeftModel  # slow to import, and needed by tuned arms alone

        self.release()
        loaded = self._loaded
        (first, folder), *others = adapters.items()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT's calls into transformers
            loaded.adapted = PeftModel.from_pretrained(bare(loaded.model), str(folder), adapter_name=first)
            for name, folder in others:
                loaded.adapted.load_adapter(str(folder), adapter_name=name)
        return loaded.adapted.eval()

    @contextlib.contextmanager
    def unadapted(self) -> Iterator[None]:
        """Within the block, or blocks of it, the model answers as it did before any tuning, whatever adapter is on it."""
        adapted = self._loaded.adapted
        if adapted is None or self._switched_off:
            yield
            return
        self._switched_off = True
        try:
            with adapted.disable_adapter():
                yield
        finally:
            self._switched_off = False


def bare(model: Any, switched_off: bool = False) -> Any:
    """`model`, which must have no adapter on it, or with `switched_off` none that is switched on.

    What it answers now is taken for the base model's.
    """
    layers = dict(model.named_modules())
    left = [
        n
        for n, m in layers.items()
        if (not getattr(m, "disable_adapters", True) if switched_off else "lora_" in n)
    ]
    assert not left, f"an adapter is still on the model: {left[0]}"
    return model


class SynthesisContext:
    """What turns a piece into data: config, model, cache folder, seed, finished calls and counts."""

    def __init__(self, cfg: FeedbackConfig, subject: Any, seed: int) -> None:
        self.cfg, self.subject, self.seed = cfg, subject, seed
        self.folder = Path(cfg.cache_dir).expanduser() if cfg.cache_dir else cache_dir() / "feedback"
        self.counts: Counter[str] = Counter()  # end in the result: gaps, duplicates, filtered revisions
        self._written: dict[str, list[Any]] = {}
        self._caches: dict[str, CallCache] = {}

    def call_cache(self, stage: str, record: type = Reply) -> CallCache:
        """The finished calls of a stage, opened once; they are replies unless `record` says what they are."""
        if stage not in self._caches:  # the folder has its first name: calls in it have been paid for
            self._caches[stage] = CallCache(self.folder / "ledgers" / f"{stage}.jsonl", record)
        return self._caches[stage]

    def once(self, key: str, write: Callable[[], list[Any]]) -> list[Any]:
        """What `write` writes, the first time that it is asked for under this key."""
        if key not in self._written:
            self._written[key] = write()
        return list(self._written[key])

    def reopen(self) -> None:
        """Read the call caches anew when they are next asked for: another process has added to them."""
        self._caches.clear()
