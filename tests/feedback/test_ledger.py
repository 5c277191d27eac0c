"""Ledgers of finished calls: lines cut short, values that are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from c3po_bench.feedback.answering import Answer
from c3po_bench.feedback.chats import open_chat
from c3po_bench.feedback.ledger import Ledger, call_key
from c3po_bench.feedback.synthesis import _answer_key, known_answers
from tests.feedback.stub_server import serve
from tests.feedback.test_calls import ask, chat_config, texts_of, workshop


def test_ledger_drops_a_line_cut_short(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    Ledger(path).put({"a": 1, "b": [2]})
    path.write_bytes(path.read_bytes() + b'{"key": "c", "val')
    ledger = Ledger(path)
    assert len(ledger) == 2 and "c" not in ledger
    ledger.put({"c": 3})
    assert dict((k, Ledger(path)[k]) for k in "abc") == {"a": 1, "b": [2], "c": 3}
    assert call_key(a=1, b=2) == call_key(b=2, a=1) != call_key(a=1, b=3)


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
        True,
    ],
    ids=str,
)
def test_a_damaged_value_is_a_call_not_made(tmp_path: Path, value: Any):
    with serve(lambda body, before: "text") as stub:
        for asked in (1, 2):
            chat = open_chat(chat_config(stub.url), workshop(tmp_path))
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
        (_answer_key(prompt, workshop(tmp_path)) for prompt in ("a", "b")), (value, whole), strict=True
    )
    text = "\n".join(json.dumps({"key": key, "value": said}) for key, said in rows)
    (tmp_path / "ledgers" / "answers-none.jsonl").write_text(text + "\n")
    assert known_answers(["a", "b"], workshop(tmp_path)) == {"b": Answer(**whole)}
