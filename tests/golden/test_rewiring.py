"""The official code's numbers (tianyi-lab/C3PO, transformers 4.48.3): its kernel-weighted pathway, and the logits under it.

That code is our `kernel_regression` arm with `search=fixed alpha=0`, `experts=all` and the linear kernel.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from c3po_bench.rewiring.config import KernelConfig, MethodConfig
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.hook import override
from c3po_bench.rewiring.kernels import kernel_weights
from c3po_bench.rewiring.methods import Queries
from c3po_bench.rewiring.methods.kernel_regression import kernel_regression
from c3po_bench.rewiring.neighbors import Neighborhood
from c3po_bench.rewiring.pathway import Mixer, core_experts
from c3po_bench.rewiring.states import Prompt

FOLDER = (
    Path(os.environ.get("C3PO_GOLDEN_DIR", Path(__file__).parents[2] / ".." / "shared" / "golden"))
    / "rewiring"
)
CASES = json.loads((FOLDER / "cases.json").read_text()) if FOLDER.is_dir() else []
pytestmark = [
    pytest.mark.golden,
    pytest.mark.skipif(not CASES, reason=f"no golden cases at {FOLDER} (set C3PO_GOLDEN_DIR)"),
]
TOLERANCE = {"atol": 1e-4, "rtol": 0.0}
ENGINES = ("naive", "suffix")


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER / "tiny_olmoe", dtype=torch.float32).eval()


def official_pathway(engine, case) -> tuple[torch.Tensor, torch.Tensor]:
    """Our arm's pathway for a case [1, layers, experts], and the item's own."""
    vocabulary = tuple((token,) for token in range(2))
    test = engine.read([Prompt(tuple(case["input_ids"]), vocabulary)])
    references = engine.read([Prompt(tuple(ids), vocabulary) for ids in case["reference_ids"]])
    method = MethodConfig(experts="all", kernel=KernelConfig(name="linear"))
    similarity = torch.tensor([case["similarities"]])
    weights = kernel_weights(method.kernel, similarity, torch.ones_like(similarity, dtype=torch.bool))
    index = torch.arange(len(references))[None]
    own = engine.original_pathways(test)
    queries = Queries(
        own,
        core_experts(own, method.experts, engine.family.top_k),
        Neighborhood(index, similarity, weights, torch.zeros(1)),
        engine.original_pathways(references),
        lambda pathway: pathway.sum((1, 2)) * 0.0,
        method,
        [0],
    )
    return kernel_regression(queries, search="fixed", alpha=0.0).pathway, own


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_base_logits(model, case):
    with torch.no_grad():
        logits = model(torch.tensor([case["input_ids"]])).logits[0, -1]
    torch.testing.assert_close(logits, torch.tensor(case["base_last_logits"]), **TOLERANCE)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_pathway(model, case, name):
    pathway, _ = official_pathway(load_engine(name, model, case["layers"]), case)
    torch.testing.assert_close(pathway[0], torch.tensor(case["pathway"]), **TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_rewired_logits(model, case):
    engine = load_engine("naive", model, case["layers"])
    pathway, own = official_pathway(engine, case)
    mixture = Mixer(engine.family)(pathway, own, torch.ones_like(own, dtype=torch.bool), "hard")
    last = torch.tensor([len(case["input_ids"]) - 1])
    with torch.no_grad(), override(engine.family, model, case["layers"], last, mixture):
        logits = model(torch.tensor([case["input_ids"]])).logits[0, -1]
    expected = torch.tensor(case["rewired_last_logits"])
    torch.testing.assert_close(logits, expected, **TOLERANCE)
    assert (expected - torch.tensor(case["base_last_logits"])).abs().max() > 0.1, "a case that shows nothing"


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_engines_score_every_next_token_so(model, case, name):
    """The log-likelihood of each token of the vocabulary, as arms are scored."""
    expected = torch.tensor(case["rewired_last_logits"])
    engine = load_engine(name, model, case["layers"])
    pathway, own = official_pathway(engine, case)
    mixture = Mixer(engine.family)(pathway, own, torch.ones_like(own, dtype=torch.bool), "hard")
    states = engine.read([Prompt(tuple(case["input_ids"]), tuple((t,) for t in range(len(expected))))])
    batch = engine.batch(states, [(0, token) for token in range(len(expected))])
    with torch.no_grad():
        scores, greedy = batch.score(mixture, torch.zeros(len(expected), dtype=torch.long))
    torch.testing.assert_close(scores, expected.log_softmax(-1), **TOLERANCE)
    assert greedy.nonzero().flatten().tolist() == [int(expected.argmax())]
