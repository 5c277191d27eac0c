"""What LoRA adapts on models of every family: what is asked for, by whatever name PEFT knows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from c3po_bench.errors import UserError
from c3po_bench.evaluate import run as harness
from c3po_bench.evaluate.tuned_then_rewired import merged_model
from c3po_bench.feedback.backend import FeedbackArm
from c3po_bench.feedback.config import FeedbackConfig, LoraConfig
from c3po_bench.feedback.training.adapters import adapter_folder
from c3po_bench.feedback.training.recipes import make_plan
from c3po_bench.feedback.training.trainers import lora_config
from c3po_bench.models.targets import check_adapted, find_targets
from c3po_bench.models.tiny import OWN, tiny_model, tiny_tokenizer
from tests.feedback.test_arms import config

FIRST = (
    "olmoe",
    "qwen2_moe",
    "qwen3_moe",
    "mixtral",
    "gpt_oss",
    "granitemoe",
    "deepseek_v2",
    "longcat_flash",
    "nemotron_h",
)
"""Families of each kind of router and experts; the others are slow."""
MOES = [
    family if family in FIRST else pytest.param(family, marks=pytest.mark.slow)
    for family in OWN
    if family != "llama"
]
IDS = torch.arange(4, 20)[None]


def adapted(family: str, **lora: Any) -> set[str]:
    """The names of what learns, after a backward pass through a model of this family."""
    cfg = LoraConfig(**{"rank": 2, **lora})
    model = tiny_model(family)
    made = check_adapted(
        peft.get_peft_model(model, lora_config(model, make_plan("c3po", FeedbackConfig(lora=cfg)))), cfg
    )
    assert find_targets(model, cfg) == find_targets(tiny_model(family), cfg)  # whatever adapter is on it
    made(IDS, labels=IDS).loss.backward()
    found = {
        n.partition(".lora_B")[0]
        for n, p in made.named_parameters()
        if ".lora_B" in n and p.grad.abs().sum() > 0
    }
    return {name.removeprefix("base_model.model.").replace(".base_layer", "") for name in found}


@pytest.mark.parametrize("family", MOES)
def test_routers_and_experts_learn_where_they_are_asked_to_and_nowhere_else(family: str):
    default = adapted(family)
    routers = (".gate", ".router", ".gate.wg", ".router.proj", ".router.classifier")
    assert not any(name.endswith((*routers, ".experts")) for name in default)
    for asked, endings in (("routers", routers), ("experts", (".experts",))):
        if (family, asked) == ("longcat_flash", "routers"):
            with pytest.raises(UserError, match="PEFT does not reach them"):
                adapted(family, routers=True)
            continue
        more = adapted(family, **{asked: True}) - default
        assert more and all(name.endswith(endings) for name in more)
        if all(name.endswith(".router.proj") for name in more):
            continue  # linear layers, which can have a dropout
        with pytest.raises(UserError, match=f"dropout.*{asked}=false"):
            adapted(family, dropout=0.05, **{asked: True})


def test_layers_that_peft_takes_for_experts_are_adapted_themselves():
    layers = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    found = {name.split(".", 3)[-1] for name in adapted("deepseek_v2") if "mlp" in name}
    assert found == layers | {name.replace("mlp", "mlp.shared_experts") for name in layers}
    # alone, too
    assert all(name.endswith("gate_proj") for name in adapted("deepseek_v2", targets=["gate_proj"]))
    with pytest.raises(UserError, match=r"dropout=0.05.*down_proj, gate_proj, up_proj are adapted"):
        adapted("deepseek_v2", dropout=0.05)
    assert adapted("deepseek_v2", dropout=0.05, targets=["q_proj"])


def test_routers_alone_can_be_adapted():
    assert all(name.endswith(".gate") for name in adapted("olmoe", targets=[], routers=True))


@pytest.mark.parametrize(
    ("family", "lora", "said"),
    [
        ("olmoe", {"targets": ["q_proj", "gate"]}, "'gate' names routers.*routers=true"),
        (
            "olmoe",
            {"targets": ["q_proj", "gate_proj", "up_proj", "down_proj"]},
            "'gate_proj' names experts.*experts=true",
        ),
        ("olmoe", {"targets": ["q_porj"]}, "did you mean 'q_proj'"),
        ("llama", {"targets": ["foo"]}, "unknown feedback.lora.targets 'foo'.*all-linear"),
        ("llama", {"targets": []}, "nothing to adapt"),
        ("llama", {"routers": True}, "this model has no routers"),
        ("llama", {"experts": True}, "this model has no experts"),
    ],
)
def test_targets_that_are_not_there_or_not_asked_for_are_refused(
    family: str, lora: dict[str, Any], said: str
):
    with pytest.raises(UserError, match=said):
        find_targets(tiny_model(family), LoraConfig(**lora))


def test_another_peft_that_adapts_something_else_is_refused():
    model = tiny_model("olmoe")
    made = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "gate"]))
    with pytest.raises(UserError, match="adapts unasked: model.layers.0.mlp.gate"):
        check_adapted(made, LoraConfig(targets=["q_proj"]))
    with pytest.raises(UserError, match="does not adapt: model.layers.0.self_attn.v_proj"):
        check_adapted(made, LoraConfig(targets=["q_proj", "v_proj"], routers=True))


def arm_of(family: str, name: str, folder: Path, **lora: Any) -> FeedbackArm:
    """A tuned arm on a random model of a family."""
    tiny_model(family).save_pretrained(folder / family)
    tiny_tokenizer().save_pretrained(folder / family)
    cfg = config(folder / family, folder, [name])
    cfg.feedback.pieces = cfg.feedback.pieces[: 2 if name.endswith("_mix") else 1]
    cfg.feedback.lora = replace(cfg.feedback.lora, **lora)
    cfg.feedback.train = replace(cfg.feedback.train, lr=0.05, sft_lr=0.05, batch_size=1)
    return list(harness.open_backend(cfg).arms())[-1]


@pytest.mark.parametrize(
    ("family", "arm", "lora", "part"),
    [
        ("olmoe", "c3po", {"routers": True}, ".mlp.gate."),
        ("olmoe", "scd", {"routers": True, "experts": True}, ".mlp.gate."),
        ("deepseek_v2", "c3po", {}, ".shared_experts.gate_proj."),
    ],
)
def test_what_was_trained_is_recorded_saved_loaded_and_merged(
    family: str, arm: str, lora: dict[str, Any], part: str, tmp_path: Path
):
    tuned = arm_of(family, arm, tmp_path, **lora)
    model, _ = tuned.tuned_model()
    for record in (tuned.settings(), tuned.records[0]["plan"], tuned.identity()["plan"]):
        assert (record["routers_trained"], record["experts_trained"]) == (
            "routers" in lora,
            "experts" in lora,
        )
    weights = {name: p for name, p in model.named_parameters() if part in name and ".lora_B" in name}
    assert weights and all(p.abs().sum() > 0 for p in weights.values())
    with torch.inference_mode():
        logits = model(IDS).logits
        folder = adapter_folder(tuned.plan, tuned.session.datasets, tuned.session.context)  # type: ignore[arg-type]
        alone = peft.PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tmp_path / family), str(folder)
        )
        torch.testing.assert_close(alone.eval()(IDS).logits, logits, atol=1e-5, rtol=1e-4)
        assert folder == adapter_folder(tuned.plan, tuned.session.datasets, tuned.session.context)  # type: ignore[arg-type]
        merged = AutoModelForCausalLM.from_pretrained(str(merged_model(tuned, tuned.cfg.model).path)).eval()
        torch.testing.assert_close(merged(IDS).logits, logits, atol=1e-4, rtol=1e-3)


def test_what_cannot_be_is_said_before_any_prompt_is_written(tmp_path: Path):
    for arm, lora, message in (("c3po", {"targets": ["foo"]}, "'foo'"), ("c3po_mix", {}, "can't mix")):
        with pytest.raises(UserError, match=message):
            arm_of("deepseek_v2", arm, tmp_path, **lora).prepare()
    assert not list(tmp_path.glob("cache/ledgers/*"))
