"""Chats as token ids, and answers that do not depend on their batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from c3po_bench.feedback.answering import answer_all, answer_batch, completion_ids, prompt_ids, turn_end_ids
from c3po_bench.feedback.config import GenerationConfig


def test_chats_become_the_ids_that_the_model_generates(tiny: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert turn_end_ids(tokenizer) == [tokenizer.eos_token_id]
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}], return_dict=True
    ).input_ids
    mine = prompt_ids(tokenizer, "Hi") + completion_ids(tokenizer, "Yes.")
    assert list(whole)[: len(mine)] == mine
    assert completion_ids(tokenizer, "Yes.", finished=False) == mine[-5:-1]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_answers_do_not_depend_on_their_batch(tiny: Path, temperature: float):
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32),
        AutoTokenizer.from_pretrained(tiny),
    )
    prompts = [prompt_ids(tokenizer, "a" * n) for n in (1, 9, 4, 15)]
    cfg = GenerationConfig(max_new_tokens=6, batch_size=2, temperature=temperature)
    told: dict[int, str] = {}
    answers = answer_all(
        model, tokenizer, prompts, cfg, done=lambda found: told.update({i: a.text for i, a in found.items()})
    )
    assert answers == [answer_batch(model, tokenizer, [p], cfg)[0] for p in prompts]
    assert told == {i: a.text for i, a in enumerate(answers)}
    known = [answers[0], None, answers[2], answers[3]]
    assert answer_all(model, tokenizer, prompts, cfg, known=known) == answers
