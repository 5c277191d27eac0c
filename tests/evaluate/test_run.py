"""The loop over arms: what it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from c3po_bench.analysis.config import AnalysisConfig
from c3po_bench.config import BackendConfig, Config, ModelConfig
from c3po_bench.contract import Arm, Backend
from c3po_bench.errors import UserError
from c3po_bench.evaluate.run import adopt, check_primary, open_backend, run, run_arm, shared_identity
from c3po_bench.feedback.arms import ARMS as FEEDBACK_ARMS
from c3po_bench.rewiring.arms import ARMS as REWIRING_ARMS
from c3po_bench.store.files import Journal
from tests.evaluate.conftest import config

REWIRED = [name for name in REWIRING_ARMS if name not in ("base", "planted_optimum", "right_expert")]
TRAINED = {
    name: {"steps": 1, "batch_size": 2, "learning_rate": 0.1}
    for name, row in REWIRING_ARMS.items()
    if row.references == "training"
}
TOKENS = torch.arange(5, 45)[None]


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(TOKENS.to(model.device)).logits.clone()


def arms_run(cfg: Config) -> Iterator[tuple[Backend, Arm, Tensor]]:
    """Each arm of `cfg` after it has answered and was closed, and the base model's logits before any of them."""
    backend = open_backend(cfg)
    shared = shared_identity(cfg, backend.tasks, backend)
    bare = logits(shared_model(backend))
    for arm in backend.arms():
        run = run_arm(cfg, arm, backend.tasks, backend, shared)
        assert run.samples(), arm.row.name
        yield backend, arm, bare
    backend.close()


def shared_model(backend: Any) -> Any:
    """The base model that the backend's arms share, as it is now: `loading.load` would first take adapters off."""
    feedback = getattr(backend, "feedback", backend)
    return feedback.session.context.subject.model if hasattr(feedback, "session") else backend.loaded.model


@pytest.mark.parametrize("tasks", [["facts_capitals"], ["feedback"]], ids=" ".join)
def test_rewiring_arms_leave_the_base_model_bit_equal(tasks: list[str], moe: Path, tmp_path: Path):
    """Those that choose among options, and those that write."""
    written = tasks == ["feedback"]  # the backend `both` has these
    names = [name for name in REWIRED if not written or len(REWIRING_ARMS[name].kinds) > 1]
    cfg = config(moe, tmp_path, ["base", *names])
    cfg.tasks, cfg.limit, cfg.arm_options, cfg.method.steps = tasks, 1, TRAINED, 2
    if not written:
        cfg.backend = BackendConfig("rewiring")
    closed = []
    for backend, arm, bare in arms_run(cfg):
        assert torch.equal(logits(shared_model(backend)), bare), arm.row.name
        closed.append(arm.row.name)
    assert closed == ["base", *names]


def test_the_planted_optimum_leaves_the_base_model_bit_equal(tmp_path: Path):
    cfg = Config(
        backend=BackendConfig("rewiring"), model=ModelConfig(name="planted", kind="planted"), limit=2
    )
    cfg.results_dir, cfg.tasks, cfg.arms = str(tmp_path), ["planted"], ["base", "planted_optimum"]
    cfg.method.layers, cfg.tracking.mode = "last:3", "disabled"
    for backend, arm, bare in arms_run(cfg):
        assert torch.equal(logits(shared_model(backend)), bare), arm.row.name


@pytest.mark.slow
def test_feedback_arms_leave_the_base_model_bit_equal(moe: Path, tmp_path: Path):
    """Also those that had put an adapter on it, which did move it."""
    cfg = config(moe, tmp_path, list(FEEDBACK_ARMS))
    cfg.backend, cfg.limit = BackendConfig("feedback"), 1
    cfg.feedback.train.steps = cfg.feedback.train.sft_steps = 2  # the rate of the first is 0
    cfg.feedback.pieces.append("hashtag_tweets")
    closed = []
    for backend, arm, bare in arms_run(cfg):
        assert torch.equal(logits(shared_model(backend)), bare), arm.row.name
        closed.append(arm.row.name)
        if arm.row.builds == "recipe":
            arm.prepare()
            assert not torch.equal(logits(shared_model(backend)), bare), f"{arm.row.name} tuned nothing"
            arm.close()
            assert torch.equal(logits(shared_model(backend)), bare), arm.row.name
    assert closed == list(FEEDBACK_ARMS)


