"""The arm `base_again`: the model as it is, asked once more in other batches. What it changes is noise.

Its batches have another size and their items another order (`evaluate/chunks.py` makes them, as the arm's row
asks for), and with `dtype` the weights have another precision. Nothing comes from what `base` has read.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from c3po_bench.contract import TEXT, Answer, ArmRow, Item, Report
from c3po_bench.errors import unknown
from c3po_bench.models.loading import DTYPES
from c3po_bench.models.ties import count_ties, family_with_routers, ties_note
from c3po_bench.rewiring.backend import RewiringArm, RewiringBackend
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.rewirer import Rewirer
from c3po_bench.rewiring.tokens import Tokenizer


def base_again(backend: RewiringBackend, row: ArmRow, *, dtype: str = "") -> "BaseAgain":
    """The model as it is, in other batches and another order.

    Args:
        backend: of the experiment.
        row: of the table of arms.
        dtype: float32, bfloat16 or float16, for a copy of the model in another precision; empty: the model's
            own.
    """
    if dtype and dtype not in DTYPES:
        raise unknown("arm_options.base_again.dtype", dtype, DTYPES)
    return BaseAgain(backend, row)


class BaseAgain(RewiringArm):
    """Base, asked once more."""

    def identity(self) -> dict[str, Any]:
        """The engine and another precision; `evaluate.run` adds the batches, which are this arm's own."""
        return {"engine": self.backend.cfg.engine, "options": self.options}

    def settings(self) -> dict[str, Any]:
        """The precision, where it is another."""
        return {"option_dtype": self.options["dtype"]} if self.options["dtype"] else {}

    def prepare(self) -> None:
        """An engine of its own, which keeps nothing that base has read.

        Where another precision is asked for it is that of a copy.
        """
        backend, model, tokenizer = self.backend, self.backend.loaded.model, self.backend.tokenizer
        if self.options["dtype"]:
            model = copy.deepcopy(model).to(getattr(torch, self.options["dtype"]))
            tokenizer = Tokenizer(model, backend.loaded.tokenizer)
        engine = load_engine(backend.cfg.engine, model, backend.layers, backend.cfg.method.position)
        self._family = family_with_routers(backend.loaded.model)
        self._tied = (0, 0)
        self._rewirer = Rewirer(engine, tokenizer, self.method, meter=self.meter)

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Under the model's own routing.

        The number of routing ties of each item comes with it, which is no part of its cost.
        """
        answers = super().answer(items)
        if self._family is None:
            return answers
        with self.meter.exclude():
            ties = [count_ties(self.backend.loaded.model, self._family, self._sequences(i)) for i in items]
        return [
            replace(answer, details={**answer.details, "routing_ties": count}) if count else answer
            for answer, count in zip(answers, ties, strict=True)
        ]

    def _sequences(self, item: Item) -> list[tuple[int, ...]]:
        """The tokens that the model reads of an item, each text once: requests behind their contexts, or the prompt."""
        tokenized = self.backend.tokenizer(item)
        if item.kind == TEXT:
            return [tokenized.prompts[0].context]
        prompts = tokenized.prompts
        read = (prompts[p].context + prompts[p].continuations[c][:-1] for p, c in tokenized.rows)
        return list(dict.fromkeys(read))

    def finish(self, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
        """Count the items with routing ties."""
        self._tied = sum("routing_ties" in row for row in rows), len(rows)
        return rows, {}

    def report(self) -> Report:
        """With the count of items whose routing ties."""
        report, (tied, items) = super().report(), self._tied
        if self._family is None:
            return report
        return replace(
            report,
            counts={**report.counts, "routing_ties": tied},
            notes=[*report.notes, ties_note(tied, items)],
        )
