"""What a training sees and writes down: rows, rows left out, validation while it goes on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from c3po_bench.config import Config
from c3po_bench.errors import UserError
from c3po_bench.evaluate import run as harness
from c3po_bench.feedback.answering import Answer, prompt_ids
from c3po_bench.feedback.backend import FeedbackArm
from c3po_bench.feedback.synthesis import Example
from c3po_bench.feedback.training.rows import Row, answer_schedule
from c3po_bench.feedback.training.trainers import answer_rows, pair_rows
from tests.feedback.test_arms import config


def small(tiny: Path, folder: Path, arms: list[str], **train: Any) -> Config:
    """One piece, with validation prompts in every scope."""
    cfg = config(tiny, folder, arms)
    cfg.feedback.pieces, cfg.feedback.validation_share = ["ahoy_greeting"], 0.2
    cfg.feedback.n_in = cfg.feedback.n_near = cfg.feedback.n_out = 16
    cfg.feedback.train = replace(cfg.feedback.train, **train)
    return cfg


def arms_of(cfg: Config) -> list[FeedbackArm]:
    return list(harness.open_backend(cfg).arms())


def sets(batch: int, batches: int) -> list[str]:
    inside, near, out = ([Row([0], [i])] * 5 for i in range(3))
    return [
        ["in", "near", "out"][row.completion_ids[0]]
        for row in answer_schedule(inside, near, out, batch, batches, 0)
    ]


def test_an_odd_negative_is_near_and_out_of_scope_in_turn():
    assert sets(batch=1, batches=4) == ["in", "out", "in", "near"] * 2
    assert Counter(sets(batch=3, batches=2)) == {"in": 6, "near": 3, "out": 3}
    assert sets(batch=2, batches=1) == ["in", "in", "near", "out"]


def test_rows_without_a_token_to_train_on_are_left_out_and_counted(tiny: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    short, long = (
        Example(s, "c", "train", s * n, Answer("no", True, 2), "yes") for s, n in (("in", 1), ("in", 40))
    )
    length = len(prompt_ids(tokenizer, long.prompt))
    for make in (pair_rows, answer_rows):
        left_out = Counter[str]()
        assert len(make([short, long], tokenizer, length, left_out)) == 1 and left_out == {
            "overlong_prompts": 1
        }
        left_out = Counter[str]()
        assert len(make([short, long], tokenizer, length + 1, left_out)) == 2 and not +left_out


@pytest.mark.parametrize("arm", ["dpo", "scd"])
def test_nothing_left_to_train_on_is_said_in_one_line(tiny: Path, tmp_path: Path, arm: str):
    with pytest.raises(UserError, match="max_length=4"):
        arms_of(small(tiny, tmp_path, [arm], max_length=4))[-1].prepare()


def test_gaps_are_told_of_the_arm_that_has_them(tiny: Path, tmp_path: Path):
    _, dpo, c3po, scd = arms_of(small(tiny, tmp_path, ["dpo", "c3po", "scd"]))
    (made,) = dpo.session.datasets
    examples = list(made.examples)
    first = next(i for i, e in enumerate(examples) if e.scope == "in" and e.split == "train" and e.baseline)
    examples[first] = replace(examples[first], revised=examples[first].baseline.text)  # type: ignore[union-attr]
    dpo.session.datasets[0] = replace(made, examples=tuple(examples))
    for arm, count in ((dpo, 1), (c3po, 1), (scd, 0)):
        for _ in range(2):  # trained, then from the cache
            arm.records.clear()
            arm.prepare()
            assert arm.report().counts.get("unchanged_revisions", 0) == count, arm.row.name
            assert ("unchanged_revisions: 1" in arm.report().notes) == bool(count)
        dpo.session.judged["unparsed_judgements"] += 1  # while this arm is judged
        dpo.session.context.counts["unparsed_judgements"] += 1
        assert arm.report().counts["unparsed_judgements"] == 1


@pytest.mark.parametrize(("arm", "term"), [("c3po", "near_nll"), ("dpo", "near_nll"), ("scd", "near_loss")])
@pytest.mark.parametrize(("every", "steps"), [(0, [5]), (2, [2, 4, 5]), (5, [5])])
def test_validation_is_in_the_result_by_scope_and_step(
    tiny: Path, tmp_path: Path, arm: str, term: str, every: int, steps: list[int]
):
    tuned = arms_of(
        small(tiny, tmp_path, [arm], steps=5, sft_steps=5, eval_every=every, lr=0.05, sft_lr=0.05)
    )[-1]
    tuned.prepare()
    curves = tuned.report().curves
    assert curves["validation_step"] == steps
    for name in (term, term.replace("near", "out")):
        values = curves[f"validation_{name}"]
        assert len(values) == len(steps) and len(set(values)) == len(steps)
    assert len(curves["train_loss"]) == 5


def test_evaluating_changes_no_adapter(tiny: Path, tmp_path: Path):
    def losses(every: int) -> list[float]:
        tuned = arms_of(
            small(tiny, tmp_path / str(every), ["scd_negatives"], sft_steps=4, eval_every=every, sft_lr=0.05)
        )[-1]
        tuned.prepare()
        (record,) = (
            json.loads(p.read_text()) for p in (tmp_path / str(every)).glob("cache/adapters/*/training.json")
        )
        return record["loss"]

    assert losses(1) == losses(0)


@pytest.mark.parametrize("arm", ["dpo", "scd"])
def test_dropout_is_on_in_every_arm(tiny: Path, tmp_path: Path, arm: str):
    """TRL switches it off by default, and transformers' trainer does not: arms would differ by more than their loss."""

    def losses(dropout: float) -> list[float]:
        cfg = small(tiny, tmp_path, [arm], steps=4, sft_steps=4, lr=0.05, sft_lr=0.05)
        cfg.feedback.lora = replace(cfg.feedback.lora, dropout=dropout)
        tuned = arms_of(cfg)[-1]
        tuned.prepare()
        return tuned.records[0]["loss"]

    assert losses(0.5)[-1] != losses(0.0)[-1]
