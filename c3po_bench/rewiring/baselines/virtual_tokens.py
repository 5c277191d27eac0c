"""Virtual tokens before the prompt (PEFT), trained with the base frozen.

What soft prompts and prefixes share.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from c3po_bench.contract import Answer, Item
from c3po_bench.errors import UserError
from c3po_bench.models.flops import counting, shape_of
from c3po_bench.models.stock_scoring import StockScorer
from c3po_bench.rewiring.baselines.arm import peft_package
from c3po_bench.rewiring.baselines.sft import trainable
from c3po_bench.rewiring.baselines.training import Answering, Opened, Weights
from c3po_bench.rewiring.workbench import Workbench
from c3po_bench.runtime.meter import Meter

START = "Answer the question correctly, using what you know about the world. "


class VirtualTokens(ABC):
    """`tokens` virtual tokens that start as those of a short instruction, so that training starts from a working model."""

    def __init__(self, backend: Workbench, tokens: int):
        self.backend, self.model, self.tokens = backend, backend.loaded.model, tokens
        self.room = backend.tokenizer.max_length - tokens
        if self.room < 2:
            raise UserError(
                f"{tokens} virtual tokens leave no room for a prompt in the {backend.tokenizer.max_length} tokens that the "
                "model reads: use fewer (arm_options.NAME.tokens)"
            )

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
        yield Opened(model, trainable(model), self.room)

    def answering(self, weights: Weights, meter: Meter) -> Answering:
        """By lm-eval's own scoring of the wrapped model."""
        model = self.wrapped()
        own = trainable(model)
        for name, value in weights.items():
            own[name].data.copy_(value)
        # a prompt behind virtual tokens is cut to what is left of the model's window
        scorer = StockScorer(model, self.backend.loaded.tokenizer, self.backend.cfg.batch_size, self.room)
        shape = shape_of(self.model)

        def answer(items: Sequence[Item]) -> list[Answer]:
            with meter.phase("score"), counting(self.model, shape) as flops:
                answers = scorer.answer(items)
            meter.count("score", sum(flops))
            cut = [self.backend.tokenizer.behind(item, self.tokens) for item in items]
            return [
                replace(answer, details={**answer.details, "prompt_tokens_cut": lost}) if lost else answer
                for answer, lost in zip(answers, cut, strict=True)
            ]

        return answer
