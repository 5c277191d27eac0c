"""Tuned, rewired, and rewired after tuning, on a random MoE."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers.processors import TemplateProcessing

from c3po_bench.config import BackendConfig
from c3po_bench.errors import UserError
from c3po_bench.evaluate import run as harness
from c3po_bench.evaluate import tuned_then_rewired
from c3po_bench.evaluate.tuned_then_rewired import BothBackend, divide
from c3po_bench.models.tiny import CHARACTERS, tiny_model, tiny_tokenizer
from c3po_bench.store.records import write_sealed
from tests.evaluate.conftest import config


def test_all_four_meet_on_one_base(moe: Path, tmp_path: Path):
    cfg = config(moe, tmp_path, ["base", "c3po", "kernel_regression", "c3po_then_kernel_regression"])
    runs = {run.arm: run for run in harness.run(cfg)}
    assert list(runs) == cfg.arms
    assert len({run.result["comparison_key"] for run in runs.values()}) == 1
    for run in runs.values():
        assert {row["task"] for row in run.samples()} == {
            "in_scope",
            "near_scope",
            "out_of_scope",
            "facts_capitals",
        }
        assert "S_overall" in run.result["metrics"]["feedback"]
    one, two = (
        [row["loglikelihoods"] for row in runs[arm].samples() if row["task"] == "facts_capitals"]
        for arm in ("kernel_regression", "c3po_then_kernel_regression")
    )
    assert one != two  # the second is rewired on tuned weights


@pytest.mark.parametrize("odd", ["turn end", "start", "penalty"])
def test_a_pathway_that_is_not_moved_answers_as_the_base_does(odd: str, tmp_path: Path):
    """Under the same rule: where a turn's end is not EOS, texts get a first token, or `generate` has ideas of its own."""
    tokenizer, model, end = (
        tiny_tokenizer(),
        tiny_model("olmoe", max_position_embeddings=512),
        CHARACTERS.index("~"),
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["~"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}~{% endfor %}{% if add_generation_prompt %}: {% endif %}"
    )
    with torch.no_grad():
        model.lm_head.weight[end] = 1.2 * model.lm_head.weight[CHARACTERS.index("(")]  # so that turns do end
    if odd == "start":
        start = TemplateProcessing(single="# $A", special_tokens=[("#", CHARACTERS.index("#"))])
        tokenizer.backend_tokenizer.post_processor = start
    if odd == "penalty":
        model.generation_config.repetition_penalty = 1.5
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    cfg = config(tmp_path / "model", tmp_path, ["base", "ngd"])
    cfg.tasks, cfg.limit, cfg.method.steps = ["feedback"], 4, 0
    cfg.feedback.answers.max_new_tokens = 24
    rows = [row for run in harness.run(cfg) for row in run.samples()]
    assert all(row["response"] == row["baseline_response"] for row in rows)
    assert any(len(row["response"]) < 20 for row in rows)


def test_an_arm_that_had_to_wait_has_the_untouched_model(moe: Path, tmp_path: Path):
    cfg = config(moe, tmp_path, ["base", "c3po", "kernel_regression", "c3po_then_kernel_regression"])
    backend = harness.open_backend(cfg)
    _, tuned, waits, chain = backend.arms()
    tokens = torch.arange(5, 15)[None]
    bare = waits.inner.backend.loaded.model(tokens).logits
    tuned.prepare()
    chain.prepare()
    waits.prepare()
    assert torch.equal(waits.inner.backend.loaded.model(tokens).logits, bare)
    assert not torch.equal(chain.inner.backend.loaded.model(tokens).logits, bare)


