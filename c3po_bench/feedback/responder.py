"""How an arm of the feedback backend answers items: prompts about feedback, and stock questions with the same adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from typing import Any

from more_itertools import map_reduce

from c3po_bench import contract
from c3po_bench.contract import Item
from c3po_bench.feedback.answering import Answer, answer_batch, completion_ids, prompt_ids
from c3po_bench.feedback.arms import UNPARSED, PromptVariant
from c3po_bench.feedback.drift import token_drift
from c3po_bench.feedback.measures import compared
from c3po_bench.feedback.session import FeedbackSession
from c3po_bench.feedback.synthesis import FeedbackDataset
from c3po_bench.feedback.training.rows import Row
from c3po_bench.models.flops import counting, shape_of
from c3po_bench.models.ties import count_ties, family_with_routers
from c3po_bench.runtime.meter import Meter


class Responder:
    """Answers with the adapter of each prompt's feedback (or none), and notes drift and degeneration beside the answer.

    On stock tasks an arm with several adapters answers each item with one of them, by the item's key: the
    mean over items is the mean over adapters, at the price of one, and an item's answer does not depend on
    others.

    Args:
        variant: how prompts about feedback are worded, and where the answer comes from.
        datasets: the feedbacks that prompts may be about, with their examples.
        session: of the experiment.
        model: the model, with its adapters if it has any.
        adapters: of each feedback's id the name of the adapter that answers for it.
        meter: of the arm, for phases `score`, `generate` and `drift`; what all arms share is left out of it.
        batch_size: of stock items.
        counts_ties: whether routing ties of prompts about feedback are counted.
    """

    def __init__(
        self,
        variant: PromptVariant,
        datasets: Sequence[FeedbackDataset],
        session: FeedbackSession,
        model: Any,
        adapters: Mapping[str, str],
        meter: Meter,
        batch_size: int,
        counts_ties: bool = False,
    ) -> None:
        self.variant, self.session, self.model, self.adapters = variant, session, model, dict(adapters)
        self.context, self.meter, self.shape = session.context, meter, cache(partial(shape_of, model))
        self.datasets = {dataset.feedback.id: dataset for dataset in datasets}
        self.batch_size, self.counts_ties = batch_size, counts_ties

    @cached_property
    def _stock(self) -> Any:
        """A `StockScorer` of the model."""
        # slow to import, and needed by stock tasks alone
        from c3po_bench.models.stock_scoring import StockScorer

        return StockScorer(self.model, self.context.subject.tokenizer, self.batch_size)

    def answer(self, items: Sequence[Item]) -> list[contract.Answer]:
        """The answers to one chunk, in order."""
        answers: dict[tuple[str, int], contract.Answer] = {}
        groups = map_reduce(items, lambda item: item.metadata.get("feedback"))
        answers |= self._answer_stock(groups.pop(None, []))
        with self.meter.exclude():
            prompts = [item.prompt for group in groups.values() for item in group]
            baselines = self.session.baselines(prompts) if prompts else {}
        for feedback, group in groups.items():
            answers |= self._answer_feedback(str(feedback), group, [baselines[item.prompt] for item in group])
        return [answers[item.id] for item in items]

    def _answer_feedback(
        self, feedback: str, items: list[Item], baselines: list[Answer]
    ) -> dict[tuple[str, int], contract.Answer]:
        """The answers to prompts about one feedback, each beside what the base model answers."""
        with self.meter.phase("generate"):
            if self.variant.stored:
                texts = [
                    self._stored(item, baseline) for item, baseline in zip(items, baselines, strict=True)
                ]
            else:
                texts = self._generated(items, feedback)
            answers, marks = zip(*map(self._read, texts), strict=True)
        with self.meter.phase("drift"):
            drifts = self._drifts(items, baselines, feedback)
        found = {}
        for item, answer, mark, baseline, drift in zip(items, answers, marks, baselines, drifts, strict=True):
            details = compared(item, answer.text, answer.finished, answer.tokens, baseline)
            details["drift"] = None if drift is None else round(drift, 8)
            asked = self._prompt_ids(item, feedback)
            details["rendered"] = [self.context.subject.tokenizer.decode(asked)]
            if self.counts_ties and (ties := self._ties(item, answer.text)):
                details["routing_ties"] = ties
            found[item.id] = contract.Answer(
                text=answer.text, finished=answer.finished, details={**details, **mark}
            )
        return found

    def _ties(self, item: Item, answer: str) -> int:
        """Routing ties of a prompt and its answer, in a pass that is no part of the cost."""
        family = family_with_routers(self.model)
        if family is None:
            return 0
        tokenizer = self.context.subject.tokenizer
        ids = prompt_ids(tokenizer, item.prompt) + completion_ids(tokenizer, answer, finished=False)
        with self.meter.exclude():
            return count_ties(self.model, family, [ids])

    def _stored(self, item: Item, baseline: Answer) -> Answer:
        """The text that is looked up instead of generated."""
        if self.variant.stored == "revised":
            examples = self.datasets[item.metadata["feedback"]].select(item.metadata["scope"], "test")
            example = examples[item.metadata["example_id"]]
            if example.revised is not None:
                return Answer(example.revised, example.revised_finished, self._count(example.revised))
        return baseline

    def _count(self, text: str) -> int:
        return len(self.context.subject.tokenizer(text, add_special_tokens=False).input_ids)

    def _prompt_ids(self, item: Item, feedback: str) -> list[int]:
        """The prompt as this arm's model sees it."""
        text = item.prompt
        if self.variant.wrap:
            text = self.variant.wrap(self.datasets[feedback].feedback, text)
        return prompt_ids(self.context.subject.tokenizer, text)

    def _generated(self, items: list[Item], feedback: str) -> list[Answer]:
        cfg = self.context.cfg.answers
        cfg = replace(cfg, max_new_tokens=cfg.max_new_tokens * self.variant.length)
        prompts = [self._prompt_ids(item, feedback) for item in items]
        with self._active(self.adapters.get(feedback), "generate"):
            return answer_batch(self.model, self.context.subject.tokenizer, prompts, cfg, self.context.seed)

    def _read(self, generated: Answer) -> tuple[Answer, dict[str, bool]]:
        """The answer in what was generated.

        All of it, and a mark for its row, where the two can't be told apart.
        """
        if not self.variant.read:
            return generated, {}
        text = self.variant.read(generated.text)
        if text is None:
            return generated, {UNPARSED: True}
        return replace(generated, text=text, tokens=self._count(text)), {}

    def _drifts(self, items: list[Item], baselines: list[Answer], feedback: str) -> list[float | None]:
        """Drift along the baseline answers.

        None for looked-up texts that are no policy, 0 for the base model itself.
        """
        if self.variant.stored == "baseline":
            return [0.0] * len(items)
        if self.variant.stored or self.variant.read:
            return [None] * len(items)
        tokenizer = self.context.subject.tokenizer
        kept = [completion_ids(tokenizer, baseline.text, baseline.finished) for baseline in baselines]
        base = [Row(prompt_ids(tokenizer, item.prompt), ids) for item, ids in zip(items, kept, strict=True)]
        policy = [Row(self._prompt_ids(item, feedback), ids) for item, ids in zip(items, kept, strict=True)]
        adapter = self.adapters.get(feedback)
        return token_drift(
            self.model,
            base,
            policy,
            tokenizer.pad_token_id or 0,
            lambda: self._active(None, "drift"),
            lambda: self._active(adapter, "drift"),
        )

    @contextlib.contextmanager
    def _active(self, adapter: str | None, phase: str) -> Iterator[None]:
        """With this adapter active, or none at all; FLOPs go to `phase`."""
        active = contextlib.nullcontext()
        if adapter is not None:
            self.model.set_adapter(adapter)
        elif self.adapters:
            active = self.model.disable_adapter()
        with active, counting(self.model, self.shape(adapter)) as flops:
            yield
        self.meter.count(phase, sum(flops))

    def _answer_stock(self, items: list[Item]) -> dict[tuple[str, int], contract.Answer]:
        """By lm-eval's own scoring, each item with one adapter chosen by its key."""
        names = sorted(set(self.adapters.values()))
        groups = map_reduce(items, lambda item: int(item.key[:8], 16) % len(names) if names else -1)
        answers = {}
        for turn, group in groups.items():
            with self.meter.phase("score"), self._active(names[turn] if names else None, "score"):
                found = self._stock.answer(group)
            answers |= {item.id: answer for item, answer in zip(group, found, strict=True)}
        return answers
