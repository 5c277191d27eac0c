"""From plan and material to a ready trainer: what is preferred, every number, where training starts. Nothing is trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from transformers import AutoModelForCausalLM

from c3po_bench.feedback.answering import Answer
from c3po_bench.feedback.config import FeedbackConfig, LoraConfig, TrainConfig
from c3po_bench.feedback.context import Subject, SynthesisContext
from c3po_bench.feedback.sentences import find_feedback
from c3po_bench.feedback.synthesis import Example, FeedbackDataset
from c3po_bench.feedback.training.adapters import WHOLE, _last_checkpoint, adapter_folder, drop_damaged
from c3po_bench.feedback.training.losses import ConstrainedDPOTrainer
from c3po_bench.feedback.training.recipes import make_plan
from c3po_bench.feedback.training.rows import IGNORED, Row, token_fields
from c3po_bench.feedback.training.trainers import CHECKPOINT_STEPS, answer_rows, make_trainer, pair_rows
from c3po_bench.store.records import file_checksums, write_sealed
from tests.feedback.test_arms import config

EXAMPLES = tuple(
    Example(
        scope,
        "c",
        split,
        f"{scope} {split} {i}",
        Answer("no", i > 0, 2),
        "yes" if scope == "in" else None,
        i < 2,
    )
    for scope in ("in", "near", "out")
    for split in ("train", "validation")
    for i in range(3)
)
TRAIN = TrainConfig(
    lr=3e-4,
    steps=5,
    epochs=2.0,
    batch_size=3,
    constraint_batch_size=2,
    gradient_accumulation_steps=2,
    sft_lr=7e-4,
    sft_steps=0,
    scheduler="cosine",
    warmup_ratio=0.25,
    max_length=96,
    precision="float32",
    eval_every=4,
)
CFG = FeedbackConfig(
    beta=0.3,
    loss_type=["sigmoid", "sft"],
    lambda_near=0.7,
    lambda_out=0.4,
    constraint="kl",
    lora=LoraConfig(rank=2, alpha=6, dropout=0.125, targets=["q_proj"]),
    train=TRAIN,
)


@pytest.fixture
def context(tiny: Path, tmp_path: Path) -> SynthesisContext:
    return SynthesisContext(
        replace(CFG, cache_dir=str(tmp_path)), Subject(config(tiny, tmp_path, []).model), seed=11
    )


def material() -> list[FeedbackDataset]:
    return [FeedbackDataset(find_feedback(["ahoy_greeting"])[0], EXAMPLES)]


def make(
    context: SynthesisContext, arm: str, folder: Path, start: Path | None = None, **train: Any
) -> tuple[Any, Any]:
    plan = make_plan(arm, replace(CFG, train=replace(TRAIN, **train)))
    model = AutoModelForCausalLM.from_pretrained(
        context.subject.model.config.name_or_path, dtype=torch.float32
    )
    trainer, counts, _ = make_trainer(plan, material(), context, model, folder, start)
    return trainer, counts


def test_the_revision_is_preferred_and_elsewhere_the_own_answer_kept(context: SynthesisContext):
    tokenizer, left_out = context.subject.tokenizer, Counter[str]()
    inside, near = (material()[0].select(scope, "train") for scope in ("in", "near"))
    rows = pair_rows(inside, tokenizer, 96, left_out)
    for example, row in zip(inside, rows, strict=True):
        assert example.prompt in tokenizer.decode(row["prompt_ids"])
        texts = {name: tokenizer.decode(row[f"{name}_ids"]) for name in ("chosen", "rejected")}
        assert texts["chosen"].startswith("yes") and texts["rejected"].startswith("no")
        ended = {name: "<|end|>" in text for name, text in texts.items()}
        assert ended == {"chosen": example.revised_finished, "rejected": example.baseline.finished}
    assert {ended.revised_finished for ended in inside} == {True, False}
    for examples, text in ((inside, "yes"), (near, "no")):
        for example, row in zip(examples, answer_rows(examples, tokenizer, 96, left_out), strict=True):
            said = tokenizer.decode(row.completion_ids)
            ends = example.revised_finished if text == "yes" else example.baseline.finished
            assert said.startswith(text) and ("<|end|>" in said) == ends
            assert example.prompt in tokenizer.decode(row.prompt_ids)


@pytest.mark.parametrize("arm", ["c3po", "scd_negatives"])
def test_every_number_of_a_plan_reaches_its_trainer(context: SynthesisContext, tmp_path: Path, arm: str):
    trainer, counts = make(context, arm, tmp_path / "scratch")
    args, pairs = trainer.args, arm == "c3po"
    # 2 epochs of 3 rows, 6 a step
    assert (args.learning_rate, args.max_steps) == ((3e-4, 5) if pairs else (7e-4, 1))
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (3 if pairs else 6, 2)
    assert (args.lr_scheduler_type, args.warmup_steps) == ("cosine", 0.25)
    assert (args.seed, args.weight_decay, args.bf16) == (11, 0.0, False)
    assert (args.eval_steps, args.save_steps) == (4, CHECKPOINT_STEPS)
    assert counts == {"pairs" if pairs else "in_rows": 3, "near_rows": 3, "out_rows": 3}
    lora = trainer.model.peft_config["default"]
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (2, 6, 0.125)
    assert {name.rpartition(".")[2] for name in lora.target_modules} == {"q_proj"}
    if pairs:
        assert (args.beta, args.loss_type) == (0.3, ["sigmoid", "sft"])
        assert trainer.scope_weights() == {"near": 0.7, "out": 0.4}
        assert (args.constraint, args.constraint_batch_size) == ("kl", 2)
        assert (args.max_length, args.disable_dropout) == (96, False)


def test_passes_over_the_pairs_become_steps(context: SynthesisContext, tmp_path: Path):
    """Three pairs in batches of one, two a step: five passes are eight steps, and the rows are laid out for all of them."""
    trainer, _ = make(context, "dpo", tmp_path / "scratch", steps=0, epochs=5.0, batch_size=1)
    assert trainer.args.max_steps == 8 and len(trainer.train_dataset) == 16


def test_the_seed_decides_the_adapters_first_weights_and_the_order(context: SynthesisContext, tmp_path: Path):
    for arm in ("dpo", "scd"):
        found = []
        for seed in (11, 12, 11):
            context.seed = seed
            trainer, _ = make(context, arm, tmp_path / "scratch", steps=6, epochs=12.0)
            weights = torch.cat([w.flatten() for w in get_peft_model_state_dict(trainer.model).values()])
            rows = trainer.train_dataset
            order = [row["prompt_ids"] for row in rows] if arm == "dpo" else [row.prompt_ids for row in rows]
            found.append((weights.clone(), order))
        (one, ordered), (two, otherwise), (again, as_before) = found
        assert not one.equal(two) and ordered != otherwise, arm
        assert one.equal(again) and ordered == as_before, arm


def test_training_goes_on_from_the_adapter_it_starts_from(context: SynthesisContext, tmp_path: Path):
    first, _ = make(context, "scd_negatives", tmp_path / "a")
    with torch.no_grad():
        for name, weight in first.model.named_parameters():
            if "lora_B" in name:
                weight += 0.5
    first.model.save_pretrained(str(tmp_path / "start"))
    wanted = {name: weight.clone() for name, weight in get_peft_model_state_dict(first.model).items()}
    trainer, _ = make(context, "c3po_from_sft", tmp_path / "b", tmp_path / "start")
    assert isinstance(trainer, ConstrainedDPOTrainer)
    for name, weight in get_peft_model_state_dict(trainer.model).items():
        assert weight.equal(wanted[name]), name


def test_fields_of_a_token_are_those_of_its_distribution(tiny: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    ids = torch.tensor([[20, 30, 40, 50, 60], [70, 80, 90, 0, 0]])
    labels = torch.tensor([[IGNORED, IGNORED, 40, 50, 60], [IGNORED, IGNORED, 90, IGNORED, IGNORED]])
    with torch.no_grad():
        logits = model(ids).logits
        labels[0, 3] = logits[0, 2].argmax()  # one label is the likeliest token
        fields = token_fields(model, ids, labels)
    spread = torch.distributions.Categorical(logits=logits[:, :-1])
    wanted = {
        "log_probs": spread.log_prob(labels[:, 1:].clamp_min(0)),
        "entropy": spread.entropy(),
        "mean_logits": logits[:, :-1].mean(-1),
        "is_top1": logits[:, :-1].argmax(-1) == labels[:, 1:],
    }
    assert fields.mask.tolist() == (labels[:, 1:] != IGNORED).tolist() and fields.is_top1.sum() == 1
    for name, values in wanted.items():
        expected = values.float() * fields.mask
        torch.testing.assert_close(getattr(fields, name).float(), expected, atol=1e-5, rtol=1e-4, msg=name)


def test_distillation_is_the_mean_over_the_answers_tokens(context: SynthesisContext, tmp_path: Path):
    """Of all rows of a batch together, short and long, whatever pads them."""
    trainer, _ = make(context, "scd_negatives", tmp_path / "scratch", precision="float32")
    rows = [Row([20, 30], [40, 50, 60, 70]), Row([80, 90, 99], [45])]
    batch, total = trainer.data_collator(rows), 0.0
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 4 + [0] * 2]
    model = trainer.model.eval()
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row.prompt_ids + row.completion_ids])
            chances = model(ids).logits[0].log_softmax(-1)
            total -= sum(float(chances[i - 1, ids[0, i]]) for i in range(len(row.prompt_ids), ids.shape[1]))
        assert trainer.compute_loss(model, batch).item() == pytest.approx(total / 5, rel=1e-5)


def test_an_adapter_is_known_by_its_plan_data_model_and_seed(
    context: SynthesisContext, tiny: Path, tmp_path: Path
):
    plan, made = make_plan("c3po", CFG), material()
    known = {adapter_folder(plan, made, context)}
    known.add(adapter_folder(make_plan("c3po", replace(CFG, beta=0.2)), made, context))
    known.add(adapter_folder(plan, [replace(made[0], examples=EXAMPLES[1:])], context))
    context.seed = 12
    known.add(adapter_folder(plan, made, context))
    context.seed, context.subject._loaded.hash = 11, "another model"
    known.add(adapter_folder(plan, made, context))
    assert len(known) == 5 and {path.parent for path in known} == {tmp_path / "adapters"}


def test_training_goes_on_from_the_newest_checkpoint_that_is_whole(tmp_path: Path, caplog):
    assert not drop_damaged(tmp_path) and _last_checkpoint(tmp_path) is None
    for step in (2, 9, 10, 11, 12, 13):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
        (folder / "optimizer.pt").write_bytes(bytes(100))
        if step < 13:  # killed before it was sealed
            write_sealed(folder / WHOLE, file_checksums(folder))
    (tmp_path / "checkpoint-10" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-11" / "optimizer.pt").write_bytes(bytes(50))
    (tmp_path / "checkpoint-12" / "optimizer.pt").write_bytes(bytes(99) + b"x")
    assert drop_damaged(tmp_path)
    assert _last_checkpoint(tmp_path) == tmp_path / "checkpoint-9"
    assert "checkpoint-10/optimizer.pt is cut short or damaged" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-9"]
