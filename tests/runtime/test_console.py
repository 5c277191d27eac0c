"""Progress on the console."""

from __future__ import annotations

import logging

import pytest

from c3po_bench.runtime import console
from c3po_bench.runtime.console import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: False, raising=False)
    return now


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(console.log, "propagate", True)
    caplog.set_level(logging.INFO, logger="c3po_bench")
    return caplog


def test_speaks_now_and_then_and_not_at_the_end(clock: list[float], said: pytest.LogCaptureFixture):
    show = Progress()
    for done in range(5):
        show("scoring", 10 * done, 40)
        clock[0] += 10
    assert said.messages == ["scoring: 20 of 40 (1.0 a second, about 20 s left)"]


def test_nothing_to_do_shows_nothing(clock: list[float], said: pytest.LogCaptureFixture):
    Progress()("scoring", 0, 0)
    assert said.messages == []


def test_tells_what_is_left_from_the_work_where_items_differ(
    clock: list[float], said: pytest.LogCaptureFixture
):
    show = Progress()
    show("reading", 10, 100, 0.02)
    clock[0] += 20
    show("reading", 50, 100, 0.22)
    assert said.messages == ["reading: 50 of 100 (2.0 a second, about 78 s left)"]


def test_a_terminal_shows_rate_and_rest(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True, raising=False)
    show = Progress()
    show("reading", 10, 100, 0.02)
    clock[0] += 20
    show("reading", 50, 100, 0.22)
    bar = show._bar
    assert bar.tasks[0].completed == 50
    assert (bar.tasks[0].fields["rate"], bar.tasks[0].fields["left"]) == ("2.0/s", "about 78 s left")
    show.close()


def test_lm_evals_word_on_loaded_models_is_held_back_and_others_are_not(caplog: pytest.LogCaptureFixture):
    console.set_up_logging("info")
    logger = logging.getLogger("lm_eval.models.huggingface")
    logger.warning("Passed an already-initialized model through `pretrained`, assuming single-process call")
    logger.warning(
        "Combined length of context (9) and continuation (9) exceeds model's maximum length (9). Truncating"
    )
    assert [r.message[:8] for r in caplog.records if r.name == logger.name] == ["Combined"]


def test_what_is_shown_inside_does_not_count(clock: list[float], said: pytest.LogCaptureFixture):
    outer, inner, innermost = Progress(), Progress(), Progress()
    outer("scoring", 0, 60)
    inner("reading", 0, 2)
    innermost("embedding", 0, 1)
    clock[0] += 100
    innermost("embedding", 1, 1)
    clock[0] += 8
    inner("reading", 1, 2)
    clock[0] += 2
    inner("reading", 2, 2)
    clock[0] += 5
    outer("scoring", 20, 60)
    assert said.messages == [
        "reading: 1 of 2 (8.0 s per item, about 8 s left)",
        "scoring: 20 of 60 (4.0 a second, about 10 s left)",
    ]


def test_goes_on_from_what_was_done(clock: list[float], said: pytest.LogCaptureFixture):
    show = Progress()
    show("scoring", 300, 400)
    clock[0] += 20
    show("scoring", 310, 400)
    assert said.messages == ["scoring: 310 of 400 (2.0 s per item, about 3 min left)"]
