"""Engines: how the model is run under another pathway. `naive` is the definition; `suffix` must equal it."""

import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch

from c3po_bench.models.routing import family_of, probe_ids
from c3po_bench.registry import Registry
from c3po_bench.rewiring.engines.base import Engine
from c3po_bench.rewiring.engines.facts import NoSuffixError
from c3po_bench.rewiring.engines.naive import NaiveEngine
from c3po_bench.rewiring.engines.suffix import SuffixEngine
from c3po_bench.rewiring.hook import check_override
from c3po_bench.rewiring.pathway import Mixer
from c3po_bench.rewiring.states import Prompt

log = logging.getLogger(__name__)

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""By how much the engines' log-likelihoods of two tokens may differ; `HALF_TOLERANCE` in half precision."""
HALF_TOLERANCE = 0.5

_lacking: WeakKeyDictionary[Any, dict[Any, str]] = WeakKeyDictionary()
"""Of models that were tried in this process, by layers and position: why `suffix` can't run them, or nothing."""
ENGINES: Registry[type[Engine]] = Registry("engine", {"naive": NaiveEngine, "suffix": SuffixEngine})


def load_engine(name: str, model: Any, layers: list[int], position: str = "last") -> Engine:
    """The engine called `name` for `model`, overriding decoder layers `layers`.

    In the place of `suffix` it is `naive`, with a note, where `suffix` can't run the model or gives other
    numbers for one short prompt. That is tried once for a model in a process.

    Raises:
        UserError: for an unknown name, or a model whose experts an override does not reach.
    """
    kind, found = ENGINES[name], _lacking.setdefault(model, {})
    tried = (kind, tuple(layers), position)
    if tried not in found:
        check_override(family_of(model), model, layers)
        found[tried] = _why_not(model, layers, position) if kind is SuffixEngine else ""
    if not (reason := found[tried]):
        return kind(model, layers, position)
    naive = NaiveEngine(model, layers, position)
    kind_of_model = naive.family.model_type
    naive.notes.append(f"engine=naive answers in the place of suffix, for {kind_of_model}: {reason}")
    log.warning(naive.notes[-1])
    return naive


def _why_not(model: Any, layers: list[int], position: str) -> str:
    """Why the engine `suffix` can't run a model as `naive` does; nothing where it can."""
    try:
        suffix = SuffixEngine(model, layers, position)
        difference = _difference(NaiveEngine(model, layers, position), suffix)
    except NoSuffixError as error:
        return str(error)
    if difference <= TOLERANCE.get(suffix.dtype, HALF_TOLERANCE):
        return ""
    return f"its log-likelihoods of a short prompt differ by {difference:.2g}"


@torch.no_grad()
def _difference(naive: Engine, suffix: Engine) -> float:
    """By how much the engines differ on one short prompt, as it is and under an override."""
    ids = tuple(probe_ids(naive.model)[0].tolist())
    prompts, rows = [Prompt(ids, (ids[:2], ids[2:]))], [(0, 0), (0, 1)]
    found = []
    for engine in (naive, suffix):
        states = engine.read_new(prompts)
        own = engine.original_pathways(states)
        other = own.flip(-1)
        mixture = Mixer(engine.family)(other, own, torch.ones_like(own).bool(), "hard")
        batch = engine.batch(states, rows)
        owner = torch.zeros(2, dtype=torch.long, device=engine.device)
        first = batch.score(mixture, owner)[0]
        again = first if engine is naive else batch.score(mixture, owner)[0]  # from what it has kept by then
        found.append(torch.stack([batch.score(None)[0], first, again]))
    return float((found[0] - found[1]).abs().max().nan_to_num(float("inf")))
