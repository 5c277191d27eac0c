"""The constrained trainer: the official numbers, exact resume, the scale of the KL."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from c3po_bench.feedback.training.losses import (
    CHECKPOINTING,
    ConstrainedDPOConfig,
    ConstrainedDPOTrainer,
    token_mean,
)
from c3po_bench.feedback.training.rows import Row, pair_schedule, shuffled_epochs
from c3po_bench.models.tiny import tiny_model, tiny_tokenizer


def config(folder: Path, **changes: Any) -> ConstrainedDPOConfig:
    """A config that writes to `folder` only."""
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "bf16": False,
        "report_to": "none",
        "use_cpu": True,
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "save_strategy": "no",
        CHECKPOINTING: False,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "disable_tqdm": True,
    }
    return ConstrainedDPOConfig(**{**values, **changes})


def golden_pair(case: dict) -> dict[str, list[int]]:
    """The pair of a case as token ids."""
    batch = case["batch"]
    start = len(batch["prompt_input_ids"][0])
    return {
        "prompt_ids": batch["prompt_input_ids"][0],
        "chosen_ids": batch["chosen_input_ids"][0][start:],
        "rejected_ids": batch["rejected_input_ids"][0][start:],
    }


def golden_row(case: dict, name: str) -> Row:
    """A constraint row of a case."""
    ids, labels = case["batch"][f"{name}_input_ids"][0], case["batch"][f"{name}_labels"][0]
    start = sum(label == -100 for label in labels)
    return Row(ids[:start], ids[start:])


def test_the_papers_weights_are_the_defaults():
    fields = ConstrainedDPOConfig.__dataclass_fields__
    names = ("lambda_near", "lambda_out", "constraint_batch_size")
    assert [fields[name].default for name in names] == [0.1, 0.2, 4]


@pytest.mark.golden
@pytest.mark.parametrize("plain", [True, False], ids=["plain head", "fused head"])
def test_losses_are_the_official_ones(golden: Path, golden_cases: list[dict], tmp_path: Path, plain):
    for number, case in enumerate(golden_cases):
        settings = case["settings"]
        trainer = ConstrainedDPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(golden / "policy", dtype=torch.float32),
            ref_model=AutoModelForCausalLM.from_pretrained(golden / "ref", dtype=torch.float32),
            args=config(
                tmp_path / str(number),
                beta=0.1,
                lambda_near=settings["sigma_hard"],
                lambda_out=settings["sigma_soft"],
                plain_head=plain,
                per_device_train_batch_size=1,
                constraint_batch_size=1,
            ),
            train_dataset=Dataset.from_list([golden_pair(case)]),
            processing_class=AutoTokenizer.from_pretrained(golden / "tok"),
            near=[golden_row(case, "hard_negative")],
            out=[golden_row(case, "soft_negative")],
        )
        trainer.model.train()
        batch = next(iter(trainer.get_train_dataloader()))
        loss = trainer.compute_loss(trainer.model, batch)
        measured = {key: values[-1] for key, values in trainer._metrics["train"].items()}
        expected = {
            "loss/pairs": case["dpo_loss"],
            "near/nll": case["near_scope"],
            "out/nll": case["out_of_scope"],
            "logps/chosen": case["logps_chosen"],
            "logps/rejected": case["logps_rejected"],
            "rewards/chosen": case["rewards_chosen"],
            "rewards/rejected": case["rewards_rejected"],
        }
        assert loss.item() == pytest.approx(case["loss"], abs=1e-4)
        for key, value in expected.items():
            if value is None:
                assert key not in measured
            else:
                assert measured[key] == pytest.approx(value, abs=1e-4), key


def tiny_trainer(
    tiny: Path, folder: Path, peft: bool = True, most: int = 250, **changes: Any
) -> ConstrainedDPOTrainer:
    """A trainer on random rows (ids below `most`) of unequal sets."""
    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(4, most, (n,), generator=generator).tolist()

    pairs = [{"prompt_ids": ids(4 + i), "chosen_ids": ids(6), "rejected_ids": ids(5 + i)} for i in range(5)]
    near = [Row(ids(5), ids(3 + i)) for i in range(3)]
    out = [Row(ids(3), ids(4)) for _ in range(7)]
    eval_near, eval_out = [Row(ids(4), ids(2 + i)) for i in range(5)], [Row(ids(6), ids(5))]
    return ConstrainedDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32),
        args=config(folder, **changes),
        train_dataset=Dataset.from_list(pairs),
        eval_dataset=Dataset.from_list(pairs[:2]),
        processing_class=AutoTokenizer.from_pretrained(tiny),
        near=near,
        out=out,
        eval_near=eval_near,
        eval_out=eval_out,
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear") if peft else None,
    )


def losses(trainer: ConstrainedDPOTrainer) -> list[float]:
    """The training loss of every step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    "changes",
    [{"precompute_ref_log_probs": True}, {"plain_head": False}],
    ids=["precomputed reference", "fused head"],
)
def test_faster_ways_give_the_same_losses(tiny: Path, tmp_path: Path, changes: dict[str, Any]):
    plain = tiny_trainer(tiny, tmp_path / "a", max_steps=3)
    other = tiny_trainer(tiny, tmp_path / "b", max_steps=3, **changes)
    plain.train()
    other.train()
    assert losses(other) == pytest.approx(losses(plain), abs=2e-5)
    assert plain.evaluate()["eval_near/nll"] == pytest.approx(other.evaluate()["eval_near/nll"], abs=2e-5)


