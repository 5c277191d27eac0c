"""DeepSeekMoE-16B through the Qwen2-MoE class: the golden case, and what the conversion promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from c3po_bench.config import ModelConfig  # noqa: E402
from c3po_bench.errors import UserError  # noqa: E402
from c3po_bench.models import deepseek  # noqa: E402
from c3po_bench.models.routing import family_of  # noqa: E402

CONFIG = {
    "model_type": "deepseek",
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 20,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "norm_topk_prob": False,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "float32",
}


def weights() -> dict[str, torch.Tensor]:
    """Random weights under the original's names."""
    made = torch.Generator().manual_seed(0)

    def of(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=made) * 0.3

    tensors = {
        "model.embed_tokens.weight": of(30, 16),
        "model.norm.weight": of(16),
        "lm_head.weight": of(30, 16),
    }
    for i in range(4):
        layer = f"model.layers.{i}."
        tensors |= {f"{layer}self_attn.{p}_proj.weight": of(16, 16) for p in "qkvo"}
        tensors |= {f"{layer}{n}_layernorm.weight": of(16) for n in ("input", "post_attention")}
        blocks = (
            {"mlp.": 20}
            if i == 0
            else {"mlp.shared_experts.": 16, **{f"mlp.experts.{e}.": 8 for e in range(4)}}
        )
        for block, width in blocks.items():
            tensors |= {f"{layer}{block}{p}_proj.weight": of(width, 16) for p in ("gate", "up")}
            tensors[f"{layer}{block}down_proj.weight"] = of(16, width)
        if i:
            tensors[f"{layer}mlp.gate.weight"] = of(4, 16)
    return tensors


@pytest.fixture
def original(tmp_path, monkeypatch) -> Path:
    """A small checkpoint in two shards, and an empty cache."""
    monkeypatch.setenv("C3PO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "original"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer_config.json").write_text("{}")
    tensors = list(weights().items())
    for part in (0, 1):
        save_file(dict(tensors[part::2]), folder / f"model-0000{part + 1}-of-00002.safetensors")
    return folder


@pytest.mark.golden
def test_golden_logits_and_routing(golden_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("C3PO_CACHE", str(tmp_path))
    folder = golden_dir / "deepseek_moe" / "tiny_deepseek_moe"
    if not folder.is_dir():
        pytest.skip(f"no deepseek_moe case in {golden_dir}")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(deepseek.convert(folder)).eval()
    family = family_of(model)
    for case in json.loads((golden_dir / "deepseek_moe" / "cases.json").read_text()):
        seen: dict[int, torch.Tensor] = {}
        handles = [
            family.router_of(model, layer).register_forward_hook(
                lambda _m, _, out, layer=layer, seen=seen: seen.update({layer: family.pathway(out[0])[-1]})
            )
            for layer in family.layers
        ]
        with torch.no_grad():
            logits = model(torch.tensor([case["input_ids"]])).logits[0, -1]
        for handle in handles:
            handle.remove()
        assert (logits - torch.tensor(case["last_logits"])).abs().max() < 1e-4
        assert {str(layer) for layer in seen} == set(case["router_probs_last"])
        for layer, expected in case["router_probs_last"].items():
            assert (seen[int(layer)] - torch.tensor(expected)).abs().max() < 1e-4


def by_hand(tensors: dict[str, torch.Tensor], layer: int, x: torch.Tensor) -> torch.Tensor:
    """DeepSeekMoE's block on hidden states [tokens, 16]: shared experts, plus top-2 of a softmax, not renormalised."""

    def swiglu(block: str) -> torch.Tensor:
        gate, up, down = (
            tensors[f"model.layers.{layer}.mlp.{block}{p}_proj.weight"] for p in ("gate", "up", "down")
        )
        return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

    scores = (x @ tensors[f"model.layers.{layer}.mlp.gate.weight"].T).softmax(-1)
    kept = scores * (scores >= scores.topk(2, -1).values[:, -1:])
    return swiglu("shared_experts.") + sum(kept[:, e : e + 1] * swiglu(f"experts.{e}.") for e in range(4))


def test_a_block_is_what_the_paper_defines(original):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(deepseek.convert(original)).eval()
    assert family_of(model).layers == (1, 2, 3)
    x = torch.randn(7, 16)
    with torch.no_grad():
        got = model.model.layers[2].mlp(x[None])[0]
    torch.testing.assert_close(got, by_hand(weights(), 2, x), atol=1e-5, rtol=1e-4)


def test_no_weight_is_lost_or_left_at_random(original):
    from transformers import AutoModelForCausalLM

    _, report = AutoModelForCausalLM.from_pretrained(deepseek.convert(original), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_small_files_hold_the_same_weights(original, monkeypatch, tmp_path):
    whole = deepseek.convert(original)
    monkeypatch.setenv("C3PO_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(deepseek, "SHARD_BYTES", 4000)
    split = deepseek.convert(original)

    def read(folder: Path) -> dict[str, torch.Tensor]:
        weights_read = {}
        for path in folder.glob("*.safetensors"):
            with safe_open(path, framework="pt") as tensors:
                weights_read |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        return weights_read

    assert len(list(split.glob("*.safetensors"))) > 2
    assert len(list(whole.glob("*.safetensors"))) == 1
    one, many = read(whole), read(split)
    assert (
        one.keys()
        == many.keys()
        == json.loads((split / "model.safetensors.index.json").read_text())["weight_map"].keys()
    )
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_it_is_converted_once_and_again_when_the_weights_change(original):
    first = deepseek.convert(original)
    assert deepseek.converted(str(original)) == first
    tensors = dict(list(weights().items())[1::2])
    save_file(
        {name: tensor + 1 for name, tensor in tensors.items()}, original / "model-00002-of-00002.safetensors"
    )
    assert deepseek.convert(original) != first


def test_other_models_are_left_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "olmoe"}')
    assert deepseek.converted(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("key", "value"), [("scoring_func", "sigmoid"), ("attention_bias", True), ("n_shared_experts", None)]
)
def test_what_has_no_exact_equal_is_refused(original, key, value):
    (original / "config.json").write_text(json.dumps({**CONFIG, key: value}))
    with pytest.raises(UserError, match="exactly"):
        deepseek.convert(original)


def test_dense_layers_and_rope_scaling_are_carried_over():
    every_other = deepseek.qwen2_moe_config(
        {**CONFIG, "moe_layer_freq": 2, "rope_scaling": {"type": "linear", "factor": 2.0}}
    )
    assert every_other["mlp_only_layers"] == [0, 1, 3]
    assert every_other["rope_parameters"] == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}


def test_the_program_loads_it(original):
    from c3po_bench.models.embedded.planted import tokenizer
    from c3po_bench.models.loading import load

    tokenizer().save_pretrained(original)
    loaded = load(ModelConfig(name="deepseek", kind="hf", path=str(original), device="cpu"))
    assert loaded.model.config.model_type == "qwen2_moe"
