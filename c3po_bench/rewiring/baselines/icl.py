"""In-context learning: the nearest references, answered, stand before the question (the paper's ICL row, Table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, cast

from lm_eval.api.model import LM

from c3po_bench.errors import UserError
from c3po_bench.rewiring.baselines.arm import BaselineArm
from c3po_bench.rewiring.baselines.retrieval import Retriever
from c3po_bench.rewiring.generation import MAX_NEW_TOKENS
from c3po_bench.rewiring.lm import RewiredLM
from c3po_bench.rewiring.rewirer import Rewirer

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from c3po_bench.rewiring.backend import RewiringBackend


def icl(backend: RewiringBackend, *, shots: int = 5) -> IclArm:
    """Retrieved examples before each question, the most similar one last. The prompt differs from the base's.

    Args:
        backend: the workbench.
        shots: how many references are shown (the paper names no number).
    """
    if shots < 1:
        raise UserError(f"arm.icl.shots={shots}: must be 1 or more")
    return IclArm(backend, "icl", {"shots": shots})


class IclArm(BaselineArm):
    """See `icl`."""

    def settings(self) -> dict[str, Any]:
        """The only arm whose prompts are not the base's: tables say so."""
        return {"prompt_differs": True, **super().settings()}

    def lm(self) -> LM:
        """The base model behind retrieved examples."""
        backend = self.backend
        plain = RewiredLM(
            Rewirer(backend.engine, backend.cfg.method, None, meter=self.meter), backend.tokenizer
        )
        return IclLM(plain, Retriever(backend, self.options["shots"], self.meter), rendered(backend))


def rendered(backend: RewiringBackend) -> list[str | None]:
    """Each reference as it is shown, question and right answer.

    None for one that can't be had without examples.

    With `scoring.num_fewshot` a reference's own prompt holds examples already: it is rendered anew without.
    """
    items = backend.bank.items
    if backend.cfg.scoring.num_fewshot:
        plain = {(item.task, item.doc_id): item for item in backend.draw_references(num_fewshot=0)[0]}
        found = [plain.get((item.task, item.doc_id)) for item in items]
    else:
        found = list(items)
    return [None if item is None else "".join(item.pairs[item.gold]) for item in found]


class IclLM(LM):
    """Puts the shots before every context and asks the plain model."""

    def __init__(self, plain: RewiredLM, retriever: Retriever, shown: list[str | None]):
        super().__init__()
        self.plain, self.retriever, self.shown = plain, retriever, shown
        self._details: dict[tuple[str, int], dict[str, Any]] = {}

    @property
    def tokenizer_name(self) -> str:
        """Of the underlying model."""
        return self.plain.tokenizer_name

    def _shown(self, requests: Sequence[Instance]) -> list[Instance]:
        """The requests with their item's shots before the context."""
        texts = list(dict.fromkeys(str(request.doc["question"]) for request in requests))
        found = dict(zip(texts, self.retriever(texts), strict=True))
        out = []
        for request in requests:
            places, _, details = found[str(request.doc["question"])]
            self._details[str(request.task_name), int(request.doc_id or 0)] = details
            examples = [text for place in reversed(places) if (text := self.shown[place]) is not None]
            asked, arguments = copy(request), cast("tuple[str, Any]", request.args)
            text, settings = arguments
            if isinstance(settings, dict) and "prompt_ids" in settings:
                settings = {**settings, "prompt_ids": self._behind("\n\n".join([*examples, ""]), settings)}
            asked.arguments = ("\n\n".join([*examples, text]), settings)
            out.append(asked)
        return out

    def _behind(self, shots: str, settings: dict[str, Any]) -> list[int]:
        """The prompt's own ids behind those of as many shots as fit."""
        hf, own = self.plain.tokenizer.lm, settings["prompt_ids"]
        room = hf.max_length - int(settings.get("max_gen_toks", MAX_NEW_TOKENS)) - len(own)
        return (hf.tok_encode(shots)[-room:] if room > 0 else []) + own

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-likelihoods after the shots."""
        return self.plain.loglikelihood(self._shown(requests))

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Texts written after the shots."""
        return self.plain.generate_until(self._shown(requests))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Whole texts have no question to retrieve by: the plain model's value."""
        return self.plain.loglikelihood_rolling(requests)

    def pop_details(self) -> dict[tuple[str, int], dict[str, Any]]:
        """The neighbors shown for each item."""
        details, self._details = self._details, {}
        return details
