"""`feedback=paper` is the published setting (arXiv 2402.10893, section 5, appendices A and B), and can be run."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir

from c3po_bench.cli import to_config
from c3po_bench.config import conf_dir
from c3po_bench.feedback.backend import FeedbackBackend
from c3po_bench.feedback.generators import general_prompts


@pytest.mark.parametrize("override", ["feedback=paper", "+experiment=mistral_feedback"])
def test_the_published_setting(override: str):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = to_config(compose("config", ["backend=feedback", override]))
    feedback, train, lora = cfg.feedback, cfg.feedback.train, cfg.feedback.lora
    assert (feedback.n_categories, feedback.n_in, feedback.n_near, feedback.test_share) == (32, 960, 960, 0.2)
    assert (feedback.beta, feedback.lambda_out, feedback.lambda_near, feedback.constraint) == (
        0.1,
        0.2,
        0.1,
        "nll",
    )
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (64, 128, 0.05, ["all-linear"])
    assert (train.lr, train.sft_lr, train.scheduler, train.warmup_ratio) == (5e-5, 5e-5, "cosine", 0.05)
    assert (train.steps, train.sft_steps, train.epochs) == (0, 0, 1.0)
    assert (
        train.batch_size,
        train.constraint_batch_size,
        train.gradient_accumulation_steps,
        train.max_length,
    ) == (
        1,
        1,
        16,
        2048,
    )
    for chat in (feedback.generator, feedback.reviser.writer, feedback.answers):
        assert (chat.temperature, chat.top_p) == (0.7, 0.7)
    limits = (
        feedback.generator.max_tokens,
        feedback.reviser.writer.max_tokens,
        feedback.answers.max_new_tokens,
    )
    assert limits == (4096, 600, 512)
    assert feedback.reviser.kind == "critique"
    assert len(general_prompts(feedback.out_of_scope, feedback.n_out, cfg.seed)) == feedback.n_out
    FeedbackBackend.check(cfg)
