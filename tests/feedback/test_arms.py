"""Whole feedback experiments on a random model: arms, tasks, scores, resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

from c3po_bench.analysis.compare import compare
from c3po_bench.config import BackendConfig, Config, ModelConfig, check_ranges
from c3po_bench.errors import UserError
from c3po_bench.evaluate import run as harness
from c3po_bench.feedback import synthesis
from c3po_bench.feedback.answering import Answer, answer_all, prompt_ids
from c3po_bench.feedback.arms import ANSWER, PROMPT_VARIANTS, check_arms
from c3po_bench.feedback.backend import FeedbackBackend
from c3po_bench.feedback.config import FeedbackConfig, GenerationConfig, LoraConfig, TrainConfig
from c3po_bench.feedback.measures import s_metrics
from c3po_bench.feedback.responder import Responder
from c3po_bench.feedback.session import FeedbackSession
from c3po_bench.feedback.training.recipes import SCHEDULERS, check_values, make_plan
from c3po_bench.store.schema import Sample
from tests.feedback.conftest import quick

ARMS = ["base", "in_context", "in_context_cot", "dpo", "c3po_kl", "c3po_from_sft", "revised"]
SEVERAL = ["dpo_mix", "c3po_joint"]


def config(tiny: Path, folder: Path, arms: list[str], **changes: Any) -> Config:
    feedback = FeedbackConfig(
        pieces=["ahoy_greeting", "hashtag_tweets"],
        cache_dir=str(folder / "cache"),
        n_categories=4,
        n_in=12,
        n_near=8,
        n_out=8,
        answers=GenerationConfig(max_new_tokens=8, batch_size=8),
        lora=LoraConfig(rank=2, alpha=4),
        train=TrainConfig(
            steps=2, sft_steps=2, batch_size=2, constraint_batch_size=2, lr=1e-3, precision="float32"
        ),
    )
    values: dict[str, Any] = {"tasks": ["feedback"], "feedback": feedback, "arms": arms}
    cfg = Config(
        name="test",
        backend=BackendConfig("feedback"),
        model=ModelConfig(name="tiny", kind="hf", path=str(tiny), device="cpu"),
        results_dir=str(folder / "results"),
        **{**values, **changes},
    )
    cfg.tracking.mode = "disabled"
    return cfg


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("feedback")
    cfg = config(tiny, folder, [*ARMS, *SEVERAL], tasks=["feedback", "facts_capitals"], limit=3)
    return {run.arm: run for run in harness.run(cfg)}


def test_every_arm_answers_every_task(runs: dict[str, Any]):
    assert set(runs) == {*ARMS, *SEVERAL}
    keys = {run.result["comparison_key"] for run in runs.values()}
    assert len(keys) == 1
    for run in runs.values():
        assert set(run.result["metrics"]) >= {
            "in_scope",
            "near_scope",
            "out_of_scope",
            "facts_capitals",
            "feedback",
        }
        assert {row["task"] for row in run.samples()} == {
            "in_scope",
            "near_scope",
            "out_of_scope",
            "facts_capitals",
        }
        assert set().union(*run.samples()) <= set(Sample.__annotations__), "every field is documented"


def test_rows_say_what_was_compared(runs: dict[str, Any]):
    rows = [row for row in runs["dpo"].samples() if row["task"] != "facts_capitals"]
    for row in rows:
        assert {"scope", "feedback_id", "prompt", "response", "baseline_response", "score", "drift"} <= set(
            row
        )
        assert row["correct"] == (row["score"] if row["scope"] == "in" else abs(row["score"]))
        assert set(row["degeneration"]) == {"repetition", "broken_ending", "tokens", "length_ratio"}
    assert {row["scope"] for row in rows} == {"in", "near", "out"}


def test_base_says_what_the_bare_model_says_and_tuning_drifts(runs: dict[str, Any], tiny: Path):
    def drifts(arm: str) -> list[float]:
        return [row["drift"] for row in runs[arm].samples() if "drift" in row]

    assert all(value > 0 for value in drifts("dpo") + drifts("in_context"))
    assert set(drifts("revised")) == {None}
    base = [row for row in runs["base"].samples() if "scope" in row]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    prompts = [prompt_ids(tokenizer, row["prompt"]) for row in base]
    answers = answer_all(model, tokenizer, prompts, GenerationConfig(max_new_tokens=8, batch_size=4))
    for arm in runs:
        told = [row["baseline_response"] for row in runs[arm].samples() if "scope" in row]
        assert told == [answer.text for answer in answers], arm
    assert [row["response"] for row in base] == [answer.text for answer in answers]
    assert all(row["score"] == 0 for row in base)


def test_only_prompts_that_are_asked_are_answered(tiny: Path, tmp_path: Path):
    """The rest of the data is made when an arm is trained; the shared baselines are charged to no arm."""
    found = harness.run(config(tiny, tmp_path, ["base", "in_context"], limit=1))
    (answers,) = tmp_path.glob("cache/ledgers/answers-*.jsonl")
    asked = {row["prompt"] for row in found[0].samples()}
    assert len(answers.read_text().splitlines()) == len(asked) == 3
    assert all("baselines" not in run.result["cost"]["phases"] for run in found)


def test_training_needs_no_answers_or_revisions_of_tests(tiny: Path, tmp_path: Path):
    """They were made for tests that `limit` leaves out, and for stock tasks alone; what training sees is the same."""
    cfg = config(tiny, tmp_path, ["base", "dpo"], limit=1)
    harness.run(cfg)
    (answers,) = tmp_path.glob("cache/ledgers/answers-*.jsonl")
    made = FeedbackSession(cfg)
    tests = [e for m in made.datasets for e in m.examples if e.split == "test"]
    trained = {e.prompt for m in made.datasets for e in m.examples if e.split != "test"}
    assert tests and all(e.baseline is None and e.revised is None for e in tests)
    assert len(answers.read_text().splitlines()) == len(trained) + 3
    whole = FeedbackSession(replace(cfg, arms=["base", "dpo", "revised"]))
    assert [m.digest() for m in whole.datasets] == [m.digest() for m in made.datasets]
    assert all(e.baseline is not None for m in whole.datasets for e in m.examples)


@pytest.mark.parametrize("who", ["judge", "reviser"])
def test_a_judge_or_writer_without_endpoint_is_refused_before_anything_is_written(
    tiny: Path, tmp_path: Path, who: str
):
    """All prompts had been made by then, and the model had answered them."""
    cfg = config(tiny, tmp_path, ["base", "dpo"], limit=1)
    cfg.feedback.judge.kind = "openai" if who == "judge" else "auto"
    if who == "reviser":
        cfg.feedback.reviser.kind, cfg.feedback.reviser.writer.kind = "critique", "openai"
    with pytest.raises(UserError, match="base_url"):
        harness.run(cfg)
    assert not list(tmp_path.glob("cache/*"))


def test_answering_the_training_prompts_shows_progress(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """There were minutes without a word, and no place to stop at."""
    seen = []
    monkeypatch.setattr(synthesis, "Progress", lambda: lambda *told: seen.append(told[1:]))
    assert FeedbackSession(config(tiny, tmp_path, ["base", "dpo"])).datasets
    assert len(seen) > 1 and seen == sorted(seen) and seen[-1][0] == seen[-1][1]


def test_answers_scored_against_other_baselines_are_not_compared(tiny: Path, tmp_path: Path):
    """As when the cache was lost between two arms, and the base model answered anew on another machine."""
    cfg = config(tiny, tmp_path, ["base", "in_context"], limit=1)
    base, other = harness.run(cfg)
    rows = other.samples()
    assert [row["doc_hash"] for row in rows] == [row["doc_hash"] for row in base.samples()]
    assert len(compare([base, other])) > 0
    (tmp_path / "cache" / "ledgers").rename(tmp_path / "lost")
    for path in (tmp_path / "lost").glob("answers-*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            del line["line_crc"]
        changed = [{**line, "value": {**line["value"], "text": "something else"}} for line in lines]
        (tmp_path / "cache" / "ledgers").mkdir(exist_ok=True)
        (tmp_path / "cache" / "ledgers" / path.name).write_text(
            "".join(json.dumps(line) + "\n" for line in changed)
        )
    shutil.rmtree(other.path)
    base, other = harness.run(cfg)
    with pytest.raises(UserError, match="items differ in content"):
        compare([base, other])


def test_a_mix_is_all_adapters_at_once(tiny: Path, tmp_path: Path):
    cfg = config(tiny, tmp_path, ["dpo_mix"])
    cfg.feedback.train = replace(cfg.feedback.train, lr=0.1)
    *_, arm = harness.open_backend(cfg).arms()
    model, speaks = arm.tuned_model()
    assert set(speaks.values()) == {"on_mix"}
    alone = [name for name in model.peft_config if name != "on_mix"]
    assert len(alone) == 2

    def logits(names: str | list[str]) -> torch.Tensor:
        model.base_model.set_adapter(names)
        with torch.inference_mode():
            return model(torch.arange(4, 40)[None]).logits

    mix, together = logits("on_mix"), logits(alone)
    torch.testing.assert_close(mix, together, atol=1e-5, rtol=1e-4)
    for name in alone:
        assert (mix - logits(name)).abs().max() > 0.01, name


def test_the_ceiling_follows_and_does_not_leak(runs: dict[str, Any]):
    assert runs["revised"].result["metrics"]["feedback/ahoy_greeting"]["S_overall"] == 1.0


def test_results_say_how_arms_were_tuned(runs: dict[str, Any]):
    result = runs["c3po_kl"].result
    assert result["settings"]["constraint"] == "kl" and result["settings"]["routers_trained"] is False
    phases = result["cost"]["phases"]
    assert all(
        phases[name]["seconds"] > 0 and phases[name]["flops"] > 0 for name in ("train", "generate", "drift")
    )
    assert len(result["curves"]["train_loss"]) == 2 and "train_near_kl" in result["curves"]
    assert result["counts"]["pairs"] > 0
    assert runs["in_context"].result["settings"]["prompt_differs"] is True


def test_a_sentence_that_is_not_in_stock_prompts_is_told(runs: dict[str, Any]):
    noted = [
        arm
        for arm, run in runs.items()
        if any("without the feedback in the prompt" in n for n in run.result["notes"])
    ]
    assert noted == ["in_context", "in_context_cot"]
    asked = {
        arm: [r["loglikelihoods"] for r in runs[arm].samples() if r["task"] == "facts_capitals"]
        for arm in runs
    }
    assert asked["in_context"] == asked["base"]


def test_an_answer_that_is_not_told_from_its_reasoning_is_counted(runs: dict[str, Any], tiny: Path):
    """A random model never writes the marker; one that does is scored, and measured, by what stands behind it."""
    counts = {arm: run.result["counts"].get("unparsed_reasoning", 0) for arm, run in runs.items()}
    asked = sum("scope" in row for row in runs["in_context_cot"].samples())
    assert counts == {arm: asked * (arm == "in_context_cot") for arm in runs} and asked > 0
    assert f"unparsed_reasoning: {asked}" in runs["in_context_cot"].result["notes"]

    context = SimpleNamespace(subject=SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(tiny)))
    made = cast(Any, SimpleNamespace(context=context))
    lm = Responder(PROMPT_VARIANTS["in_context_cot"], [], made, None, {}, lambda *_: None, 1)
    assert lm._read(Answer(f"It applies. {ANSWER} Ahoy!", True, 99)) == (Answer("Ahoy!", True, 5), {})
    assert lm._read(Answer("It applies.", False, 99)) == (
        Answer("It applies.", False, 99),
        {"unparsed_reasoning": True},
    )


def test_running_again_changes_nothing(runs: dict[str, Any], tiny: Path):
    folder = Path(runs["base"].path).parents[2]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jsonl")}
    harness.run(config(tiny, folder, ARMS, tasks=["feedback", "facts_capitals"], limit=3))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.jsonl")} == before


@pytest.mark.parametrize(
    ("arms", "options", "said"),
    [
        (["c3p0"], {}, "c3po"),
        (["c3po_mix"], {}, "several pieces"),
        (["c3po"], {"c3po": {"lamda_near": 1}}, "lambda_near"),
        (["c3po"], {"dpo": {"beta": 1}}, "dpo"),
        (["base"], {"base": {"beta": 1}}, "no options"),
        (["dpo_nll"], {"dpo_nll": {"loss_type": ["ipo"]}}, "loss_type would change nothing"),
        (["c3po_kl"], {"c3po_kl": {"constraint": "nll"}}, "constraint would change nothing"),
        (["c3po_no_near"], {"c3po_no_near": {"lambda_near": 0.5}}, "lambda_near would change nothing"),
        (["c3po"], {"c3po": {"sft_steps": 5}}, "sft_steps would change nothing"),
        (["c3po"], {"c3po": {"epochs": 2.0}}, "epochs would change nothing"),
        (["dpo"], {"dpo": {"constraint_batch_size": 5}}, "constraint_batch_size would change nothing"),
        (["scd"], {"scd": {"beta": 0.5}}, "beta would change nothing"),
        (["c3po"], {"c3po": {"beta": "abc"}}, "arm_options.c3po.beta=abc: must be a number"),
        (["c3po"], {"c3po": {"beta": True}}, "arm_options.c3po.beta=True: must be a number"),
        (["c3po"], {"c3po": {"lr": "fast"}}, "arm_options.c3po.lr=fast: must be a number"),
        (["c3po"], {"c3po": {"lr": None}}, "arm_options.c3po.lr=None: must be a number"),
        (["c3po"], {"c3po": {"steps": 1.5}}, "arm_options.c3po.steps=1.5: must be a whole number"),
        (["c3po"], {"c3po": {"routers": 1}}, "arm_options.c3po.routers=1: must be true or false"),
        (
            ["c3po"],
            {"c3po": {"loss_type": "ipo"}},
            r"arm_options.c3po.loss_type=ipo: must be a list of names, such as \[ipo\]",
        ),
        (["c3po"], {"c3po": {"loss_type": [1]}}, r"arm_options.c3po.loss_type=\[1\]: must be names"),
        (["c3po"], {"c3po": {"constraint_batch_size": 0}}, "constraint_batch_size=0"),
    ],
)
def test_wrong_arms_are_refused_at_once(arms: list[str], options: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        check_arms(arms, FeedbackConfig(), options, n_feedbacks=1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lambda_near": -1.0}, "feedback.lambda_near=-1.0: must be a number of at least 0"),
        ({"lambda_out": float("nan")}, "feedback.lambda_out=nan"),
        ({"beta": 0.0}, "feedback.beta=0.0: must be above 0"),
        *(
            ({"train": TrainConfig(**{key: value})}, f"feedback.train.{key}={value}.*at least")
            for key, value in {
                "batch_size": 0,
                "constraint_batch_size": 0,
                "gradient_accumulation_steps": 0,
                "steps": -1,
                "sft_steps": -1,
                "warmup_ratio": -1.0,
                "lr": -1e-3,
                "eval_every": -1,
                "max_length": 0,
            }.items()
        ),
        ({"train": TrainConfig(epochs=0.0)}, "feedback.train.epochs=0.0: must be above 0"),
        ({"train": TrainConfig(scheduler="cosin")}, "unknown feedback.train.scheduler 'cosin'.*'cosine'"),
        ({"loss_type": ["sigmoid", "ippo"]}, "unknown feedback.loss_type 'ippo'.*'ipo'"),
        ({"lora": LoraConfig(dropout=1.0)}, "feedback.lora.dropout=1.0"),
    ],
    ids=str,
)
def test_values_that_no_training_can_use_are_refused(changes: dict[str, Any], said: str):
    check_values(FeedbackConfig())
    with pytest.raises(UserError, match=said):
        check_values(replace(FeedbackConfig(), **changes))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("n_categories", 0, "at least 1"),
        ("n_categories", -1, "at least 1"),
        ("answers.temperature", -1.0, "at least 0"),
        ("answers.top_p", 0.0, "above 0 and at most 1"),
        ("answers.batch_size", 0, "at least 1"),
        ("answers.max_new_tokens", 0, "at least 1"),
        ("generator.concurrency", 0, "at least 1"),
        ("judge.chat.timeout", 0.0, "above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(key: str, value: float, said: str):
    cfg = Config()
    check_ranges(cfg)
    *sections, name = key.split(".")
    section: Any = cfg.feedback
    for part in sections:
        section = getattr(section, part)
    setattr(section, name, value)
    with pytest.raises(UserError, match=f"feedback.{key}={value}: must be .*{said}"):
        check_ranges(cfg)


@pytest.mark.parametrize("part", ["experts", "routers"])
def test_adapters_that_cannot_be_mixed_are_refused_before_they_are_trained(part: str):
    cfg = FeedbackConfig(lora=LoraConfig(**{part: True}))
    check_arms(["c3po_joint"], cfg, {}, n_feedbacks=2)
    for section, options in ((cfg, {}), (FeedbackConfig(), {"c3po_mix": {part: True}})):
        with pytest.raises(UserError, match=f"c3po_mix.*{part}=false"):
            check_arms(["c3po_mix"], section, options, n_feedbacks=2)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_schedule_can_be_built(name: str):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=5e-5)
    schedule, rates = get_scheduler(name, optimizer, 1, 10), []
    for _ in range(10):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert 0 < max(rates) <= 5e-5 and min(rates) >= 0


def test_a_scope_without_test_prompts_is_refused(tiny: Path, tmp_path: Path):
    for scope in ("in", "near", "out"):
        cfg = config(tiny, tmp_path, ["base"])
        setattr(cfg.feedback, f"n_{scope}", 1)
        with pytest.raises(UserError, match=f"no {scope}-scope test prompts.*raise feedback.n_{scope}"):
            assert FeedbackSession(cfg).tests


def test_options_that_change_something_are_taken():
    for arm, options in {
        "dpo_nll": {"beta": 0.5},
        "c3po": {"constraint": "kl", "steps": 0, "epochs": 2.0},
        "c3po_from_sft": {"sft_lr": 1e-3, "sft_steps": 0, "epochs": 2.0},
        "scd": {"sft_steps": 0, "epochs": 2.0, "rank": 4},
        "c3po_no_near": {"lambda_out": 0.5, "constraint_batch_size": 2},
    }.items():
        check_arms([arm], FeedbackConfig(), {arm: options}, n_feedbacks=1)
        assert (
            make_plan(arm, FeedbackConfig(), options).identity()
            != make_plan(arm, FeedbackConfig()).identity()
        )


def test_wrong_pieces_and_kinds_are_refused_before_anything_is_loaded(tiny: Path, tmp_path: Path):
    cfg = config(tiny, tmp_path, ["base"])
    cfg.feedback.pieces = ["ahoy_greting"]
    with pytest.raises(UserError, match="ahoy_greeting"):
        FeedbackBackend.check(cfg)
    cfg.feedback.pieces, cfg.feedback.constraint = ["ahoy_greeting"], "ltl"
    with pytest.raises(UserError, match="nll"):
        FeedbackBackend.check(cfg)
    cfg.feedback.constraint, cfg.feedback.judge.kind = "nll", "rules"
    with pytest.raises(UserError, match="rule"):
        FeedbackBackend.check(cfg)


def test_s_metrics_are_the_papers():
    rows = [
        {"scope": s, "feedback_id": f, "score": v}
        for s, f, v in (
            ("in", "a", 1.0),
            ("in", "a", 0.0),
            ("in", "b", -1.0),
            ("near", "a", -1.0),
            ("near", "b", 0.0),
            ("out", "a", 0.0),
        )
    ]
    found = s_metrics(rows)
    assert found == {"S_in": -0.25, "S_near": 0.5, "S_out": 0.0, "S_overall": (-0.25 + 1 - 0.25) / 2}


@pytest.mark.slow
def test_a_killed_run_ends_as_an_uninterrupted_one(tiny: Path, tmp_path: Path):
    def start(folder: Path) -> subprocess.Popen[bytes]:
        words = quick(tiny, folder, "arms=[c3po]", "feedback.train.steps=24")
        root = Path(__file__).resolve().parents[2]
        return subprocess.Popen(
            [sys.executable, "-m", *words], cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    assert start(tmp_path / "whole").wait() == 0
    folder = tmp_path / "killed"
    for sign in (
        "cache/ledgers/*.jsonl",
        "cache/adapters/*/checkpoints/checkpoint-20/trainer_state.json",
        "out/runs/c3po*/journal.jsonl",
    ):
        process = start(folder)
        while process.poll() is None and not any(path.stat().st_size for path in folder.glob(sign)):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(folder).wait() == 0
    one, two = (
        next(f.glob("cache/adapters/*/adapter_model.safetensors")) for f in (tmp_path / "whole", folder)
    )
    for name, weight in load_file(one).items():
        assert weight.equal(load_file(two)[name]), name
    texts = [next(f.glob("out/runs/c3po*/samples.jsonl")).read_text() for f in (tmp_path / "whole", folder)]
    assert texts[0] == texts[1]
    answers = next(folder.glob("cache/ledgers/answers-*.jsonl")).read_text().splitlines()
    assert len(answers) == len(set(answers)) == 48  # nothing answered twice


def test_a_kill_behind_the_last_answer_loses_nothing_of_the_training(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Counts, curves and cost are those of the training's record, whichever process trained."""
    cfg = config(tiny, tmp_path, ["scd"])
    made = harness.make_result

    def killed(cfg: Config, arm: Any, *rest: Any) -> dict[str, Any]:
        if arm.row.name == "scd":
            raise SystemExit
        return made(cfg, arm, *rest)

    whole = harness.run(replace(cfg, results_dir=str(tmp_path / "whole")))[1].result
    monkeypatch.setattr(harness, "make_result", killed)
    with pytest.raises(SystemExit):
        harness.run(cfg)
    monkeypatch.setattr(harness, "make_result", made)
    again = harness.run(cfg)[1].result
    assert again["curves"] == whole["curves"] and again["counts"] == whole["counts"]
    assert "train_loss" in again["curves"] and again["counts"]["in_rows"]
    assert again["cost"]["phases"]["train"] == whole["cost"]["phases"]["train"]