def test_two_processes_do_not_merge_into_one_folder_at_once(
    moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cfg = config(moe, tmp_path, ["base", "c3po_then_kernel_regression"])
    *_, chain = harness.open_backend(cfg).arms()
    held: list[Path] = []

    @contextlib.contextmanager
    def other_process_first(folder: Path) -> Iterator[None]:
        folder.mkdir(parents=True, exist_ok=True)
        write_sealed(folder / "merged.json", {"arm": "c3po", "model": "m", "files": {}})
        held.append(folder)
        yield

    monkeypatch.setattr(tuned_then_rewired, "exclusive_lock", other_process_first)
    path = tuned_then_rewired.merged_model(chain.tuned, cfg.model).path
    assert [str(folder) for folder in held] == [path] and [p.name for p in held[0].iterdir()] == [
        "merged.json"
    ]


@pytest.mark.parametrize("first", ["base", "in_context", "revised"])
def test_a_chain_starts_with_something_tuned(first: str):
    with pytest.raises(UserError, match="tunes nothing"):
        divide([f"{first}_then_ngd"])


def test_names_are_divided_and_checked(moe: Path, tmp_path: Path):
    assert divide(["base", "dpo", "ngd", "c3po_then_ngd"]) == (["base", "dpo"], ["ngd"], [("c3po", "ngd")])
    with pytest.raises(UserError, match="ngd"):
        divide(["nggd"])
    cfg = config(moe, tmp_path, ["base", "c3po_then_ngd"])
    cfg.feedback.pieces = ["ahoy_greeting", "hashtag_tweets"]
    with pytest.raises(UserError, match="one adapter"):
        BothBackend.check(cfg)


def test_sampled_answers_are_compared_with_none_that_are_not(moe: Path, tmp_path: Path):
    cfg = config(moe, tmp_path, ["base", "c3po", "ngd"])
    cfg.feedback.answers.temperature = 0.7
    with pytest.raises(UserError, match="arm 'ngd' samples no answers .* leave out task 'feedback'"):
        BothBackend.check(cfg)
    cfg.tasks = ["facts_capitals"]
    BothBackend.check(cfg)
    cfg.tasks, cfg.arms = ["in_scope"], ["base", "c3po"]
    BothBackend.check(cfg)


def test_options_reach_the_controls_of_arms_that_are_not_run_and_misspelt_ones_are_refused(
    moe: Path, tmp_path: Path
):
    cfg = config(moe, tmp_path, ["base", "kernel_regression_random_neighbors"])
    cfg.arm_options = {"kernel_regression": {"search": "fixed", "alpha": 0.25}}
    cfg.tasks, cfg.limit = ["facts_capitals"], 1
    _, control = harness.run(cfg)
    assert (
        control.result["settings"]["option_alpha"] == 0.25
        and control.result["settings"]["option_search"] == "fixed"
    )
    for wrong in ("kernel_regresion", "dpo"):  # no arm; an arm of the other room that is not run
        with pytest.raises(UserError, match=wrong):
            BothBackend.check(replace(cfg, arm_options={wrong: {"alpha": 0.5}}))


@pytest.mark.parametrize(
    ("arm", "changes", "said"), [("oracle", {}, "needs choices"), ("ngd", {"layers": "last:99"}, "layers")]
)
def test_what_rewiring_refuses_is_refused_before_anything_is_tuned(
    arm: str, changes: dict[str, str], said: str, moe: Path, tmp_path: Path
):
    cfg = config(moe, tmp_path, ["base", "c3po", arm])
    cfg.method = replace(cfg.method, **changes)
    with pytest.raises(UserError, match=said):
        harness.run(cfg)
    assert not list((tmp_path / "results").glob("runs/*"))


@pytest.mark.parametrize("backend", ["feedback", "both"])
def test_written_answers_of_stock_tasks_stand_beside_feedback(backend: str, moe: Path, tmp_path: Path):
    """Both kinds of requests meet in one batch."""
    (tmp_path / "written").mkdir()
    docs = [{"question": f"what is {i}?", "answer": str(i)} for i in range(2)]
    (tmp_path / "written" / "test.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    task = {
        "task": "written",
        "dataset_path": "none",
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": ["\n"], "max_new_tokens": 3, "do_sample": False},
    }
    (tmp_path / "written.yaml").write_text(yaml.safe_dump(task))
    cfg = config(
        moe, tmp_path, ["base", "kernel_regression"] if backend == "both" else ["base", "in_context"]
    )
    cfg.arm_options = {"kernel_regression": {"search": "fixed", "alpha": 1.0}} if backend == "both" else {}
    cfg.backend, cfg.tasks, cfg.data.root = (
        BackendConfig(backend),
        [str(tmp_path / "written.yaml"), "feedback"],
        str(tmp_path),
    )
    answers = [
        [row["prediction"] for row in run.samples() if row["task"] == "written"] for run in harness.run(cfg)
    ]
    # its own pathway; a sentence that stock prompts do not have
    assert answers[0] == answers[1] and all(answers[0])


def test_arms_that_put_something_before_the_prompt_take_ids_too(moe: Path, tmp_path: Path):
    cfg = config(moe, tmp_path, ["base", "icl", "soft_prompt"])
    cfg.tasks, cfg.limit, cfg.arm_options = ["feedback"], 1, {"soft_prompt": {"steps": 0}}
    base, *others = harness.run(cfg)
    for run in others:
        assert any(row["response"] != row["baseline_response"] for row in run.samples()), run.arm
        assert [row["baseline_response"] for row in run.samples()] == [
            row["response"] for row in base.samples()
        ]


def test_lengths_are_of_what_was_written_also_where_texts_lose_their_spaces(tmp_path: Path):
    """An answer cut at a space has as many tokens as any that is cut, and no broken ending."""
    tokenizer, model = tiny_tokenizer(), tiny_model("olmoe", max_position_embeddings=512)
    with torch.no_grad():
        model.lm_head.weight[CHARACTERS.index(" ")] = 1.2 * model.lm_head.weight[CHARACTERS.index("(")]
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    cfg = config(tmp_path / "model", tmp_path, ["base", "ngd", "soft_prompt", "icl"])
    cfg.tasks, cfg.limit, cfg.method.steps, cfg.arm_options = (
        ["feedback"],
        3,
        0,
        {"soft_prompt": {"steps": 0}},
    )
    base, ngd, *others = harness.run(cfg)
    measured = [[row["degeneration"] for row in run.samples()] for run in (base, ngd)]
    assert measured[0] == measured[1]
    assert any(len(row["response"]) < row["degeneration"]["tokens"] for row in base.samples())
    assert all(row["degeneration"]["tokens"] == 4 for run in others for row in run.samples())
