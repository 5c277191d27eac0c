"""A model over memory and disk, or several GPUs, answers as on one device; what can't be had is said in one line."""

from __future__ import annotations

import json

import pytest
import torch
from rewiring_world import all_rows, make_prompts

from c3po_bench.config import ModelConfig
from c3po_bench.errors import UserError
from c3po_bench.models import loading
from c3po_bench.models.placement import is_spread
from c3po_bench.models.routing import family_of
from c3po_bench.models.tiny import tiny_model, tiny_tokenizer
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.engines.suffix import SuffixEngine
from c3po_bench.rewiring.pathway import Mixer, core_experts

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two GPUs here")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a tiny model of a family that was saved, as the config of `changes` says."""
    monkeypatch.setenv("C3PO_CACHE", str(tmp_path / "cache"))

    def get(kind="olmoe", **changes):
        folder = tmp_path / kind
        if not folder.exists():
            tiny_model(kind).save_pretrained(folder)
            tiny_tokenizer().save_pretrained(folder)
        loading._loaded.clear()
        cfg = ModelConfig(**{"name": kind, "kind": "hf", "path": str(folder), "device": "cpu", **changes})
        return loading.load(cfg)

    return get


def alternating(path, count: int, places: tuple):
    """A file that puts layers in turn on two places, the embedding on the first, norm and head on the second."""
    place = {f"model.layers.{i}": places[i % 2] for i in range(count)}
    place |= {"model.embed_tokens": places[0], "model.rotary_emb": places[0]}
    path.write_text(json.dumps(place | {"model.norm": places[1], "lm_head": places[1]}))
    return str(path)


@pytest.mark.parametrize(
    "places", [("cpu", "disk"), pytest.param((0, 1), marks=two_gpus)], ids=["disk", "gpus"]
)
@pytest.mark.parametrize("kind", ["olmoe", "deepseek_v2", "afmoe", "granitemoe_swa"])
@pytest.mark.parametrize("name", ["naive", "suffix"])
def test_a_model_over_two_places_answers_as_on_one(load, tmp_path, kind, name, places):
    """Log-likelihoods, pathways and gradients, the biases of afmoe being on disk."""
    prompts, found = make_prompts(3), []
    rows = all_rows(prompts)
    for split in (False, True):
        count = 5 if kind in ("olmoe", "deepseek_v2") else 3
        where = alternating(tmp_path / "map.json", count, places) if split else None
        model = load(kind, device_map=where).model
        assert is_spread(model) == split
        engine = load_engine(name, model, list(family_of(model).layers)[-2:])
        assert isinstance(engine, SuffixEngine) == (name == "suffix"), engine.notes
        states = engine.read(prompts)
        own, batch = engine.original_pathways(states), engine.batch(states, rows)
        pathway = own.flip(-1).clone().requires_grad_()
        mixture = Mixer(engine.family)(pathway, own, core_experts(own, "all", 2), "dense")
        scores, _ = batch.score(mixture, torch.tensor([i for i, _ in rows], device=own.device))
        (gradient,) = torch.autograd.grad(scores.sum(), pathway)
        found.append([t.cpu() for t in (own, batch.score(None)[0], scores.detach(), gradient)])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(two, one, atol=1e-4, rtol=1e-4)


def test_attention_may_be_computed_otherwise(load):
    ids = torch.arange(5, 25)[None]
    plain = load().model(ids).logits
    model = load(attn_implementation="eager").model
    assert model.config._attn_implementation == "eager"
    torch.testing.assert_close(model(ids).logits, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device_map": "all"}, r"model.device_map=all: use auto, .* or a JSON file"),
        ({"quantization": "bnb"}, "unknown model.quantization 'bnb': did you mean"),
        ({"quantization": "bnb4"}, "needs bitsandbytes: pip install bitsandbytes"),
        ({"quantization": "torchao_int8"}, "needs torchao: pip install torchao"),
        ({"quantization": "hqq4"}, "needs hqq: pip install hqq"),
        ({"quantization": "quanto8"}, "needs optimum: pip install optimum"),
        ({"quantization": "fp8"}, "needs kernels: pip install kernels"),
        (
            {"attn_implementation": "flash_attention_2"},
            "model.attn_implementation=flash_attention_2 can't be had here",
        ),
        ({"attn_implementation": "slow"}, "model.attn_implementation=slow can't be had here"),
    ],
)
def test_what_is_not_here_is_said_in_one_line(load, changes, message, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=message) as refused:
        load(**changes)
    assert "\n" not in str(refused.value)


def test_experts_that_stay_wide_are_counted(load):
    model = load().model
    wide, whole = loading.unquantized_experts(model)
    experts = [p for name, p in model.named_parameters() if ".experts." in name]
    assert wide == sum(4 * p.numel() for p in experts)
    assert whole == sum(4 * p.numel() for p in model.parameters())
    for parameter in experts:
        parameter.data = parameter.data.to(torch.float8_e4m3fn)
    assert loading.unquantized_experts(model)[0] == 0
