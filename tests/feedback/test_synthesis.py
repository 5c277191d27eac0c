"""From pieces to prompts, splits and answers: nothing in two splits, nothing asked twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from c3po_bench.feedback.answering import Answer
from c3po_bench.feedback.calls import CallCache
from c3po_bench.feedback.config import FeedbackConfig
from c3po_bench.feedback.context import SynthesisContext
from c3po_bench.feedback.sentences import find_feedback, parse_feedback
from c3po_bench.feedback.synthesis import (
    Example,
    _answer_key,
    known_answers,
    write_all,
    write_prompts,
)
from tests.feedback.stub_server import PIECE, chat_config, make_context, serve
from tests.feedback.test_generators import listing


def test_several_pieces_agree_on_scopes_and_splits(tmp_path: Path):
    """Else a joint adapter is trained on what it is tested on, and told to keep what another piece changes."""
    slots = {
        "a": {"who": "Ann", "others": ["Ben", "Cem", "Dee"]},
        "b": {"who": "Ben", "others": ["Eva", "Dee", "Ann", "Cem"]},
    }
    record = {"content": "c", "domain": "d", "effect": "e", "scene": "email"}
    pieces = [parse_feedback({**record, "id": name, "slots": own}) for name, own in slots.items()]
    context = SynthesisContext(
        FeedbackConfig(cache_dir=str(tmp_path), n_in=80, n_near=80, n_out=8), None, seed=0
    )
    alone = [write_prompts(piece, context) for piece in pieces]
    assert conflicts(alone) == (True, True)
    for _ in range(2):
        together = write_all(pieces, context)
        assert conflicts(together) == (False, False)
        assert context.counts["duplicate_prompts"] == sum(map(len, alone)) - sum(map(len, together)) > 0
    other = find_feedback(["ahoy_greeting", "no_advice_money", "lower_case_chat"])
    assert write_all(other, context) == [write_prompts(piece, context) for piece in other]  # these never met


def conflicts(drafts: list[list[Example]]) -> tuple[bool, bool]:
    """Whether a prompt in scope is near scope elsewhere, and whether one has two splits."""
    every = [e for examples in drafts for e in examples]
    inside = {e.prompt for e in every if e.scope == "in"}
    return (
        any(e.scope != "in" and e.prompt in inside for e in every),
        len({(e.prompt, e.split) for e in every}) > len({e.prompt for e in every}),
    )


def test_prompts_stay_in_their_split_when_a_call_fails_first_and_works_later(tmp_path: Path):
    down = True

    def reply(body: dict[str, Any], before: int) -> Any:
        return (
            500 if down and "situation is: home" in body["messages"][0]["content"] else listing(body, before)
        )

    with serve(reply) as stub:
        chat = chat_config(stub.url, retries=0)
        context = make_context(tmp_path, generator=chat, n_in=8, n_near=8, n_out=4, n_categories=2)
        examples = write_prompts(PIECE, context)
        down = False
        assert write_prompts(PIECE, context) == examples
        assert {e.category for e in examples if e.scope == "in"} == {"work"}
        assert context.counts["missing_prompts"] == 8 and context.counts["failed_calls"] == 2


def test_a_prompt_of_two_categories_belongs_to_one_split(tmp_path: Path):
    """A generator that repeats itself across categories must not leak training prompts into the test."""

    def repeating(body: dict[str, Any], before: int) -> str:
        return re.sub(
            r"(work|home) (\d)", lambda m: f"{m[2]}" if int(m[2]) < 3 else m[0], listing(body, before)
        )

    with serve(repeating) as stub:
        changes: dict[str, Any] = {"n_in": 8, "n_near": 8, "n_out": 4, "n_categories": 2}
        context = make_context(tmp_path, generator=chat_config(stub.url), **changes)
        examples = write_prompts(PIECE, context)
    for scope in ("in", "near"):
        prompts = [e.prompt for e in examples if e.scope == scope]
        assert len(prompts) == len(set(prompts)) == 6
    assert context.counts["duplicate_prompts"] == 4


@pytest.mark.parametrize(
    "value", [{"text": "x"}, 5, None, {"text": "x", "finished": True, "tokens": "two"}], ids=str
)
def test_a_damaged_baseline_answer_is_missing(tmp_path: Path, value: Any):
    (tmp_path / "ledgers").mkdir()
    whole = {"text": "x", "finished": True, "tokens": 2}
    rows = zip(
        (_answer_key(prompt, make_context(tmp_path)) for prompt in ("a", "b")), (value, whole), strict=True
    )
    text = "\n".join(json.dumps({"key": key, "value": said}) for key, said in rows)
    (tmp_path / "ledgers" / "answers-none.jsonl").write_text(text + "\n")
    assert known_answers(["a", "b"], make_context(tmp_path)) == {"b": Answer(**whole)}


def test_a_killed_synthesis_goes_on_without_repeating_a_finished_call(tmp_path: Path):
    script = textwrap.dedent("""
        import sys
        from types import SimpleNamespace
        from c3po_bench.feedback.chats import open_chat
        from c3po_bench.feedback.config import ChatConfig, FeedbackConfig
        from c3po_bench.feedback.context import SynthesisContext
        config = ChatConfig(kind="openai", model="stub", base_url=sys.argv[1], concurrency=2)
        context = SynthesisContext(FeedbackConfig(cache_dir=sys.argv[2]), SimpleNamespace(hash="none"), 0)
        asked = [[{"role": "user", "content": f"call {i}"}] for i in range(20)]
        sys.stdout.write(",".join(reply.text for reply in open_chat(config, context).complete("stage", asked)))
    """)

    def slow(body: dict[str, Any], before: int) -> str:
        time.sleep(0.1)
        return body["messages"][0]["content"].upper()

    with serve(slow) as stub:
        command = [sys.executable, "-c", script, stub.url, str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        first = subprocess.Popen(command, env=environment)
        while stub.completed < 6:
            assert first.poll() is None, "it ended by itself"
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        first.wait()
        time.sleep(0.3)
        kept = len(CallCache(tmp_path / "ledgers" / "stage.jsonl").rows)
        before = len(stub.asked)
        assert 4 <= kept < 20
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == ",".join(f"CALL {i}" for i in range(20))
        assert len(stub.asked) - before == 20 - kept
