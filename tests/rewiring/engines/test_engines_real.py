"""Both engines on real questions of the embedded model: same predictions, scores and gradients.

`C3PO_ENGINE_ITEMS=200` widens it; that takes an hour and a half on one core, since the naive engine runs whole forward passes.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch

from c3po_bench.config import Config, ModelConfig
from c3po_bench.evaluate import run as harness
from c3po_bench.models.loading import load
from c3po_bench.perf.workload import Work, questions
from c3po_bench.rewiring import arms
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.states import Prompt

ITEMS = int(os.environ.get("C3PO_ENGINE_ITEMS", "8"))
DESCENTS = 2
ARMS = [
    name
    for name, row in arms.ARMS.items()
    if (row.builds == "solver" or name == "base")
    and name not in ("planted_optimum", "right_expert", "ngd_permuted_options")
]  # cloze: nothing to permute


@pytest.mark.slow
def test_every_arm_scores_alike(data_root, tmp_path):
    rows = {}
    for engine in ("suffix", "naive"):
        cfg = Config(name=engine, engine=engine, results_dir=str(tmp_path / engine), limit=ITEMS, arms=ARMS)
        cfg.tracking.mode, cfg.data.root = "disabled", str(data_root)
        cfg.tasks, cfg.references.tasks, cfg.references.limit = ["arc_easy"], ["openbookqa"], 60
        rows[engine] = {run.arm: run.samples() for run in harness.run(cfg)}
    for arm, fast in rows["suffix"].items():
        slow = {row["doc_hash"]: row for row in rows["naive"][arm]}
        assert len(fast) == len(slow) == ITEMS
        tied = 0
        for row in fast:
            other = slow[row["doc_hash"]]
            assert row["prediction"] == other["prediction"], (arm, row["doc_hash"])
            tied += row["loglikelihoods"] != pytest.approx(other["loglikelihoods"], abs=1e-4)
        # where two experts tie for the last place, a batch's make-up decides
        assert tied <= 0.05 * ITEMS, arm


@pytest.mark.slow
def test_gradients_are_the_same(data_root):
    """In double precision all of them; in single, where two experts all but tie for a place, a batch's make-up decides."""
    loaded = load(ModelConfig())
    asked = questions(loaded, 32, data_root)
    prompts = [Prompt(q.prompts[0].context, (q.prompts[0].continuations[q.item.gold or 0],)) for q in asked]
    for dtype in (torch.float32, torch.float64):
        model = copy.deepcopy(loaded.model).to(dtype)
        model.set_experts_implementation("eager")  # the grouped product knows no double precision
        depth = len(model.model.layers)
        found = []
        for name in ("naive", "suffix"):
            engine = load_engine(name, model, list(range(depth - 5, depth)))
            found.append(torch.cat([Work(engine, prompts[i : i + 8], 2).step() for i in (0, 8, 16, 24)]))
        errors = (found[0] - found[1]).flatten(1).norm(dim=1) / found[0].flatten(1).norm(dim=1)
        assert errors.median() < 1e-5, (dtype, errors)
        assert dtype == torch.float32 or errors.max() < 1e-5, errors


@pytest.mark.slow
def test_descents_end_alike_in_double_precision(data_root):
    """There rounding is too small to have two experts change places under one engine a step before the other."""
    loaded = load(ModelConfig())
    model = copy.deepcopy(loaded.model).double()
    model.set_experts_implementation("eager")
    asked = questions(loaded, 4 * DESCENTS, data_root)
    whole = [q.prompts[0] for q in asked]
    right = [
        Prompt(p.context, (p.continuations[q.item.gold or 0],)) for p, q in zip(whole, asked, strict=True)
    ]
    depth, found = len(model.model.layers), []
    rows = [(i, c) for i, p in enumerate(whole[:DESCENTS]) for c in range(len(p.continuations))]
    for name in ("naive", "suffix"):
        engine = load_engine(name, model, list(range(depth - 5, depth)))
        work = Work(engine, right, DESCENTS)
        pathway = work.solve(10).pathway
        mixture = work.mixer(pathway, work.original, work.core, "dense")
        scored, _ = engine.batch(engine.read(whole[:DESCENTS]), rows).score(
            mixture, torch.tensor([i for i, _ in rows])
        )
        found.append((pathway, scored.detach()))
    assert (found[0][0] - work.original).abs().max() > 1e-2  # the descents went somewhere
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-4)
