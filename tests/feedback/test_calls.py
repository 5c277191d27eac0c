"""Calls to endpoints: retries, gaps, caches, judges, and runs that are killed and go on."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from c3po_bench.errors import UserError
from c3po_bench.feedback import generators, judges, revisers
from c3po_bench.feedback.calls import CallCache, Reply
from c3po_bench.feedback.chats import open_chat
from c3po_bench.feedback.config import ChatConfig, FeedbackConfig
from c3po_bench.feedback.context import SynthesisContext
from c3po_bench.feedback.endpoint import EndpointChat
from c3po_bench.feedback.generators import parse_list
from c3po_bench.feedback.judges import Case, open_judge
from c3po_bench.feedback.revisers import CritiqueReviser, Draft
from c3po_bench.feedback.sentences import find_feedback
from c3po_bench.feedback.synthesis import write_prompts
from c3po_bench.runtime import signals
from tests.feedback.stub_server import LIMIT, serve

PIECE = find_feedback(["ahoy_greeting"])[0]


def chat_config(url: str, **changes: Any) -> ChatConfig:
    values = {
        "kind": "openai",
        "model": "stub",
        "base_url": url,
        "retries": 2,
        "timeout": 0.5,
    }
    return ChatConfig(**{**values, **changes})


def make_context(folder: Path, **changes: Any) -> SynthesisContext:
    return SynthesisContext(
        FeedbackConfig(cache_dir=str(folder), **changes), SimpleNamespace(hash="none"), seed=0
    )


def ask(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


def texts_of(replies: list[Reply | None]) -> list[str | None]:
    return [reply and reply.text for reply in replies]


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


def test_a_text_that_was_cut_is_remembered_as_cut(tmp_path: Path):
    """A cut list loses its last item, a cut revision has no end."""
    context = make_context(tmp_path, n_in=8, n_near=8, n_out=4, n_categories=2)
    with serve(lambda body, before: f"{revisers.REVISED} Ahoy! We meet on{LIMIT}") as stub:
        context.cfg.reviser.writer = chat_config(stub.url)
        for _ in range(2):  # the second time from the cache
            found = CritiqueReviser(context).revise(PIECE, [Draft("p", "Hi. We meet on Monday.", True)])
            assert found == [("Ahoy! We meet on", False)]
            context.reopen()

    def cut(body: dict[str, Any], before: int) -> str:
        return listing(body, before) + ("" if "kinds of situations" in str(body) else LIMIT)

    with serve(cut) as stub:
        context.cfg.generator = chat_config(stub.url)
        written = [e.prompt for e in write_prompts(PIECE, context) if e.scope != "out"]
    assert len(written) == 12 and not any(prompt.endswith("4") for prompt in written)
    assert context.counts["missing_prompts"] == 4


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


def listing(body: dict[str, Any], before: int) -> str:
    """An obliging model: categories, and prompts that name their category."""
    text = body["messages"][0]["content"]
    if "kinds of situations" in text:
        return f"1. rubbish\n{generators.FINAL}\n1. work\n2) home"
    scope = "near" if "no message may be about" in text else "in"
    kind = "work" if "situation is: work" in text else "home"
    return f"{generators.FINAL}\n" + "\n".join(f"{i}. {scope} {kind} {i}" for i in range(1, 5))


def test_prompts_from_an_endpoint_keep_their_categories_and_are_cached(tmp_path: Path):
    changes: dict[str, Any] = {"n_in": 8, "n_near": 10, "n_out": 4, "n_categories": 2}
    with serve(listing) as stub:
        context = make_context(tmp_path, generator=chat_config(stub.url), **changes)
        examples = write_prompts(PIECE, context)
        inside = [e for e in examples if e.scope == "in"]
        assert {e.category for e in inside} == {"work", "home"} and len(inside) == 8
        assert all(e.category in e.prompt for e in inside)
        assert {e.category for e in inside if e.split == "test"} == {
            "work",
            "home",
        }  # split within each category
        assert context.counts["missing_prompts"] == 2  # ten asked, eight written
        asked = len(stub.asked)
        assert (
            write_prompts(PIECE, make_context(tmp_path, generator=chat_config(stub.url), **changes))
            == examples
        )
        assert len(stub.asked) == asked


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


@pytest.mark.parametrize(
    ("reply", "said"), [("I would rather not.", "stronger model"), (500, "failed for good")]
)
def test_a_generator_that_writes_nothing_ends_with_the_reason(tmp_path: Path, reply: Any, said: str):
    with serve(lambda body, before: reply) as stub, pytest.raises(UserError, match=f"no categories.*{said}"):
        write_prompts(PIECE, make_context(tmp_path, generator=chat_config(stub.url, retries=0)))

    def categories(body: dict[str, Any], before: int) -> Any:
        return "1. work" if "kinds of situations" in body["messages"][0]["content"] else reply

    with serve(categories) as stub, pytest.raises(UserError, match=f"no in-scope prompts.*{said}"):
        write_prompts(PIECE, make_context(tmp_path / "other", generator=chat_config(stub.url, retries=0)))


def test_parse_list():
    assert parse_list("x\nEND:\n1. a\n2) 'b'\n- c\nprose", "END:") == ["a", "'b'", "c"]
    assert parse_list("1. draft", "END:") == ["draft"] and parse_list("1. draft", "END:", drafted=True) == []
    assert parse_list('1. "All of it"\n2. Translate "good morning"', "END:") == [
        "All of it",
        'Translate "good morning"',
    ]
    assert parse_list("1. draft\n**End**:\n1. a", "END:", drafted=True) == ["a"]
    emphasized = "1. Explain `print`\n2. **bold** move\n3. **All**"
    assert parse_list(emphasized, "END:") == ["Explain `print`", "**bold** move", "All"]


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
        started = time.monotonic()
        with pytest.raises(UserError, match="401"):
            chat.complete("x", ask("wrong", "slow"))
        assert time.monotonic() - started < 5 and len(stub.asked) == 2


def test_a_local_model_is_known_by_its_files(tiny: Path, tmp_path: Path):
    """Another place is the same model, other weights at the same place are not."""
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    context = SynthesisContext(
        FeedbackConfig(cache_dir=str(tmp_path / "cache")),
        SimpleNamespace(model=SimpleNamespace(device="cpu")),
        0,
    )

    def known() -> int:
        chat = open_chat(
            ChatConfig(kind="transformers", model=str(folder), max_tokens=2, temperature=0.0), context
        )
        chat.complete("x", ask("hi"))
        return len(context.call_cache("x"))

    assert known() == 1
    folder = folder.rename(tmp_path / "moved")
    assert known() == 1
    model = AutoModelForCausalLM.from_pretrained(folder)
    next(model.parameters()).data += 0.5
    model.save_pretrained(folder)
    assert known() == 2


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
        chat = EndpointChat(chat_config(stub.url), make_context(tmp_path))
        started = time.monotonic()
        with pytest.raises(UserError, match="401"):
            chat.complete("x", ask("slow", "wrong"))
        assert time.monotonic() - started < 5


def test_two_servers_with_one_model_name_are_asked_apart(tmp_path: Path):
    answers = []
    for name in ("one", "two"):
        with serve(lambda body, before, name=name: name) as stub:
            chat = EndpointChat(chat_config(stub.url), make_context(tmp_path))
            answers += texts_of(chat.complete("x", ask("hi")))
    assert answers == ["one", "two"]


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
        kept = len(CallCache(tmp_path / "ledgers" / "stage.jsonl"))
        before = len(stub.asked)
        assert 4 <= kept < 20
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == ",".join(f"CALL {i}" for i in range(20))
        assert len(stub.asked) - before == 20 - kept


def test_a_new_generator_and_judge_are_one_table_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine_feedback.py").write_text(
        textwrap.dedent("""
            class Mine:
                def __init__(self, context): pass
                def categories(self, piece, n): return ["one"]
                def prompts(self, piece, scope, wanted):
                    return {c: [f"{scope} {i}" for i in range(n)] for c, n in wanted.items()}
            class Lengths:
                def __init__(self, context): pass
                def scores(self, cases): return [float(len(c.response) > len(c.baseline)) for c in cases]
                def report(self): return {}
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = importlib.import_module("mine_feedback")
    monkeypatch.setitem(generators.GENERATORS, "mine", mine.Mine)
    monkeypatch.setitem(judges.JUDGES, "lengths", mine.Lengths)
    context = make_context(tmp_path, generator=ChatConfig(kind="mine"), n_in=4, n_near=4, n_out=4)
    assert {e.prompt for e in write_prompts(PIECE, context) if e.scope == "in"} == {
        f"in {i}" for i in range(4)
    }
    assert open_judge("lengths", context).scores([Case(PIECE, "p", "long", "x")]) == [1.0]
