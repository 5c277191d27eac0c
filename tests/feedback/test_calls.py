"""The cache of finished calls, and markers in what models write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from c3po_bench.feedback import revisers
from c3po_bench.feedback.arms import read_reasoned
from c3po_bench.feedback.calls import CallCache, Reply, call_key, text_after
from c3po_bench.feedback.chats import open_chat
from tests.feedback.stub_server import ask, chat_config, make_context, serve, texts_of


def test_a_line_cut_short_is_a_call_not_made(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    a, b, c = (Reply(text)._asdict() for text in "abc")
    CallCache(path).put({"a": a, "b": b})
    path.write_bytes(path.read_bytes() + b'{"key": "c", "val')
    cache = CallCache(path)
    assert len(cache.rows) == 2 and "c" not in cache and cache.reply("c") is None
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
    ("said", "answer"),
    [
        ("Greet.\nREVISED ANSWER: Ahoy!", "Ahoy!"),
        ("Greet.\n\n**REVISED ANSWER:**\n\nAhoy!", "Ahoy!"),
        ("Greet.\n**REVISED ANSWER**: **Ahoy!** Jo", "**Ahoy!** Jo"),  # its own emphasis stays
        ("Greet.\n### REVISED ANSWER:\n* ship\n* rest", "* ship\n* rest"),
        ("**REVISED ANSWER:**Ahoy!", "Ahoy!"),
        ("_REVISED ANSWER: Ahoy!_", "Ahoy!"),
        ("REVISED ANSWER: Hi\n\nREVISED ANSWER: Ahoy! My revised answer: go", "Ahoy! My revised answer: go"),
        ("Here is the revised answer:\nAhoy!", "Ahoy!"),
        ("Ahoy! It was revised.", None),
    ],
)
def test_a_marker_is_told_however_it_is_emphasized(said: str, answer: str | None):
    assert text_after(said, revisers.REVISED) == answer


def test_an_everyday_word_is_a_marker_in_other_case_only_where_a_sentence_begins():
    for said in (
        "It applies.\n**ANSWER:** Ahoy!",
        "**ANSWER**: Ahoy!",
        "It applies. Answer: Ahoy!",
        "**Answer:** Ahoy!",
    ):
        assert read_reasoned(said) == "Ahoy!"
    assert read_reasoned("Dear Jo, send me your answer: yes or no.") is None
