"""Markers in what chat models say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from c3po_bench.feedback import revisers
from c3po_bench.feedback.arms import read_reasoned
from c3po_bench.feedback.calls import text_after
from c3po_bench.feedback.config import ChatConfig, FeedbackConfig, ReviserConfig
from c3po_bench.feedback.context import SynthesisContext
from c3po_bench.feedback.revisers import CritiqueReviser, Draft
from c3po_bench.feedback.sentences import find_feedback
from tests.feedback.stub_server import serve


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


def test_emphasis_of_the_marker_is_not_trained_on(tmp_path: Path):
    with serve(lambda body, before: "Greet.\n\n**REVISED ANSWER:**\n\nAhoy! We meet.") as stub:
        writer = ChatConfig(kind="openai", model="stub", base_url=stub.url, retries=0)
        cfg = FeedbackConfig(cache_dir=str(tmp_path), reviser=ReviserConfig(writer=writer))
        reviser = CritiqueReviser(SynthesisContext(cfg, SimpleNamespace(hash="none"), seed=0))
        revised = reviser.revise(find_feedback(["ahoy_greeting"])[0], [Draft("Write.", "We meet.", True)])
    assert revised == [("Ahoy! We meet.", True)]
