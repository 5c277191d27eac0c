"""RLVF's theory at reduced size: DPO on pairs from two policies lands where the paper says (section 4, appendix C)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from c3po_bench.feedback.training.losses import (
    CHECKPOINTING,
    ConstrainedDPOConfig,
    ConstrainedDPOTrainer,
)

ARMS, FIRST, SPREAD = 12, 100, 2.0  # arms are the tokens FIRST ... FIRST + ARMS - 1
BETTER, WORSE = 6.0, 4.0


def bell(center: float) -> torch.Tensor:
    return torch.softmax(-((torch.arange(ARMS) - center) ** 2) / (2 * SPREAD**2), dim=0)


@torch.no_grad()
def policy(model: torch.nn.Module) -> torch.Tensor:
    """What a one-token prompt makes the model choose among the arms."""
    logits = model(input_ids=torch.tensor([[50]])).logits[0, -1]
    return logits[FIRST : FIRST + ARMS].softmax(0)


def drawn(center: float, n: int, generator: torch.Generator) -> torch.Tensor:
    """`n` arms in the policy's exact proportions, in random order: a draw without the noise of its tails."""
    ends = (bell(center).cumsum(0) * n).round().long()
    counts = torch.diff(ends, prepend=torch.tensor([0]))
    arms = torch.repeat_interleave(torch.arange(ARMS), counts) + FIRST
    return arms[torch.randperm(len(arms), generator=generator)]


def bandit(folder: Path) -> torch.nn.Module:
    """A model whose choice follows the worse policy exactly, and whose only free weights are the arms' logits."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([[50]])).last_hidden_state[0, -1]
        head = torch.full((model.config.vocab_size, len(hidden)), 0.0)
        logits = torch.full((model.config.vocab_size,), -30.0)
        logits[FIRST : FIRST + ARMS] = bell(WORSE).log()
        head += logits[:, None] * hidden[None] / hidden.square().sum()
        model.lm_head.weight = torch.nn.Parameter(head)
    for name, weight in model.named_parameters():
        weight.requires_grad = name == "lm_head.weight"
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "center"), [(1.0, 6.0), (0.5, 8.0), (2.0, 5.0)])
def test_dpo_finds_the_optimum_of_the_theory(tiny: Path, tmp_path: Path, beta: float, center: float):
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (drawn(center, 12800, generator) for center in (BETTER, WORSE))
    pairs = [
        {"prompt_ids": [50], "chosen_ids": [int(c)], "rejected_ids": [int(r)]}
        for c, r in zip(chosen, rejected, strict=True)
    ]
    args = ConstrainedDPOConfig(
        output_dir=str(tmp_path),
        beta=beta,
        learning_rate=0.02,
        max_steps=80,
        per_device_train_batch_size=256,
        lr_scheduler_type="linear",
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        max_grad_norm=0.0,
        disable_tqdm=True,
        **{CHECKPOINTING: False},
        logging_strategy="no",
        optim="adamw_torch",
    )
    model, reference = bandit(tiny), bandit(tiny)
    assert torch.allclose(policy(model), bell(WORSE), atol=1e-5)
    trainer = ConstrainedDPOTrainer(
        model=model,
        ref_model=reference,
        args=args,
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(tiny),
    )
    trainer.train()
    optimum = torch.softmax((bell(BETTER).log() - (1 - beta) * bell(WORSE).log()) / beta, dim=0)
    learned = policy(trainer.model)
    positions = torch.arange(ARMS, dtype=torch.float32)
    assert float((learned * positions).sum()) == pytest.approx(float((optimum * positions).sum()), abs=0.35)
    assert (learned - optimum).abs().sum() < 0.35 < (learned - bell(WORSE)).abs().sum()
    assert float((optimum * positions).sum()) == pytest.approx(center, abs=0.5)
