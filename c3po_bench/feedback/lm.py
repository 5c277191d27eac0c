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

from c3po_bench.feedback.answering import Answer, answer_batch
from c3po_bench.feedback.chat import completion_ids, prompt_ids
from c3po_bench.feedback.drift import token_drift
from c3po_bench.feedback.measures import degeneration, similarity
from c3po_bench.feedback.studio import Studio
from c3po_bench.feedback.synthesis import Example, Material
from c3po_bench.feedback.tasks import settings_of
from c3po_bench.feedback.training.rows import Row
from c3po_bench.feedback.voices import UNPARSED, Voice

Spend = Callable[[str, float], None]
BASELINES = "baselines"
"""The phase in which the base model's answers are written, which all arms share and none is charged for."""


class FeedbackLM(LM):
    """Answers with the adapter of each prompt's piece (or none), and notes drift and degeneration beside each answer.

    On stock tasks an arm with several adapters answers each item with one of them, by the item's content
    hash: the mean over items is the mean over adapters, at the price of one, and an item's answer does not
    depend on its neighbors.
    """

    def __init__(
        self,
        voice: Voice,
        materials: list[Material],
        studio: Studio,
        model: Any,
        adapters: Mapping[str, str],
        spend: Spend,
        batch_size: int,
    ) -> None:
        super().__init__()
        self.voice, self.studio, self.model, self.adapters = voice, studio, model, dict(adapters)
        self.workshop = studio.workshop
        self.spend, self.batch_size = spend, batch_size
        self.pieces = {m.piece.id: m.piece for m in materials}
        self.examples: dict[tuple[str, str, str], Example] = {
            (m.piece.id, e.scope, e.prompt): e for m in materials for e in m.examples if e.split == "test"
        }
        self._details: dict[tuple[str, int], dict[str, Any]] = {}
        self._stock: Any = None

    @property
    def tokenizer_name(self) -> str:
        """Of the model being tuned."""
        return str(self.workshop.subject.tokenizer.name_or_path)

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
        told = self.studio.baselines(
            [str(requests[p].args[0]) for positions in groups.values() for p in positions]
        )
        self.spend(BASELINES, time.perf_counter() - started)
        for piece_id, positions in groups.items():
            found = self._answer([requests[p] for p in positions], piece_id, told)
            for position, text in zip(positions, found, strict=True):
                answers[position] = text
        return answers

    def _answer(self, requests: list[Instance], piece_id: str, told: Mapping[str, Answer]) -> list[str]:
        """The answers to prompts about one piece, with their details noted.

        `told` is what the base model answers.
        """
        examples = [self.examples[piece_id, settings_of(r)["scope"], str(r.args[0])] for r in requests]
        baselines = [told[e.prompt] for e in examples]
        started = time.perf_counter()
        if self.voice.stored:
            said = [self._stored(*pair) for pair in zip(examples, baselines, strict=True)]
        else:
            said = self._generated(examples, piece_id)
        answers, gaps = zip(*map(self._read, said), strict=True)
        self.spend("generate", time.perf_counter() - started)
        started = time.perf_counter()
        drifts = self._drifts(examples, baselines, piece_id)
        self.spend("drift", time.perf_counter() - started)
        rows = zip(requests, examples, baselines, answers, gaps, drifts, strict=True)
        for request, example, baseline, answer, gap, drift in rows:
            self._details[str(request.task_name), int(request.doc_id or 0)] = {
                "scope": example.scope,
                "feedback_id": piece_id,
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
        if self.voice.stored == "revised" and example.revised is not None:
            tokens = len(self.workshop.subject.tokenizer(example.revised, add_special_tokens=False).input_ids)
            return Answer(example.revised, example.revised_finished, tokens)
        return baseline

    def _worded(self, example: Example, piece_id: str) -> list[int]:
        """The prompt as this arm's model sees it, as token ids."""
        text = self.voice.wrap(self.pieces[piece_id], example.prompt) if self.voice.wrap else example.prompt
        return prompt_ids(self.workshop.subject.tokenizer, text)

    def _generated(self, examples: list[Example], piece_id: str) -> list[Answer]:
        cfg = self.workshop.cfg.answers
        cfg = replace(cfg, max_new_tokens=cfg.max_new_tokens * self.voice.longer)
        prompts = [self._worded(e, piece_id) for e in examples]
        with self._speaking(self.adapters.get(piece_id)):
            return answer_batch(self.model, self.workshop.subject.tokenizer, prompts, cfg, self.workshop.seed)

    def _read(self, said: Answer) -> tuple[Answer, dict[str, bool]]:
        """The answer in what was said, and its tokens.

        All of it, and a mark in its row, where the two can't be told apart.
        """
        if not self.voice.read:
            return said, {}
        text = self.voice.read(said.text)
        if text is None:
            return said, {UNPARSED: True}
        tokens = len(self.workshop.subject.tokenizer(text, add_special_tokens=False).input_ids)
        return replace(said, text=text, tokens=tokens), {}

    def _drifts(self, examples: list[Example], baselines: list[Answer], piece_id: str) -> list[float | None]:
        """Drift along the baseline answers.

        None for looked-up texts that are no policy, 0 for the base model itself.
        """
        if self.voice.stored == "baseline":
            return [0.0] * len(examples)
        if self.voice.stored or self.voice.read:
            return [None] * len(examples)
        tokenizer = self.workshop.subject.tokenizer
        kept = [completion_ids(tokenizer, baseline.text, baseline.finished) for baseline in baselines]
        base = [Row(prompt_ids(tokenizer, e.prompt), ids) for e, ids in zip(examples, kept, strict=True)]
        policy = [Row(self._worded(e, piece_id), ids) for e, ids in zip(examples, kept, strict=True)]
        return token_drift(
            self.model,
            base,
            policy,
            tokenizer.pad_token_id or 0,
            lambda: self._speaking(None),
            lambda: self._speaking(self.adapters.get(piece_id)),
        )

    @contextlib.contextmanager
    def _speaking(self, adapter: str | None) -> Iterator[None]:
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
            with self._speaking(None if turn is None else names[turn]):
                found = getattr(self._hflm(), kind)([requests[p] for p in positions], disable_tqdm=True)
            for position, answer in zip(positions, found, strict=True):
                answers[position] = answer
        return answers

    def _hflm(self) -> Any:
        if self._stock is None:
            from lm_eval.models import huggingface

            from c3po_bench.tasks.taskset import quiet

            made: Any = huggingface.HFLM
            subject = self.workshop.subject
            with quiet("lm_eval.models.huggingface"):
                self._stock = made(
                    pretrained=self.model, tokenizer=subject.tokenizer, batch_size=self.batch_size
                )
        return self._stock