def test_a_killed_training_resumes_exactly(tiny: Path, tmp_path: Path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "precompute_ref_log_probs": True}
    whole = tiny_trainer(tiny, tmp_path / "whole", **settings)
    whole.train()
    again = tiny_trainer(tiny, tmp_path / "whole", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert losses(again)[-2:] == losses(whole)[-2:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_evaluation_reports_every_scope(tiny: Path, tmp_path: Path):
    trainer = tiny_trainer(tiny, tmp_path, lambda_near=0.0)
    measured = trainer.evaluate()
    assert {"eval_near/nll", "eval_out/nll", "eval_rewards/margins"} <= set(measured)
    assert "near_rows" in trainer.train_dataset.column_names and not any(trainer.train_dataset["near_rows"])


def test_evaluation_asks_every_validation_row_once_and_no_other(tiny: Path, tmp_path: Path):
    trainer = tiny_trainer(tiny, tmp_path, per_device_eval_batch_size=1)
    asked: dict[str, list[list[int]]] = {"near": [], "out": []}
    for batch in trainer.get_eval_dataloader():
        kept = zip(
            batch["keep_scope"], batch["keep_ids"], batch["keep_labels"], batch["keep_attention"], strict=True
        )
        for scope, ids, labels, attention in kept:
            asked["out" if scope else "near"].append(ids[attention.bool()].tolist())
            assert not attention[attention.sum() :].any() and (labels[~attention.bool()] == -100).all()
    tables = trainer.data_collator.eval_tables
    for scope, rows in tables.items():
        assert sorted(asked[scope]) == sorted(row.prompt_ids + row.completion_ids for row in rows), scope


def test_kl_is_the_references_from_the_policy(tiny: Path, tmp_path: Path):
    """KL(reference || policy), written out for every answer token."""
    trainer = tiny_trainer(tiny, tmp_path, constraint="kl", lambda_near=1.0)
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                weight += 0.3
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    keep = {name.removeprefix("keep_"): value for name, value in batch.items() if name.startswith("keep_")}
    values, mask = trainer._divergence(trainer.model, keep)
    told = {}
    for row, (ids, labels) in enumerate(zip(keep["ids"], keep["labels"], strict=True)):
        length = int(keep["attention"][row].sum())
        with torch.no_grad():
            policy = trainer.model(ids[None, :length]).logits[0].log_softmax(-1)
            with trainer.model.disable_adapter():
                reference = trainer.model(ids[None, :length]).logits[0].log_softmax(-1)
        told |= {
            (row, i - 1): float((reference[i - 1].exp() * (reference[i - 1] - policy[i - 1])).sum())
            for i in range(1, length)
            if labels[i] != -100
        }
    assert {(int(i), int(j)) for i, j in mask.nonzero()} == set(told)
    assert min(told.values()) > 1e-4
    for place, expected in told.items():
        assert values[place].item() == pytest.approx(expected, rel=1e-3), place


def test_kl_is_a_token_mean_and_zero_at_the_start(tiny: Path, tmp_path: Path):
    trainer = tiny_trainer(tiny, tmp_path, constraint="kl", max_steps=4, lambda_near=1.0, learning_rate=1e-2)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, batch)
    assert trainer._metrics["train"]["near/kl"][-1] == pytest.approx(0.0, abs=1e-6)
    trainer.train()
    single = {k: v[:1] for k, v in batch.items() if k.startswith("keep_")}
    double = {k: torch.cat([v, v]) for k, v in single.items()}
    short, _ = trainer._divergence(trainer.model, {k.removeprefix("keep_"): v for k, v in single.items()})
    long, mask = trainer._divergence(trainer.model, {k.removeprefix("keep_"): v for k, v in double.items()})
    mean = token_mean(trainer.accelerator, long, mask)
    assert mean > 0
    # twice the tokens, same value
    assert mean.item() == pytest.approx((short.sum() / (mask[:1].sum())).item(), rel=1e-5)


@pytest.mark.parametrize("plain", [True, False], ids=["plain head", "fused head"])
def test_the_routers_auxiliary_loss_is_off(tmp_path: Path, plain: bool):
    model = tiny_model("olmoe")
    model.config.output_router_logits, model.config.router_aux_loss_coef = True, 0.5
    model.save_pretrained(tmp_path / "moe")
    tiny_tokenizer().save_pretrained(tmp_path / "moe")

    def first(folder: str, **changes: Any) -> tuple[float, dict[str, list[float]]]:
        trainer = tiny_trainer(tmp_path / "moe", tmp_path / folder, most=90, plain_head=plain, **changes)
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
        return loss.item(), trainer._metrics["train"]

    loss, terms = first("off", lambda_near=0.1, lambda_out=0.2)
    expected = terms["loss/pairs"][0] + 0.1 * terms["near/nll"][0] + 0.2 * terms["out/nll"][0]
    assert terms["loss/pairs"][0] == pytest.approx(math.log(2), abs=1e-5)  # the policy is the reference
    assert loss == pytest.approx(expected, abs=1e-5)
    assert first("on", router_aux_loss_coef=0.5)[0] > loss + 0.1


def test_schedule_walks_unequal_sets_at_their_own_pace():
    rows = pair_schedule(4, {"near": 2, "out": 6}, batch=2, constraint_batch=3, batches=4, seed=1)
    assert sorted(r["pair"] for r in rows[:4]) == [0, 1, 2, 3]
    out = [i for r in rows[:4] for i in r["out"]]
    assert sorted(out) == list(range(6))
    assert all(len(rows[i]["near"]) + len(rows[i + 1]["near"]) == 3 for i in range(0, 8, 2))
    assert rows == pair_schedule(4, {"near": 2, "out": 6}, batch=2, constraint_batch=3, batches=4, seed=1)


def test_shuffled_epochs_visit_everything_once_a_turn():
    steps = shuffled_epochs(5, "x")
    first, second = [next(steps) for _ in range(5)], [next(steps) for _ in range(5)]
    assert sorted(first) == sorted(second) == list(range(5))
    assert first != second
