"""Caches of finished calls: lines cut short, values that are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from c3po_bench.feedback.answering import Answer
from c3po_bench.feedback.calls import CallCache, Reply, call_key
from c3po_bench.feedback.chats import open_chat
from c3po_bench.feedback.synthesis import _answer_key, known_answers
from tests.feedback.stub_server import serve
from tests.feedback.test_calls import ask, chat_config, make_context, texts_of


def test_a_line_cut_short_is_a_call_not_made(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    a, b, c = (Reply(text)._asdict() for text in "abc")
    CallCache(path).put({"a": a, "b": b})
    path.write_bytes(path.read_bytes() + b'{"key": "c", "val')
    cache = CallCache(path)
    assert len(cache) == 2 and "c" not in cache and cache.reply("c") is None
    cache.put({"c": c})
    assert {key: CallCache(path)[key] for key in "abc"} == {"a": a, "b": b, "c": c}
    assert call_key(a=1, b=2) == call_key(b=2, a=1) != call_key(a=1, b=3)


def test_a_last_line_that_lacks_only_its_end_is_a_call_made(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    CallCache(path).put({"a": Reply("a")._asdict()})
    path.write_bytes(path.read_bytes()[:-1])
    cache = CallCache(path)
    cache.put({"b": Reply("b", False)._asdict()})
    assert CallCache(path).rows == cache.rows and cache.reply("b") == Reply("b", False)


@pytest.mark.parametrize(
    "value",
    [
        {"foo": 1},
        5,
        ["a"],
        None,
        {},
        {"text": None},
        {"text": "x", "finished": "no"},
        {"text": "x", "more": 1},
        {"text": "x", "finished": True, "more": 1},
        "a text",
        True,
    ],
    ids=str,
)
def test_a_damaged_value_is_a_call_not_made(tmp_path: Path, value: Any):
    with serve(lambda body, before: "text") as stub:
        for asked in (1, 2):
            chat = open_chat(chat_config(stub.url), make_context(tmp_path))
            assert texts_of(chat.complete("stage", ask("a"))) == ["text"] and len(stub.asked) == asked
            (path,) = tmp_path.glob("ledgers/*.jsonl")
            path.write_text(
                json.dumps({**json.loads(path.read_text().splitlines()[0]), "value": value}) + "\n"
            )


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
