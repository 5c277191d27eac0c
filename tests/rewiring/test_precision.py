"""The engines agree in bfloat16 too and, where there is a GPU, on it; and every arm answers there as on the processor."""

from __future__ import annotations

import pytest
import torch
from rewiring_world import FAMILIES, all_rows, both_engines, make_prompts

from c3po_bench.evaluate.run import run
from c3po_bench.models.tiny import tiny_model
from c3po_bench.rewiring import arms
from c3po_bench.rewiring.pathway import Mixer, core_experts

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]
ARMS = [name for name in arms.ARMS if name not in ("planted_optimum", "right_expert")]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("mixing", ["hard", "dense"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_engines_agree(kind, mixing, dtype, device):
    model, prompts = tiny_model(kind).to(device, dtype), make_prompts(5, seed=1)
    naive, suffix = both_engines(model)
    rows, found = all_rows(prompts), []
    owner = torch.tensor([i for i, _ in rows], device=device)
    own = naive.original_pathways(naive.read(prompts))
    core = core_experts(own, "top:6", naive.family.top_k)
    noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(0)).to(own)
    for engine in (naive, suffix):
        pathway = (own.log() + noise).softmax(-1).requires_grad_()
        batch = engine.batch(engine.read(prompts), rows)
        scores, _ = batch.score(Mixer(engine.family)(pathway, own, core, mixing), owner)
        assert (scores - batch.score(None)[0]).abs().max() > 1e-3, "the override changed nothing"
        found.append((scores.detach(), torch.autograd.grad(scores.sum(), pathway)[0]))
    (s1, g1), (s2, g2) = found
    loose = dtype == torch.bfloat16
    torch.testing.assert_close(s1, s2, atol=0.3 if loose else 3e-4, rtol=0.02 if loose else 1e-4)
    torch.testing.assert_close(g1, g2, atol=0.5 if loose else 2e-3, rtol=0.1 if loose else 1e-3)


@gpu
def test_every_arm_answers_as_on_the_processor(experiment, tmp_path):
    found = {}
    for device in ("cpu", "cuda"):
        cfg = experiment(arms=ARMS, results_dir=str(tmp_path / device))
        cfg.model.device = device
        found[device] = {
            r.arm: {row["doc_id"]: row["loglikelihoods"] for row in r.samples()} for r in run(cfg)
        }
    for arm, items in found["cpu"].items():
        for item, expected in items.items():
            assert found["cuda"][arm][item] == pytest.approx(expected, abs=0.05), (arm, item)
