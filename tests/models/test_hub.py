"""Whether the hub is there is asked once, and said once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import datasets
import pytest
from huggingface_hub import constants

from c3po_bench.models import hub
from tests.conftest import ROOT


class Session:
    def __init__(self, seconds: float, status: int) -> None:
        self.seconds, self.status_code, self.asked = seconds, status, 0

    def head(self, _: str, timeout: float) -> Session:
        self.asked += 1
        time.sleep(self.seconds)
        return self


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub.reachable.cache_clear()
    yield
    hub.reachable.cache_clear()


@pytest.mark.parametrize(
    ("seconds", "status", "there"), [(0, 200, True), (0, 404, True), (0, 403, False), (30, 200, False)]
)
def test_it_is_asked_once_and_not_for_long(monkeypatch, seconds, status, there):
    session = Session(seconds, status)
    monkeypatch.setattr(hub, "get_session", lambda: session)
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    began = time.monotonic()
    assert hub.reachable() is hub.reachable() is there and session.asked == 1
    assert time.monotonic() - began < 10
    assert constants.is_offline_mode() is datasets.config.HF_HUB_OFFLINE is (not there)
    assert os.environ["HF_HUB_OFFLINE"] == ("0" if there else "1")


def test_who_is_offline_on_purpose_is_not_asked(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "get_session", lambda: pytest.fail("asked"))
    assert not hub.reachable()


def test_an_experiment_that_needs_the_hub_says_in_two_lines_that_it_is_not_there(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    command = [
        sys.executable,
        "-m",
        "c3po_bench",
        "+experiment=olmoe_arc",
        f"results_dir={tmp_path / 'results'}",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 2, done.stderr
    assert (
        "does not answer" in lines[0] and "+experiment=quickstart" in lines[1] and "Check you" not in lines[1]
    )
