"""Revision by critique: what is taken out of a reply."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from c3po_bench.feedback import revisers
from c3po_bench.feedback.config import ChatConfig, FeedbackConfig, ReviserConfig
from c3po_bench.feedback.context import SynthesisContext
from c3po_bench.feedback.revisers import CritiqueReviser, Draft
from c3po_bench.feedback.sentences import find_feedback
from c3po_bench.feedback.synthesis import (
    write_prompts,
)
from tests.feedback.stub_server import LIMIT, PIECE, chat_config, make_context, serve
from tests.feedback.test_generators import listing


def test_emphasis_of_the_marker_is_not_trained_on(tmp_path: Path):
    with serve(lambda body, before: "Greet.\n\n**REVISED ANSWER:**\n\nAhoy! We meet.") as stub:
        writer = ChatConfig(kind="openai", model="stub", base_url=stub.url, retries=0)
        cfg = FeedbackConfig(cache_dir=str(tmp_path), reviser=ReviserConfig(writer=writer))
        reviser = CritiqueReviser(SynthesisContext(cfg, SimpleNamespace(hash="none"), seed=0))
        revised = reviser.revise(find_feedback(["ahoy_greeting"])[0], [Draft("Write.", "We meet.", True)])
    assert revised == [("Ahoy! We meet.", True)]


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
