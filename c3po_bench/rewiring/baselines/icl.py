"""In-context learning: the nearest references, answered, stand before the question (the paper's ICL row, Table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from c3po_bench.contract import TEXT, Answer, ArmRow, Item
from c3po_bench.models.encoding import decoding
from c3po_bench.rewiring.baselines.arm import BaselineArm, Retriever
from c3po_bench.rewiring.rewirer import Rewirer
from c3po_bench.rewiring.workbench import Workbench


def icl(backend: Workbench, row: ArmRow, *, shots: int = 5) -> IclArm:
    """Retrieved examples before each question, the most similar one last. The prompt differs from the base's.

    Args:
        backend: the workbench.
        row: of the table of arms.
        shots: how many references are shown (the paper names no number).
    """
    return IclArm(backend, row, {"shots": shots})


class IclArm(BaselineArm):
    """The base model behind retrieved examples."""

    cut_of = "their first examples"

    def settings(self) -> dict[str, Any]:
        """The only arm whose prompts are not the base's: tables say so."""
        return {"prompt_differs": True, **super().settings()}

    def prepare(self) -> None:
        """Read the references, and render them as they are shown."""
        backend = self.backend
        self._base = Rewirer(backend.engine, backend.tokenizer, backend.cfg.method, meter=self.meter)
        self._retriever = Retriever(backend, self.options["shots"], self.meter)
        self._shown = rendered(backend)

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """What the base model answers behind the examples of each item."""
        questions = list(dict.fromkeys(item.question for item in items))
        near = self._retriever(questions)
        places = [questions.index(item.question) for item in items]
        asked = []
        for item, place in zip(items, places, strict=True):
            nearest = near.index[place][near.weights[place] > 0].tolist()
            asked.append(self._behind([text for i in reversed(nearest) if (text := self._shown[i])], item))
        answers = []
        for shown, answer, place in zip(asked, self._base.answer(asked), places, strict=True):
            lost = self.backend.tokenizer.lost(shown)
            cut = {"prompt_tokens_cut": lost} if lost else {}
            asked_as = [shown.prompt] if shown.kind == TEXT else [context for context, _ in shown.options]
            details = self.backend.bank.details(near, place) | cut
            answers.append(replace(answer, details=details | {"rendered": list(dict.fromkeys(asked_as))}))
        return answers

    def _behind(self, examples: list[str], item: Item) -> Item:
        """The item with examples before it; a rendered chat with the tokens of as many as fit."""
        asked = item.with_context(examples)
        if item.prompt_ids is None:
            return asked
        tokenizer = self.backend.tokenizer
        room = tokenizer.max_length - decoding(item)[0] - len(item.prompt_ids)
        before = tokenizer.lm.tok_encode("\n\n".join([*examples, ""]))[-room:] if room > 0 else []
        return replace(asked, prompt_ids=(*before, *item.prompt_ids))


def rendered(backend: Workbench) -> list[str | None]:
    """Each reference as it is shown, question and right answer; None for one that can't be had without examples.

    With `scoring.num_fewshot` a reference's own prompt holds examples already: it is rendered anew without.
    """
    items: list[Item | None] = [entry.item for entry in backend.bank.items]
    if backend.cfg.scoring.num_fewshot:
        plain = {item.id: item for item in backend.draw_references(num_fewshot=0)[0]}
        items = [None if item is None else plain.get(item.id) for item in items]
    return [
        None if item is None or item.gold is None else "".join(item.requests[item.gold]) for item in items
    ]