def test_rewiring_after_tuning_leaves_both_models_bit_equal(moe: Path, tmp_path: Path):
    """The base model, and the one that the adapter is merged into, which every method shares."""
    chained = [name for name in REWIRED if name != "base_again"]  # base of a tuned model is the tuned model
    cfg = config(moe, tmp_path, ["base", "c3po", *(f"c3po_then_{name}" for name in chained)])
    cfg.tasks, cfg.limit, cfg.arm_options, cfg.method.steps = ["facts_capitals"], 1, TRAINED, 2
    merged = None
    for backend, arm, bare in arms_run(cfg):
        assert torch.equal(logits(shared_model(backend)), bare), arm.row.name
        if "_then_" in arm.row.name:
            tuned = arm.inner.backend.loaded
            if merged is None:
                merged = logits(AutoModelForCausalLM.from_pretrained(tuned.path).eval())
                assert not torch.equal(merged, bare), "nothing was tuned"
            assert torch.equal(logits(tuned.model), merged), arm.row.name


def test_a_base_that_is_not_as_published_is_said_before_other_arms_start(
    moe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    cfg = config(moe, tmp_path, ["base", "routing_temperature"])
    cfg.tasks, cfg.limit = ["facts_capitals", "facts_foods"], 40
    (base, _) = run(cfg)
    right = {task: [r["correct"] for r in base.samples() if r["task"] == task] for task in cfg.tasks}
    share = sum(right["facts_capitals"]) / len(right["facts_capitals"])
    cfg.model.published = {"facts_capitals": share, "facts_foods": 0.99, "piqa": 0.8}  # PIQA is not asked
    cfg.results_dir, cfg.log_level = str(tmp_path / "again"), "info"
    _, other = run(cfg)
    (note,) = [note for note in other.result["notes"] if "is published" in note]
    assert "facts_foods: base has" in note and "99.0% is published" in note
    assert note in capfd.readouterr().err.rpartition("routing_temperature: starting")[0]
    cfg.results_dir, cfg.scoring.num_fewshot = str(tmp_path / "shots"), 1
    assert not any(
        "published" in note for r in run(cfg) for note in r.result["notes"]
    )  # of zero-shot, the others


def test_a_torn_group_of_another_rank_is_not_adopted(tmp_path: Path):
    theirs = Journal(tmp_path / "journal-1.jsonl")
    theirs.append([{"key": "whole"}])
    theirs.append([{"key": name} for name in "abcd"])
    theirs.path.write_text("".join(theirs.path.read_text().splitlines(keepends=True)[:3]))
    ours = Journal(tmp_path / "journal.jsonl")
    adopt(ours, tmp_path)
    assert set(ours.rows) == {"whole"}


def test_a_primary_comparison_on_an_unknown_task_is_refused():
    tasks = SimpleNamespace(
        groups={"facts": ["facts_capitals"], "own/mine.yaml": ["mine_a"]}, configs={"facts_capitals": {}}
    )
    for task in ("facts", "mine", "facts_capitals", "all items"):
        check_primary(Config(analysis=AnalysisConfig(primary=f"ngd:{task}")), tasks)  # pyright: ignore[reportArgumentType]
    check_primary(Config(analysis=AnalysisConfig(primary="ngd")), tasks)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"analysis.primary.*facts_capital.*facts_capitals"):
        check_primary(Config(analysis=AnalysisConfig(primary="ngd:facts_capital")), tasks)  # pyright: ignore[reportArgumentType]


def test_rows_hold_the_prompt_as_it_was_asked(moe: Path, tmp_path: Path):
    """Base's rows do, of all arms, and those of arms that are asked otherwise: with examples, or a chat template."""
    cfg = config(moe, tmp_path, ["in_context", "ngd", "icl"])
    runs = {each.arm: {(row["task"], row["doc_id"]): row for row in each.samples()} for each in run(cfg)}
    for (task, number), row in runs["base"].items():
        others = {arm: rows[task, number].get("rendered") for arm, rows in runs.items()}
        (asked,) = row["rendered"]
        if task == "facts_capitals":
            assert row["question"] in asked and others["ngd"] is None is others["in_context"]
            (shown,) = others["icl"]
            assert shown.endswith(asked) and len(shown) > 2 * len(asked)
        else:
            assert row["prompt"] in asked and others["ngd"] == [asked]
            assert "wish of mine" in others["in_context"][0] and "wish of mine" not in asked
