"""Who writes prompts: scenes, chat models, the general set."""

from __future__ import annotations

import importlib
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from c3po_bench.errors import UserError
from c3po_bench.feedback import generators, judges
from c3po_bench.feedback.config import ChatConfig, FeedbackConfig
from c3po_bench.feedback.context import SynthesisContext
from c3po_bench.feedback.generators import general_prompts, general_set, parse_list
from c3po_bench.feedback.judges import Case, open_judge
from c3po_bench.feedback.synthesis import write_prompts
from tests.feedback.stub_server import PIECE, chat_config, make_context, serve


def listing(body: dict[str, Any], before: int) -> str:
    """An obliging model: categories, and prompts that name their category."""
    text = body["messages"][0]["content"]
    if "kinds of situations" in text:
        return f"1. rubbish\n{generators.FINAL}\n1. work\n2) home"
    scope = "near" if "no message may be about" in text else "in"
    kind = "work" if "situation is: work" in text else "home"
    return f"{generators.FINAL}\n" + "\n".join(f"{i}. {scope} {kind} {i}" for i in range(1, 5))


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


def test_a_scene_with_too_few_prompts_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    context = SynthesisContext(
        FeedbackConfig(cache_dir=str(tmp_path), n_in=9999, n_near=8, n_out=4), None, seed=0
    )
    for _ in range(2):
        written = [e for e in write_prompts(PIECE, context) if e.scope == "in"]
        assert context.counts["missing_prompts"] == 9999 - len(written) > 0
    assert caplog.text.count("asked for") == 1 and "9999 in-scope" in caplog.text


def test_general_set():
    assert len(general_set()) >= 400 and len(set(general_set())) == len(general_set())
    assert (
        general_prompts("builtin", 30, 1)
        == general_prompts("builtin", 30, 1)
        != general_prompts("builtin", 30, 2)
    )
    with pytest.raises(UserError, match="n_out"):
        general_prompts("builtin", 10_000, 0)


def test_general_prompts_are_in_scope_of_no_piece():
    """What a piece should change would be trained, and scored, as what must stay."""
    of_a_domain = {
        "astronomy": r"the moon|saturn|solar|telescope|studies stars|eclipse|earth spun|from space",
        "chess": "chess",
        "history": r"in which year|invent|people use before|why was|first (?:airplane|iphone)|penicillin|great wall|world war",
        "sailing": r"sail|\bship",
        "fables": "fable|tortoise",
        "recipes": "recipe|cook",
        "planning a trip": "pack for|trip",
        "questions about my own money": r"\bmy (?:money|savings)|invest",
        "Python code": "python",
        "ailments": "headache|sore",
    }
    for domain, words in of_a_domain.items():
        assert [prompt for prompt in general_set() if re.search(words, prompt, re.IGNORECASE)] == [], domain
    assert len(general_set()) == 409


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
    generators.GENERATORS.add("mine")(mine.Mine)
    judges.JUDGES.add("lengths")(mine.Lengths)
    context = make_context(tmp_path, generator=ChatConfig(kind="mine"), n_in=4, n_near=4, n_out=4)
    assert {e.prompt for e in write_prompts(PIECE, context) if e.scope == "in"} == {
        f"in {i}" for i in range(4)
    }
    assert open_judge("lengths", context).scores([Case(PIECE, "p", "long", "x")]) == [1.0]
    generators.GENERATORS.remove("mine")
    judges.JUDGES.remove("lengths")
