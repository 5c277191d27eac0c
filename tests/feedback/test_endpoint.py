"""Calls to endpoints: retries, gaps, refusals, keys, interrupts."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from c3po_bench.errors import UserError
from c3po_bench.feedback import endpoint
from c3po_bench.feedback.chats import open_chat
from c3po_bench.feedback.config import ChatConfig
from c3po_bench.feedback.endpoint import EndpointChat
from c3po_bench.runtime import signals
from tests.feedback.stub_server import ask, chat_config, listening, make_context, serve, texts_of


@pytest.mark.parametrize("failure", [429, 500, "hang", "cut", "garbage"])
def test_passing_failures_are_retried(tmp_path: Path, failure: Any):
    with serve(lambda body, before: failure if before == 0 else "fine") as stub:
        chat = open_chat(chat_config(stub.url), make_context(tmp_path))
        assert texts_of(chat.complete("stage", ask("a", "b"))) == ["fine", "fine"]
        assert len(stub.asked) == 4


@pytest.mark.parametrize("failure", [429, 500, "hang", "cut", "garbage"])
def test_lasting_failures_are_counted_gaps_and_nothing_is_paid_twice(tmp_path: Path, failure: Any, caplog):
    down = True

    def reply(body: dict[str, Any], before: int) -> Any:
        return failure if down and "bad" in body["messages"][0]["content"] else "fine"

    with serve(reply) as stub:
        context = make_context(tmp_path)
        replies = open_chat(chat_config(stub.url), context).complete("stage", ask("a", "bad", "b"))
        assert texts_of(replies) == ["fine", None, "fine"]
        assert context.counts["failed_calls"] == 1
        assert "1 of 3 calls" in caplog.text and "left out" in caplog.text
        assert ("concurrency=1" in caplog.text) == (failure == "hang")  # what a slow server needs
        down = False
        again = open_chat(chat_config(stub.url), make_context(tmp_path))
        assert texts_of(again.complete("stage", ask("a", "bad", "b"))) == ["fine"] * 3
        assert stub.completed == 3  # the two answered calls were not made again


def test_what_will_not_pass_ends_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STUB_KEY", "secret-value")
    with serve(lambda body, before: 401) as stub:
        chat = open_chat(chat_config(stub.url, api_key_env="STUB_KEY"), make_context(tmp_path))
        with pytest.raises(UserError, match="STUB_KEY") as caught:
            chat.complete("stage", ask("a"))
        assert len(stub.asked) == 1 and stub.keys == ["Bearer secret-value"]
        assert "secret-value" not in str(caught.value) and stub.said not in str(caught.value)
    with (
        serve(lambda body, before: 400) as stub,
        pytest.raises(UserError, match=f"400.*{stub.said}.*check base_url"),
    ):
        open_chat(chat_config(stub.url), make_context(tmp_path)).complete("stage", ask("a"))
    with pytest.raises(UserError, match="base_url"):
        open_chat(ChatConfig(kind="openai", model="x"), make_context(tmp_path))


def test_a_key_is_stripped_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serve(lambda body, before: "text") as stub:
        monkeypatch.setenv("STUB_KEY", " secret-value\r\n")
        chat = open_chat(chat_config(stub.url, api_key_env="STUB_KEY"), make_context(tmp_path))
        assert texts_of(chat.complete("stage", ask("a"))) == ["text"] and stub.keys == ["Bearer secret-value"]
        for wrong in ("secret\nvalue", "secret\u2026value", "secret\xe9value"):
            monkeypatch.setenv("STUB_KEY", wrong)
            for make in (
                lambda: open_chat(chat_config(stub.url, api_key_env="STUB_KEY"), chat.context),
                lambda: chat,
            ):
                with pytest.raises(UserError, match=r"\$STUB_KEY holds what no API key has") as caught:
                    make().complete("stage", ask(wrong))
                assert "secret" not in str(caught.value) and "value" not in str(caught.value)
        assert len(stub.asked) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch):
    """It may lead to another host, which is to see neither the key nor the prompt."""
    monkeypatch.setenv("STUB_KEY", "secret-value")
    with serve(lambda body, before: "text") as other, serve(lambda body, before: status) as stub:
        stub.location = f"{other.url}/chat/completions"
        chat = open_chat(chat_config(stub.url, api_key_env="STUB_KEY"), make_context(tmp_path))
        with pytest.raises(UserError, match=f"HTTP {status}.*check base_url"):
            chat.complete("stage", ask("a"))
        assert len(stub.asked) == 1 and not other.asked


def test_a_server_without_a_key_is_sent_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "another-servers")
    with serve(lambda body, before: "text") as stub:
        chat = open_chat(chat_config(stub.url, api_key_env="STUB_KEY"), make_context(tmp_path))
        assert texts_of(chat.complete("stage", ask("a"))) == ["text"] and stub.keys == [None]


@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        "localhost:8000/v1",
        "ftp://host/v1",
        "http://",
        "http:///v1",
        "http://h:x/v1",
        "http://h /v1",
        "http://h/\u2026",
    ],
)
def test_an_address_that_is_none_is_said_in_one_line(tmp_path: Path, url: str):
    with pytest.raises(UserError, match="base_url=.*http://localhost:8000/v1"):
        open_chat(chat_config(url), make_context(tmp_path))


@pytest.mark.parametrize(
    ("sent", "handler"),
    [(signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signals._handle)],
    ids=["interrupt", "preemption"],
)
def test_being_stopped_stops_paid_calls(tmp_path: Path, sent: signal.Signals, handler: Any):
    def reply(body: dict[str, Any], before: int) -> Any:
        if len(stub.asked) == 3:
            signal.raise_signal(sent)
        time.sleep(0.02)
        return "text"

    before = signal.signal(sent, handler)  # a test run in the background ignores an interrupt
    with serve(reply) as stub:
        chat = EndpointChat(chat_config(stub.url, concurrency=2), make_context(tmp_path))
        try:
            with pytest.raises(KeyboardInterrupt):
                chat.complete("x", ask(*map(str, range(40))))
        finally:
            signal.signal(sent, before)
            signals._asked.clear()
        time.sleep(0.3)
        assert len(stub.asked) < 10
        # whoever caught the interrupt may ask again
        assert texts_of(chat.complete("x", ask("39"))) == ["text"]


def test_what_ends_the_run_does_not_wait_for_retries(tmp_path: Path):
    with serve(lambda body, before: 500 if "slow" in str(body) else time.sleep(0.2) or 401) as stub:
        stub.retry_after = "20"
        chat = EndpointChat(chat_config(stub.url), make_context(tmp_path))
        with pytest.raises(UserError, match="401"):
            chat.complete("x", ask("wrong", "slow"))
        assert len(stub.asked) == 2, "it was waited for, and asked again"


def test_a_call_that_is_refused_is_a_gap_once_others_are_answered(tmp_path: Path):
    def reply(body: dict[str, Any], before: int) -> Any:
        return 400 if "too long" in body["messages"][0]["content"] else "text"

    def said(chat: EndpointChat, *texts: str) -> list[str | None]:
        return texts_of(chat.complete("x", ask(*texts)))

    with serve(reply) as stub:
        with pytest.raises(UserError, match="400"):  # nothing was ever answered: it is the settings
            said(EndpointChat(chat_config(stub.url), make_context(tmp_path)), "too long")
        chat = EndpointChat(chat_config(stub.url, concurrency=1), make_context(tmp_path))
        assert (
            said(chat, "a", "too long", "b") == ["text", None, "text"]
            and chat.context.counts["failed_calls"] == 1
        )
        again = EndpointChat(chat_config(stub.url), make_context(tmp_path))
        assert said(again, "too long", "a") == [None, "text"]
        assert len(stub.asked) == 5  # one refusal each time, none tried twice


def test_which_call_comes_first_does_not_decide_whether_a_refusal_ends_the_run(tmp_path: Path):
    def reply(body: dict[str, Any], before: int) -> Any:
        return (
            400
            if "too long" in str(body)
            else 401
            if "wrong" in str(body)
            else 500
            if "slow" in str(body)
            else "text"
        )

    with serve(reply) as stub:
        chat = EndpointChat(chat_config(stub.url, concurrency=1), make_context(tmp_path))
        assert texts_of(chat.complete("x", ask("too long", "a"))) == [None, "text"]
        useless = EndpointChat(chat_config(stub.url, concurrency=1), make_context(tmp_path))
        before = len(stub.asked)
        with pytest.raises(UserError, match="400"):
            useless.complete("x", ask(*(f"too long {i}" for i in range(99))))
        assert len(stub.asked) - before < 12  # not all of them, where the settings are wrong
        stub.retry_after = "20"
        chat, before = EndpointChat(chat_config(stub.url), make_context(tmp_path)), len(stub.asked)
        with pytest.raises(UserError, match="401"):
            chat.complete("x", ask("slow", "wrong"))
        assert len(stub.asked) - before <= 2, "it was waited for, and asked again"


def test_two_servers_with_one_model_name_are_asked_apart(tmp_path: Path):
    answers = []
    for name in ("one", "two"):
        with serve(lambda body, before, name=name: name) as stub:
            chat = EndpointChat(chat_config(stub.url), make_context(tmp_path))
            answers += texts_of(chat.complete("x", ask("hi")))
    assert answers == ["one", "two"]


@pytest.mark.parametrize("how", ["drips", "never ends", "is endless"])
def test_a_reply_that_does_not_end_is_given_up_in_time(tmp_path: Path, monkeypatch, how: str):
    """The socket's own limit is between two bytes: an endpoint that drips keeps within it for ever."""
    monkeypatch.setattr(endpoint, "MOST_BYTES", 1 << 20)

    def handle(handler: Any) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" " * (1 << 20) if how == "is endless" else b" ")
            time.sleep(0.01 if how == "is endless" else 0.1 if how == "drips" else 5)

    with listening(handle) as url:
        context = make_context(tmp_path)
        before = time.monotonic()
        chat = open_chat(chat_config(url, retries=1), context)
        assert chat.complete("stage", ask("a")) == [None]
        assert time.monotonic() - before < 30 and context.counts["failed_calls"] == 1
