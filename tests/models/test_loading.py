"""What a model is known by: a change anywhere in its folder makes it another model."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from c3po_bench.config import ModelConfig
from c3po_bench.errors import UserError
from c3po_bench.models import cache, loading
from c3po_bench.models.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tiny model with its tokenizer, saved; the cache is empty."""
    monkeypatch.setenv("C3PO_CACHE", str(tmp_path / "cache"))
    tiny_model("olmoe").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def hash_of(folder) -> str:
    loading._loaded.clear()
    return loading.load(ModelConfig(name="mine", kind="hf", path=str(folder), device="cpu")).hash


def test_one_number_among_all_makes_another_model(folder):
    before = hash_of(folder)
    assert before == hash_of(folder)
    weights = load_file(folder / "model.safetensors")
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name].view(-1)[1] += 1.0  # between the 64 numbers that are looked at
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert hash_of(folder) != before


def test_another_tokenizer_makes_another_model(folder):
    before = hash_of(folder)
    text = (folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(text.replace("{", '{"note": "changed",', 1))
    assert hash_of(folder) != before


def test_a_file_is_read_once(folder, monkeypatch):
    before = hash_of(folder)
    monkeypatch.setattr(cache, "file_hash", lambda path: pytest.fail(f"{path} read again"))
    assert hash_of(folder) == before


def test_a_model_writes_by_its_own_probabilities(folder, caplog):
    """Penalties of a generation config hold in `generate` alone, and make answers under one rule into two."""
    before = hash_of(folder)
    path = folder / "generation_config.json"
    settings = {**json.loads(path.read_text()), "eos_token_id": [1, 5], "top_p": 0.8, "do_sample": True}
    path.write_text(json.dumps(settings))
    sampled = hash_of(folder)
    assert sampled != before and "left out" not in caplog.text
    path.write_text(json.dumps({**settings, "repetition_penalty": 1.05, "min_length": 4, "num_beams": 1}))
    hash_of(folder)
    (loaded,) = loading._loaded.values()
    kept = loaded.model.generation_config
    assert (kept.repetition_penalty, kept.min_length, kept.top_p, kept.eos_token_id) == (
        None,
        None,
        0.8,
        [1, 5],
    )
    assert "asks for min_length=4, repetition_penalty=1.05, which is left out for every arm" in caplog.text


def _cut(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:5000])


def _more_layers(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7, "layer_types": None}))


def _wider(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))


def _no_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_cut, "can't be loaded from a local folder"),
        (lambda folder: (folder / "config.json").write_text("{"), "can't be loaded from a local folder"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is no JSON object"),
        (_wider, "can't be loaded from a local folder"),
        (_more_layers, "lacks 2[0-9] of its weights .model.layers.5"),
        (_no_tokenizer, "has no tokenizer"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused(harm, message, folder):
    """Not filled in at random, nor read by a tokenizer that knows no word."""
    harm(folder)
    with pytest.raises(UserError, match=message) as caught:
        loading.load(ModelConfig(name="m", kind="hf", path=str(folder)))
    assert "\n" not in str(caught.value)


def test_a_gguf_file_is_never_taken_for_a_hub_id():
    with pytest.raises(UserError, match="no such file; a GGUF is read from this machine only"):
        loading.load(ModelConfig(name="m", kind="hf", path="models/x.GGUF"))


def test_a_tiny_model_has_the_dtype_that_is_asked_for():
    configs = [
        ModelConfig(name="tiny", kind="tiny", path="olmoe", dtype=dtype) for dtype in ("float32", "bfloat16")
    ]
    models = [loading.load(cfg) for cfg in configs]
    assert [next(one.model.parameters()).dtype for one in models] == [torch.float32, torch.bfloat16]
    assert models[0].hash != models[1].hash, "their references' pathways are not the same"
