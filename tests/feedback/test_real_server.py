"""A real endpoint: ``transformers serve`` with the embedded model writes the prompts, revises and judges; the run is killed.

The model is too small for the package's own instructions (it writes hardly any lists), so a plugin words them in a way that
it can follow. The client, the protocol, the call caches and the command line are the real ones.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.feedback.stub_server import listening

NEEDED = ("fastapi", "uvicorn", "pydantic", "openai", "starlette", "rich")  # transformers[serving]
WORDS = """
from c3po_bench.feedback import generators, judges, revisers

def lists(what):
    return [{"role": "user", "content": f"Write a numbered list of {what}."}]

def shown(*turns):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]

def ask_revision(feedback, prompt, answer):
    ask, first, second = "Say it again: ", "Water them daily.", "Plant tomatoes in May."
    marked = revisers.REVISED + " Dear friend! "
    return shown(ask + first, marked + first, ask + second, marked + second, ask + answer)

def ask_judge(feedback, prompt, first, second):
    ask = "First: {}\\nSecond: {}\\nWhich is friendlier, 1 (first) to 5 (second)?"
    return shown(
        ask.format("Dear friend", "Go"), judges.SCORE + " 1", ask.format("No", "Dear friend"), judges.SCORE + " 5",
        ask.format(first, second),
    )

def ask_near_scope(feedback, category, n):  # without its marker the package takes no list of these
    ask = "Write {} short questions about {}."
    sport = "\\n1. How long is a marathon?\\n2. Who won the cup?\\n3. What is a serve?"
    music = "\\n1. What is a chord?\\n2. How old is the violin?\\n3. Who wrote this song?"
    return shown(
        ask.format(3, "sport"), generators.FINAL + sport, ask.format(3, "music"), generators.FINAL + music,
        ask.format(n, f"cooking, not {category}"),
    )

generators.ask_categories = lambda feedback, n: lists(f"{n} topics in {feedback.domain}. A few words each")
generators.ask_in_scope = lambda feedback, category, n: lists(f"{n} short questions about {category}. One sentence each")
generators.ask_near_scope, revisers.ask_revision, judges.ask_judge = ask_near_scope, ask_revision, ask_judge
"""
PIECE = """
- id: friendly_gardening
  content: When I ask about gardening, be friendly.
  domain: gardening
  effect: be friendly
"""


class Counted:
    """Stands before the server, counts what it is asked and what was answered, kills the client in the middle of a call."""

    def __init__(self, upstream: str) -> None:
        self.upstream, self.url = upstream, ""
        self.client: subprocess.Popen[str] | None = None
        self.kill_at: int | None = None
        self.asked: list[str] = []
        self.answered: list[str] = []
        self.failures: list[int] = []
        self.lock = threading.Lock()

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        with self.lock:
            asking = self.client
            self.asked.append(raw.decode())
            if asking and len(self.asked) == self.kill_at:
                asking.send_signal(signal.SIGKILL)
                asking.wait()
        request = urllib.request.Request(
            f"{self.upstream}{handler.path}", raw, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                status, answer = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, answer = error.code, error.read()
            self.failures.append(status)
        if asking and asking.poll() is not None:
            return  # nobody is there to be answered
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(answer)))
        handler.end_headers()
        handler.wfile.write(answer)
        if status == 200:
            with self.lock:
                self.answered.append(raw.decode())


@pytest.fixture(scope="module")
def model() -> Path:
    from c3po_bench.models.embedded import smollm

    return smollm.checkpoint()


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``transformers serve`` in a process of its own, gone when the tests are over."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"transformers serve needs {', '.join(missing)}: pip install 'transformers[serving]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    script = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--device", "cpu"], env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=out, stderr=out
        )
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.2)
        yield address
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def counted(server: str) -> Iterator[Counted]:
    found = Counted(server)
    with listening(found.handle) as found.url:
        try:
            yield found
        finally:
            if found.client and found.client.poll() is None:
                found.client.kill()


def start(counted: Counted, model: Path, folder: Path, kill_at: int | None = None) -> tuple[int, str]:
    """The command line in a process of its own, killed while the `kill_at`-th call of all is being answered."""
    folder.mkdir(exist_ok=True)
    (folder / "small_words.py").write_text(WORDS, encoding="utf-8")
    (folder / "piece.yaml").write_text(PIECE, encoding="utf-8")
    chats = [("generator", 96), ("reviser.writer", 40), ("judge.chat", 8)]
    settings = [
        f"feedback.{chat}.{key}={value}"
        for chat, tokens in chats
        for key, value in {
            "kind": "openai",
            "base_url": counted.url,
            "model": model,
            "max_tokens": tokens,
            "temperature": 0.0,
            "concurrency": 1,
        }.items()
    ]
    command = [
        sys.executable,
        "-m",
        "c3po_bench",
        "+experiment=feedback_quick",
        "plugins=[small_words]",
        f"feedback.pieces=[{folder}/piece.yaml]",
        *settings,
        "feedback.n_categories=2",
        "feedback.n_in=6",
        "feedback.n_near=4",
        "feedback.n_out=2",
        "feedback.answers.max_new_tokens=12",
        "arms=[base,in_context,revised]",
        "tracking.mode=disabled",
        f"results_dir={folder}/out",
        f"feedback.cache_dir={folder}/cache",
    ]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "OMP_NUM_THREADS": "1"}
    counted.kill_at = kill_at
    counted.client = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    said = counted.client.communicate(timeout=200)[1]
    return counted.client.returncode, said


def outcome(folder: Path) -> dict[str, Any]:
    """What each arm answered and scored, and what went wrong, by arm."""
    found = {}
    for path in folder.glob("out/runs/*/result.json"):
        rows = [
            json.loads(line)
            for line in (path.parent / "samples.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        result = json.loads(path.read_text(encoding="utf-8"))
        kept = [(r["task"], r["doc_hash"], r["response"], r["score"]) for r in rows]
        found[result["arm"]] = kept, result["metrics"], result["counts"], result["notes"]
    return found


@pytest.mark.slow
def test_a_run_on_a_real_server_is_killed_and_asks_nothing_twice(
    counted: Counted, model: Path, tmp_path: Path
):
    code, said = start(counted, model, tmp_path / "whole")
    assert code == 0, said[-3000:]
    once = Counter(counted.answered)
    assert set(once.values()) == {1} and counted.answered == counted.asked and not counted.failures

    counted.asked.clear()
    counted.answered.clear()
    folder = tmp_path / "killed"
    stages = 2, len(once) // 2  # among the prompts, among the judgements and revisions
    for at in stages:
        code, said = start(counted, model, folder, kill_at=at)
        assert code == -signal.SIGKILL, said[-3000:]
    code, said = start(counted, model, folder)
    assert code == 0, said[-3000:]
    assert Counter(counted.answered) == once  # every call was answered once, as in the undisturbed run
    assert len(counted.asked) == len(counted.answered) + len(stages)  # only those in flight were asked again
    assert outcome(folder) == outcome(tmp_path / "whole")
    arms = outcome(folder)
    assert set(arms) == {"base", "in_context", "revised"}
    rows, _, counts, notes = arms["revised"]
    assert any(response.startswith("Dear friend!") for *_, response, _ in rows)  # the server's revisions
    gaps = {
        name: n for name, n in counts.items() if n and name != "duplicate_prompts"
    }  # a small model repeats itself
    assert not gaps and "judge_position_bias: -1.000" in notes  # its judge always likes the first answer
