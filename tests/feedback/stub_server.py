"""A local OpenAI-compatible endpoint that fails on demand and counts what it is asked; chats that ask it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from c3po_bench.feedback.calls import Reply as ChatReply
from c3po_bench.feedback.config import ChatConfig, FeedbackConfig
from c3po_bench.feedback.context import SynthesisContext
from c3po_bench.feedback.sentences import find_feedback

Reply = Callable[[dict[str, Any], int], Any]
LIMIT = "<limit>"


class Stub:
    """`reply(body, times asked before)` returns a text, an HTTP status, or one of ``hang``, ``cut`` and ``garbage``.

    A text that ends with `LIMIT` is sent without it, as one that was cut at the token limit.
    """

    def __init__(self, reply: Reply) -> None:
        self.reply, self.asked, self.completed = reply, [], 0
        self.keys: list[str | None] = []
        self.lock = threading.Lock()
        self.url, self.said = "", "the stub says no"
        self.retry_after = "0.01"  # seconds, sent with every failure
        self.location = ""  # of redirects

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = json.dumps(body["messages"])
        with self.lock:
            before = self.asked.count(prompt)
            self.asked.append(prompt)
            self.keys.append(handler.headers.get("Authorization"))
        answer = self.reply(body, before)
        status, raw = 200, b"{not json"
        if answer == "hang":
            time.sleep(1.5)
            return
        if isinstance(answer, int):
            status, raw = answer, json.dumps({"detail": self.said}).encode()
        elif answer not in ("garbage", "cut"):
            message = {"role": "assistant", "content": answer.removesuffix(LIMIT)}
            reason = "length" if answer.endswith(LIMIT) else "stop"
            raw = json.dumps({"choices": [{"message": message, "finish_reason": reason}]}).encode()
            with self.lock:
                self.completed += 1
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(raw) + (answer == "cut")))
        if status != 200:
            handler.send_header("Retry-After", self.retry_after)
        if self.location:
            handler.send_header("Location", self.location)
        handler.end_headers()
        handler.wfile.write(raw)


@contextlib.contextmanager
def serve(reply: Reply) -> Iterator[Stub]:
    stub = Stub(reply)
    with listening(stub.handle) as stub.url:
        yield stub


@contextlib.contextmanager
def listening(handle: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server on a free port that gives each POST to `handle`; its address, as a client is told it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with contextlib.suppress(ConnectionError):
                handle(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


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


def texts_of(replies: list[ChatReply | None]) -> list[str | None]:
    return [reply and reply.text for reply in replies]
