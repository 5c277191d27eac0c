"""Any LM on feedback tasks, asked by the tuned model's chat template and measured as feedback arms are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from c3po_bench.feedback.answering import Answer, prompt_ids, stop_ids
from c3po_bench.feedback.measures import degeneration, similarity
from c3po_bench.feedback.session import FeedbackSession
from c3po_bench.feedback.tasks import settings_of


class EchoLM(LM):
    """Passes stock tasks through; turns feedback prompts into chats, and notes what came back.

    It measures no drift.
    """

    def __init__(self, inner: LM, session: FeedbackSession) -> None:
        super().__init__()
        self.inner, self.session = inner, session
        self.examples = {
            (d.feedback.id, e.scope, e.prompt): e
            for d in session.tests
            for e in d.examples
            if e.split == "test"
        }
        self._details: dict[tuple[str, int], dict[str, Any]] = {}

    @property
    def tokenizer_name(self) -> str:
        """The inner LM's."""
        return self.inner.tokenizer_name

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The inner LM's."""
        return self.inner.loglikelihood(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The inner LM's."""
        return self.inner.loglikelihood_rolling(requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The inner LM's answers to the chats."""
        written: list[list[int]] = [[] for _ in requests]
        chats = [self._as_chat(request, ids) for request, ids in zip(requests, written, strict=True)]
        texts = self.inner.generate_until(chats)
        prompts = [str(request.args[0]) for request in requests if "feedback" in settings_of(request)]
        known = self.session.baselines(prompts)
        answers = zip(requests, texts, written, strict=True)
        return [self._noted(request, text.strip(), len(ids), known) for request, text, ids in answers]

    def pop_details(self) -> dict[tuple[str, int], dict[str, Any]]:
        """The inner LM's, with the feedback rows' own."""
        details = dict(getattr(self.inner, "pop_details", dict)())
        for key, mine in self._details.items():
            details[key] = {**details.get(key, {}), **mine}
        self._details = {}
        return details

    def _as_chat(self, request: Instance, written: list[int]) -> Instance:
        """The chat as token ids, and those that end an answer: of text and EOS, an LM would make others.

        `written` is where the LM puts the answer's ids: its text alone does not say how many there were.
        """
        prompt, settings = str(request.args[0]), settings_of(request)
        if "feedback" not in settings:
            return request
        subject = self.session.context.subject
        ids, stops = prompt_ids(subject.tokenizer, prompt), stop_ids(subject.tokenizer, subject.model)
        kept = {k: v for k, v in settings.items() if k not in ("feedback", "scope")}
        return Instance(
            request_type=request.request_type,
            doc=request.doc,
            idx=request.idx,
            arguments=(
                subject.tokenizer.decode(ids),
                {**kept, "prompt_ids": ids, "stop_ids": stops, "written_ids": written},
            ),
            metadata=(request.task_name, request.doc_id, request.repeats),
        )

    def _noted(self, request: Instance, text: str, tokens: int, known: Mapping[str, Answer]) -> str:
        prompt, settings = str(request.args[0]), settings_of(request)
        if "feedback" in settings:
            example, baseline = self.examples[settings["feedback"], settings["scope"], prompt], known[prompt]
            finished = tokens < int(settings.get("max_gen_toks", 0))
            self._details[str(request.task_name), int(request.doc_id or 0)] = {
                "scope": example.scope,
                "feedback_id": settings["feedback"],
                "category": example.category,
                "prompt": prompt,
                "response": text,
                "baseline_response": baseline.text,
                "drift": None,
                "similarity": round(similarity(text, baseline.text), 6),
                "degeneration": degeneration(text, finished, tokens, baseline.tokens),
            }
        return text
