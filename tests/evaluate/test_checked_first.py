"""What is wrong with references, prompts and functions is found before the base is scored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from c3po_bench.config import Config
from c3po_bench.errors import UserError
from c3po_bench.evaluate import run as harness
from c3po_bench.models.tiny import tiny_model, tiny_tokenizer
from tests.evaluate.conftest import config

TASK = {
    "task": "own",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "training_split": "train",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
}


def nothing_was_scored(cfg: Config) -> bool:
    return not list(Path(cfg.results_dir).glob("runs/*/journal.jsonl"))


@pytest.mark.parametrize(
    ("references", "reason"),
    [
        ({"tasks": ["facts_capitols"]}, "unknown task 'facts_capitols'"),
        ({"tasks": []}, "references.tasks is empty"),
        ({"tasks": ["in_scope"]}, "in_scope"),
    ],
)
@pytest.mark.parametrize("arm", ["ngd", "soft_prompt", "c3po_then_ngd"])
def test_references_of_both_are_read_before_the_base_answers(moe, tmp_path, references, reason, arm):
    cfg = config(moe, tmp_path, ["base", arm])
    cfg.references = replace(cfg.references, **references)
    with pytest.raises(UserError, match=reason):
        harness.run(cfg)
    assert nothing_was_scored(cfg)


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """A model that reads 64 tokens, and a task some of whose prompts are longer."""
    folder = tmp_path_factory.mktemp("short")
    tiny_model("olmoe", max_position_embeddings=64).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    words = {"test": (4, 58, 90), "train": (3, 5, 8, 12, 40, 70)}
    for split, lengths in words.items():
        rows = [
            {"question": f"{split} {'x' * length}?", "choices": ["a b", "c"], "answer": length % 2}
            for length in lengths
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(folder / f"{split}.jsonl") for split in words}
    (folder / "own.yaml").write_text(json.dumps(TASK | {"dataset_kwargs": {"data_files": files}}))
    return folder


def virtual(short: Path, results: Path, arm: str, tokens: int) -> Config:
    cfg = Config(arms=["base", arm], tasks=[str(short / "own.yaml")], results_dir=str(results))
    cfg.model.kind, cfg.model.path, cfg.model.device = "hf", str(short / "model"), "cpu"
    cfg.references.tasks, cfg.references.only_correct = [str(short / "own.yaml")], False
    cfg.embedder.name, cfg.tracking.mode = "hidden_states", "disabled"
    cfg.arm_options = {arm: {"steps": 2, "tokens": tokens}}
    return cfg


@pytest.mark.parametrize("arm", ["soft_prompt", "prefix_tuning"])
def test_prompts_behind_virtual_tokens_are_cut_to_the_window_and_counted(short, tmp_path, arm, monkeypatch):
    cfg = virtual(short, tmp_path, arm, 8)
    lengths = []
    forward = type(harness.open_backend(cfg).loaded.model).forward

    def watched(self, *args, **kwargs):
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        past = kwargs.get("past_key_values")
        before = past.get_seq_length() if past is not None else 0
        lengths.append(before + (ids if embeds is None else embeds).shape[1])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(harness.open_backend(cfg).loaded.model), "forward", watched)
    run = harness.run(cfg)[1]
    assert max(lengths) <= 64
    rows = run.samples()
    assert [("prompt_tokens_cut" in row) for row in rows] == [False, True, True]
    assert (
        f"{arm}: 2 prompts are longer than the model reads, and lose their beginning" in run.result["notes"]
    )


@pytest.mark.parametrize("tokens", [61, 64, 200])
def test_virtual_tokens_that_leave_no_room_are_refused_first(short, tmp_path, tokens):
    cfg = virtual(short, tmp_path, "soft_prompt", tokens)
    with pytest.raises(UserError, match=f"{tokens} virtual tokens .*leave no room for a prompt in"):
        harness.run(cfg)
    assert nothing_was_scored(cfg)


def test_the_command_fixes_the_order_of_sets():
    """A task's function that goes through a set of texts then asks the same in each run."""
    code = (
        "import sys; from c3po_bench import __main__ as m; m.fix_hashes(); print(hash('text'), sys.argv[1:])"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"}
    said = {
        subprocess.run(
            [sys.executable, "-c", code, "a", "b c"], env=env, capture_output=True, text=True
        ).stdout
        for _ in range(2)
    }
    assert len(said) == 1 and "['a', 'b c']" in said.pop()
    chosen = subprocess.run(
        [sys.executable, "-c", code], env=env | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True
    )
    assert chosen.stdout not in said
