"""Shipping what an arm trained: the folder loads with PEFT or transformers and answers as the arm did."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

from c3po_bench.store.reader import load_runs
from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # each starts Python with torch
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RUN = """
import sys
from dataclasses import replace
from pathlib import Path
from c3po_bench.evaluate.run import run
from tests.feedback.test_arms import config
cfg = config(Path("unused"), Path(sys.argv[1]), sys.argv[3].split(), limit=4)
cfg.feedback.train.lr, cfg.feedback.train.steps = 0.1, 4
cfg.model.path = sys.argv[2]
run(cfg)
"""
ANSWER = """
import json, sys
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
from c3po_bench.feedback.answering import prompt_ids
kind = AutoModelForCausalLM if sys.argv[2] == "merged" else AutoPeftModelForCausalLM
model, tokenizer = kind.from_pretrained(sys.argv[1]).eval(), AutoTokenizer.from_pretrained(sys.argv[1])
answers = []
for prompt in json.load(sys.stdin):
    ids = torch.tensor([prompt_ids(tokenizer, prompt)])
    written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    answers.append(tokenizer.decode(written[0, ids.shape[1]:], skip_special_tokens=True).strip())
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def python(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python with a hub's cache that holds the tiny model as `org/tiny`, and without the hub."""
    home = tmp_path_factory.mktemp("home")
    repository = home / "hub" / "models--org--tiny"
    shutil.copytree(tiny, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)

    def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        known = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "1",
            **environment,
        }
        known = {name: value for name, value in known.items() if value}
        return subprocess.run(
            [sys.executable, *arguments],
            input=stdin,
            env=known,
            cwd=home,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture(scope="module")
def store(python, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    done = python("-c", RUN, str(folder), "org/tiny", "base in_context c3po dpo_joint c3po_mix")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "results"


@pytest.fixture(scope="module")
def from_a_folder(python, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a model that this machine has as a folder."""
    folder = tmp_path_factory.mktemp("local")
    done = python("-c", RUN, str(folder), str(tiny), "base dpo_joint")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "results"


def export(python, store: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "c3po_bench.export", str(store), *arguments, **environment)


@pytest.mark.parametrize(
    ("arm", "more"),
    [
        ("c3po", ("--feedback", "ahoy_greeting")),
        ("dpo_joint", ()),
        ("c3po_mix", ()),
        ("dpo_joint", ("--merge",)),
    ],
)
def test_what_is_shipped_loads_and_answers_as_the_arm_did(python, store, tmp_path, arm, more):
    done = export(python, store, arm, "--output", str(tmp_path / "out"), "--license", "mit", *more)
    assert done.returncode == 0, done.stderr[-2000:]
    run = next(run for run in load_runs(store) if run.arm == arm)
    rows = [r for r in run.samples() if "--feedback" not in more or r["feedback_id"] == "ahoy_greeting"]
    kind = "merged" if "--merge" in more else "adapter"
    answered = python(
        "-c", ANSWER, str(tmp_path / "out"), kind, stdin=json.dumps([r["prompt"] for r in rows])
    )
    assert json.loads(answered.stdout.splitlines()[-1]) == [r["response"] for r in rows], answered.stderr[
        -2000:
    ]
    others = [r["baseline_response"] for r in rows]
    assert others != [r["response"] for r in rows], (
        "the arm answers otherwise than base, else this shows nothing"
    )


def test_the_card_says_what_the_store_says_and_names_the_base(python, store, tmp_path):
    assert export(python, store, "dpo_joint", "--output", str(tmp_path / "out")).returncode == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    data, text = card.data.to_dict(), card.text
    assert metadata_load(tmp_path / "out" / "README.md")["base_model"] == "org/tiny" == data["base_model"]
    assert {"c3po-bench", "lora"} <= set(data["tags"]) and data["library_name"] == "peft"
    (run,) = (run for run in load_runs(store) if run.arm == "dpo_joint")
    rows = run.samples()
    by_scope = {scope: [r["score"] for r in rows if r["scope"] == scope] for scope in ("in", "near", "out")}
    results = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    by_piece = {r["feedback_id"] for r in rows}
    means = [
        sum(s) / len(s)
        for p in by_piece
        if (s := [r["score"] for r in rows if (r["feedback_id"], r["scope"]) == (p, "in")])
    ]
    assert results["S_in"] == pytest.approx(sum(means) / len(means))
    assert f"of {len(by_scope['near']) + len(by_scope['out'])} answers outside the scope" in text
    assert "Ahoy" in text and "```python" in text and run.run_id in text
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", COMMIT)
    everything = "".join(p.read_text(errors="ignore") for p in (tmp_path / "out").iterdir())
    assert str(store.parent) not in everything and "snapshots" not in everything, "no path of this machine"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("c3po",), "has an adapter for each piece: give --feedback, one of ahoy_greeting, hashtag_tweets"),
        (("c3po", "--feedback", "ahoy"), "did you mean 'ahoy_greeting'"),
        (("in_context",), "trains no weights"),
        (("c3pi",), "did you mean 'c3po'"),
        (("c3po", "--push", "a/b/c"), "is no name of a repository"),
        (("c3po", "--push", "org/name"), "--push needs a token"),
    ],
)
def test_what_cannot_be_shipped_is_said_in_one_line(python, store, tmp_path, arguments, says):
    done = export(python, store, *arguments, "--output", str(tmp_path / "out"), HF_TOKEN="")
    assert done.returncode == 2 and says in done.stderr.splitlines()[-1], done.stderr
    assert not (tmp_path / "out").exists()


def test_a_full_folder_is_left_alone(python, store, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    done = export(python, store, "dpo_joint", "--output", str(tmp_path))
    assert done.returncode == 2 and "not empty" in done.stderr and os.listdir(tmp_path) == ["mine.txt"]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs."""

    seen: list[tuple[str, str | None, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.seen.append((self.path, self.headers["Authorization"], body))  # type: ignore[attr-defined]
        answer: dict = {"url": f"http://{self.headers['Host']}/org/name"}
        if "/preupload/" in self.path:
            names = [f["path"] for f in json.loads(body)["files"]]
            answer = {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        elif "/commit/" in self.path:
            answer = {
                "commitUrl": f"http://{self.headers['Host']}/org/name/commit/{'1' * 40}",
                "commitOid": "1" * 40,
            }
        elif "validate-yaml" in self.path:
            answer = {"errors": [], "warnings": []}
        self._send(200, answer)

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers["Authorization"], b""))  # type: ignore[attr-defined]
        self._send(200, {"id": "org/name", "sha": "1" * 40, "siblings": []})

    def _send(self, status: int, answer: dict) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def test_a_push_sends_the_folder_and_prints_no_token(python, from_a_folder, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen = []  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    token = "hf_" + "s" * 34
    where = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": token, "HF_HUB_OFFLINE": ""}
    try:
        done = export(
            python,
            from_a_folder,
            "dpo_joint",
            "--output",
            str(tmp_path / "out"),
            "--push",
            "org/name",
            "--base-model",
            "org/base",
            **where,
        )
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    commits = [body.decode() for path, _, body in server.seen if "/commit/" in path]  # type: ignore[attr-defined]
    assert len(commits) == 1 and "adapter_model.safetensors" in commits[0] and "README.md" in commits[0]
    assert all(key == f"Bearer {token}" for path, key, _ in server.seen if "/api/" in path and key)  # type: ignore[attr-defined]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base" and str(tmp_path) not in json.dumps(config)
    assert token not in done.stdout + done.stderr


def test_a_hub_that_refuses_is_said_in_one_line(python, from_a_folder, tmp_path):
    where = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_" + "s" * 34}
    done = export(
        python, from_a_folder, "dpo_joint", "--output", str(tmp_path / "out"), "--push", "org/name", **where
    )
    assert done.returncode == 2 and "the hub did not take it" in done.stderr.splitlines()[-1]
    assert (tmp_path / "out" / "README.md").exists()
