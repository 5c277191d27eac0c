"""Virtual tokens before the prompt (PEFT), trained with the base frozen.

What soft prompts and prefixes share.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from c3po_bench.models.flops import passes, shape_of
from c3po_bench.rewiring.baselines.arm import peft_package
from c3po_bench.rewiring.baselines.sft import trainable
from c3po_bench.rewiring.baselines.training import InsertedLM, Opened, Weights
from c3po_bench.rewiring.generation import decoded

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from c3po_bench.rewiring.backend import RewiringBackend
    from c3po_bench.rewiring.meter import Meter

START = "Answer the question correctly, using what you know about the world. "


class VirtualTokens(ABC):
    """`tokens` virtual tokens that start as those of a short instruction, so that training starts from a working model."""

    def __init__(self, backend: RewiringBackend, tokens: int):
        self.backend, self.model, self.tokens = backend, backend.loaded.model, tokens

    @abstractmethod
    def config(self) -> Any:
        """PEFT's config."""

    @abstractmethod
    def start(self, ids: torch.Tensor) -> torch.Tensor:
        """First values of the virtual tokens [tokens, width], made from token ids [1, tokens]."""

    def wrapped(self) -> Any:
        """The shared model behind virtual tokens. The model itself is not changed."""
        peft = peft_package("soft_prompt and prefix_tuning")
        ids = self.backend.tokenizer.lm.tok_encode(START) or [0]
        repeated = (ids * (self.tokens // len(ids) + 1))[: self.tokens]
        first = self.start(torch.tensor([repeated], device=next(self.model.parameters()).device))
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped: Any = peft.get_peft_model(self.model, self.config())
        wrapped.prompt_encoder["default"].embedding.weight.data.copy_(first)
        return wrapped.eval()

    @contextmanager
    def opened(self, seed: int) -> Iterator[Opened]:
        """Fresh virtual tokens; nothing about them is drawn."""
        model = self.wrapped()
        yield Opened(model, trainable(model))

    def lm(self, weights: Weights, meter: Meter) -> LM:
        """lm-eval's own model over the wrapped one."""
        from lm_eval.models import huggingface

        model = self.wrapped()
        own = trainable(model)
        for name, value in weights.items():
            own[name].data.copy_(value)
        kind: Any = _asked_by_ids(huggingface.HFLM)
        inner = kind(
            pretrained=model, tokenizer=self.backend.loaded.tokenizer, batch_size=self.backend.cfg.batch_size
        )
        return InsertedLM(inner, lambda: self._scoring(meter))

    @contextmanager
    def _scoring(self, meter: Meter) -> Iterator[None]:
        """Phase `score` of `meter`: each pass of the wrapped model, over its virtual tokens too."""
        with meter.phase("score"), passes(self.model) as sizes:
            yield
            shape = shape_of(self.model)
            flops = (shape.score(shape.span, size, size[0] * size[1]) for size in sizes)
            meter.count("score", sum(flops))


def _asked_by_ids(kind: Any) -> Any:
    """lm-eval's LM class `kind`, for requests too that bring their prompt's ids along (see `rewiring.generation`)."""

    class Asked(kind):
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            texts = {i: self._written(r.args[1]) for i, r in enumerate(requests) if "prompt_ids" in r.args[1]}
            rest = [i for i in range(len(requests)) if i not in texts]
            if rest:
                found = super().generate_until([requests[i] for i in rest], disable_tqdm=disable_tqdm)
                texts |= dict(zip(rest, found, strict=True))
            return [texts[i] for i in range(len(requests))]

        def _written(self, settings: dict[str, Any]) -> str:
            prompt, stops = torch.tensor([settings["prompt_ids"]], device=self.device), settings["stop_ids"]
            output = self.model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=settings["max_gen_toks"],
                do_sample=False,
                eos_token_id=stops,
                pad_token_id=stops[0],
            )
            written = [i for i in output[0, prompt.shape[1] :].tolist() if i not in stops]
            settings["written_ids"].extend(written)
            return decoded(self, written)

    return Asked
