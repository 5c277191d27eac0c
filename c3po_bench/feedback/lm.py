"""The LM that lm-eval scores: one arm of the feedback backend, on feedback tasks and on stock tasks alike."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from c3po_bench.feedback.answering import Answer, answer_batch, completion_ids, prompt_ids
from c3po_bench.feedback.arms import BASELINES, UNPARSED, PromptVariant
from c3po_bench.feedback.drift import token_drift
from c3po_bench.feedback.measures import degeneration, similarity
from c3po_bench.feedback.session import FeedbackSession
from c3po_bench.feedback.synthesis import Example, FeedbackDataset
from c3po_bench.feedback.tasks import settings_of
from c3po_bench.feedback.training.rows import Row
from c3po_bench.tasks.taskset import quiet

Spend = Callable[[str, float], None]


class FeedbackLM(LM):
    """Answers with the adapter of each prompt's feedback, or none, and notes drift and degeneration.

    On stock tasks an arm with several adapters answers each item with one of them, by the item's content
    hash: the mean over items is the mean over adapters, at the price of one, and an item's answer does not
    depend on its neighbors.
    """

    def __init__(
        self,
        variant: PromptVariant,
        datasets: list[FeedbackDataset],
        session: FeedbackSession,
        model: Any,
        adapters: Mapping[str, str],
        spend: Spend,
        batch_size: int,
    ) -> None:
        super().__init__()
        self.variant, self.session, self.model, self.adapters = variant, session, model, dict(adapters)
        self.context = session.context
        self.spend, self.batch_size = spend, batch_size
        self.feedbacks = {d.feedback.id: d.feedback for d in datasets}
        self.examples: dict[tuple[str, str, str], Example] = {
            (d.feedback.id, e.scope, e.prompt): e for d in datasets for e in d.examples if e.split == "test"
        }
        self._details: dict[tuple[str, int], dict[str, Any]] = {}
        self._stock: Any = None

    @property
    def tokenizer_name(self) -> str:
        """Of the model being tuned."""
        return str(self.context.subject.tokenizer.name_or_path)

    def pop_details(self) -> dict[tuple[str, int], dict[str, Any]]:
        """What belongs into the sample rows since the last call."""
        details, self._details = self._details, {}
        return details

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answers, in order."""
        del disable_tqdm
        answers: list[str] = [""] * len(requests)
        groups = defaultdict(list)
        for position, request in enumerate(requests):
            groups[settings_of(request).get("feedback")].append(position)
        if stock := groups.pop(None, []):
            for position, text in zip(
                stock, self._by_adapter("generate_until", [requests[p] for p in stock]), strict=True
            ):
                answers[position] = text
        started = time.perf_counter()
        known = self.session.baselines(
            [str(requests[p].args[0]) for positions in groups.values() for p in positions]
        )
        self.spend(BASELINES, time.perf_counter() - started)
        for feedback_id, positions in groups.items():
            texts = self._answer([requests[p] for p in positions], feedback_id, known)
            for position, text in zip(positions, texts, strict=True):
                answers[position] = text
        return answers

    def _answer(self, requests: list[Instance], feedback_id: str, known: Mapping[str, Answer]) -> list[str]:
        """The answers to prompts about one piece, with their details noted.

        `known` are the base model's answers by prompt.
        """
        examples = [self.examples[feedback_id, settings_of(r)["scope"], str(r.args[0])] for r in requests]
        baselines = [known[e.prompt] for e in examples]
        started = time.perf_counter()
        if self.variant.stored:
            raw = [self._stored(*pair) for pair in zip(examples, baselines, strict=True)]
        else:
            raw = self._generated(examples, feedback_id)
        answers, gaps = zip(*map(self._read, raw), strict=True)
        self.spend("generate", time.perf_counter() - started)
        started = time.perf_counter()
        drifts = self._drifts(examples, baselines, feedback_id)
        self.spend("drift", time.perf_counter() - started)
        rows = zip(requests, examples, baselines, answers, gaps, drifts, strict=True)
        for request, example, baseline, answer, gap, drift in rows:
            self._details[str(request.task_name), int(request.doc_id or 0)] = {
                "scope": example.scope,
                "feedback_id": feedback_id,
                "category": example.category,
                "prompt": example.prompt,
                "response": answer.text,
                "baseline_response": baseline.text,
                "drift": None if drift is None else round(drift, 8),
                "similarity": round(similarity(answer.text, baseline.text), 6),
                "degeneration": degeneration(answer.text, answer.finished, answer.tokens, baseline.tokens),
                **gap,
            }
        return [answer.text for answer in answers]

    def _stored(self, example: Example, baseline: Answer) -> Answer:
        if self.variant.stored == "revised" and example.revised is not None:
            tokens = len(self.context.subject.tokenizer(example.revised, add_special_tokens=False).input_ids)
            return Answer(example.revised, example.revised_finished, tokens)
        return baseline

    def _prompt_ids(self, example: Example, feedback_id: str) -> list[int]:
        """The prompt as this arm's model sees it, as token ids."""
        text = (
            self.variant.wrap(self.feedbacks[feedback_id], example.prompt)
            if self.variant.wrap
            else example.prompt
        )
        return prompt_ids(self.context.subject.tokenizer, text)

    def _generated(self, examples: list[Example], feedback_id: str) -> list[Answer]:
        cfg = self.context.cfg.answers
        cfg = replace(cfg, max_new_tokens=cfg.max_new_tokens * self.variant.length)
        prompts = [self._prompt_ids(e, feedback_id) for e in examples]
        with self._active(self.adapters.get(feedback_id)):
            return answer_batch(self.model, self.context.subject.tokenizer, prompts, cfg, self.context.seed)

    def _read(self, raw: Answer) -> tuple[Answer, dict[str, bool]]:
        """The answer in what was generated, and its tokens.

        All of it, and a mark in its row, where the two can't be told apart.
        """
        if not self.variant.read:
            return raw, {}
        text = self.variant.read(raw.text)
        if text is None:
            return raw, {UNPARSED: True}
        tokens = len(self.context.subject.tokenizer(text, add_special_tokens=False).input_ids)
        return replace(raw, text=text, tokens=tokens), {}

    def _drifts(
        self, examples: list[Example], baselines: list[Answer], feedback_id: str
    ) -> list[float | None]:
        """Drift along the baseline answers.

        None for looked-up texts that are no policy, 0 for the base model itself.
        """
        if self.variant.stored == "baseline":
            return [0.0] * len(examples)
        if self.variant.stored or self.variant.read:
            return [None] * len(examples)
        tokenizer = self.context.subject.tokenizer
        kept = [completion_ids(tokenizer, baseline.text, baseline.finished) for baseline in baselines]
        base = [Row(prompt_ids(tokenizer, e.prompt), ids) for e, ids in zip(examples, kept, strict=True)]
        policy = [Row(self._prompt_ids(e, feedback_id), ids) for e, ids in zip(examples, kept, strict=True)]
        return token_drift(
            self.model,
            base,
            policy,
            tokenizer.pad_token_id or 0,
            lambda: self._active(None),
            lambda: self._active(self.adapters.get(feedback_id)),
        )

    @contextlib.contextmanager
    def _active(self, adapter: str | None) -> Iterator[None]:
        """With this adapter active, or none at all."""
        if not self.adapters:
            yield
        elif adapter is None:
            with self.model.disable_adapter():
                yield
        else:
            self.model.set_adapter(adapter)
            yield

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Stock multiple-choice tasks."""
        return self._by_adapter("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Stock perplexity tasks."""
        return self._by_adapter("loglikelihood_rolling", requests)

    def _by_adapter(self, kind: str, requests: list[Instance]) -> list[Any]:
        """lm-eval's own HFLM over the model, each item with one adapter chosen by its content."""
        names = sorted(set(self.adapters.values()))
        groups = defaultdict(list)
        for position, request in enumerate(requests):
            turn = int(str(request.doc["key"])[:8], 16) % len(names) if names else None
            groups[turn].append(position)
        answers: list[Any] = [None] * len(requests)
        for turn, positions in groups.items():
            with self._active(None if turn is None else names[turn]):
                results = getattr(self._hflm(), kind)([requests[p] for p in positions], disable_tqdm=True)
            for position, answer in zip(positions, results, strict=True):
                answers[position] = answer
        return answers

    def _hflm(self) -> Any:
        if self._stock is None:
            from lm_eval.models import huggingface  # slow to import, and needed by stock tasks alone

            hflm: Any = huggingface.HFLM
            with quiet("lm_eval.models.huggingface"):
                self._stock = hflm(
                    pretrained=self.model,
                    tokenizer=self.context.subject.tokenizer,
                    batch_size=self.batch_size,
                )
        return self._stock