def test_an_arm_answers_with_its_adapter_though_the_calls_before_it_are_lost(tiny: Path, tmp_path: Path):
    """The base's answers are then written again meanwhile, with the adapter on the model."""
    cfg = config(tiny, tmp_path, ["scd"])
    whole = harness.run(cfg)
    rows = [run.samples() for run in whole]
    shutil.rmtree(whole[1].path)
    for path in (tmp_path / "cache" / "ledgers").iterdir():
        path.unlink()
    assert [run.samples() for run in harness.run(cfg)] == rows
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(whole[1].path)
    assert [run.samples() for run in harness.run(cfg)] == rows


def test_a_damaged_adapter_is_trained_anew(tiny: Path, tmp_path: Path):
    cfg = config(tiny, tmp_path, ["scd"])
    whole = harness.run(cfg)
    rows = whole[1].samples()
    adapter = min((tmp_path / "cache" / "adapters").glob("*/adapter_model.safetensors"))
    for name, harm in (("adapter_model.safetensors", 7), ("training.json", 40), ("adapter_config.json", 9)):
        shutil.rmtree(whole[1].path)
        path = adapter.with_name(name)
        data = bytearray(path.read_bytes())
        data[-harm] ^= 1
        path.write_bytes(data)
        kept = path.read_bytes()
        assert harness.run(cfg)[1].samples() == rows
        assert path.read_bytes() != kept, "it was made again"


def test_a_training_that_diverges_ends_with_its_step_and_leaves_nothing_done(tiny: Path, tmp_path: Path):
    cfg = config(tiny, tmp_path, ["scd"])
    cfg.feedback.train.sft_lr = 1e30
    for _ in range(2):
        with pytest.raises(UserError, match=r"scd: .* (nan|inf) at step \d"):
            harness.run(cfg)
    assert not list(tmp_path.rglob("training.json")) and not list(tmp_path.rglob("checkpoint-*"))
    assert not list((tmp_path / "results" / "runs").glob("scd-*/result.json"))
