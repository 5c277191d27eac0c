"""A rewired model as lm-eval sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from c3po_bench.rewiring.questions import Tokenizer
    from c3po_bench.rewiring.rewirer import Rewirer


class RewiredLM(LM):
    """Answers requests with a `Rewirer`.

    With no recipe it is the base model, prefixes shared between choices.
    """

    def __init__(self, rewirer: Rewirer, tokenizer: Tokenizer):
        super().__init__()
        self.rewirer, self.tokenizer = rewirer, tokenizer
        self._details: dict[tuple[str, int], dict[str, Any]] = {}

    @property
    def tokenizer_name(self) -> str:
        """Of the underlying model."""
        return self.tokenizer.lm.tokenizer_name

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-likelihoods of the choices, all items of `requests` at once."""
        out: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        grouped = self.tokenizer.of_requests(requests)
        answers = self.rewirer.answer([question for question, _ in grouped])
        for (question, positions), answer in zip(grouped, answers, strict=True):
            for position, score in zip(positions, answer.scores, strict=True):
                out[position] = score
            if answer.details:
                self._details[question.key] = answer.details
        return out

    def pop_details(self) -> dict[tuple[str, int], dict[str, Any]]:
        """What there is to record of the items answered since the last call."""
        details, self._details = self._details, {}
        return details

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy texts, the pathway found for each prompt held while it is written."""
        from c3po_bench.rewiring.generation import generate

        return [generate(self, request) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Whole texts have no prompt, so there is nothing to rewire: the base model's value."""
        return self.tokenizer.lm.loglikelihood_rolling(requests)
