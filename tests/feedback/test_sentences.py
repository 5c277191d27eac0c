"""Pieces of feedback: what is refused, the library, scenes, a user's own files."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from c3po_bench.errors import UserError
from c3po_bench.feedback.generators import general_prompts
from c3po_bench.feedback.revisers import rewrite
from c3po_bench.feedback.sentences import expand, find_feedback, load_library, parse_feedback, scene_of

PIECES = load_library()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rules": [{"starts_wth": "x"}]}, "starts_with"),
        ({"rules": [{"length": {"min": 9, "max": 3}}]}, "min 9 above max 3"),
        ({"rules": [{"regex_search": "("}]}, "regular expression"),
        ({"aspekt": "style"}, "aspect"),
        ({"aspect": "stile"}, "style"),
        ({"content": ""}, "content"),
        ({"rewrite": [{"openning": "x"}]}, "opening"),
        ({"rewrite": [{"case": "title"}]}, "edit case needs lower or upper, not 'title'"),
        ({"rewrite": [{"sentences": "two"}]}, "edit sentences needs a whole number"),
        ({"rewrite": [{"characters": None}]}, "edit characters needs a whole number"),
        ({"rewrite": [{"replace": "x"}]}, "edit replace needs .pattern, replacement."),
        ({"rewrite": [{"replace": ["(", "x"]}]}, "edit replace .* unterminated"),
        ({"rewrite": [{"replace": ["a", r"\1"]}]}, "edit replace .* group"),
        ({"rewrite": [{"opening": 5}]}, "edit opening needs a non-empty text"),
        ({"rewrite": [{5: "x"}]}, "unknown edit '5'"),
        ({"rules": [{1: "Hi"}]}, "unknown metric kind '1'"),
        ({"slots": ["a", "b"]}, "slots must be a mapping"),
        ({"slots": {"when": datetime.date(2024, 1, 1)}}, "slot when must be a text .* quotes"),
        ({"slots": {"who": ["Ann", True]}}, "slot who must be a text"),
        ({"slots": {"who": []}}, "slot who must be a text"),
        ({"scene": "emial"}, "email"),
        ({"scene": 5}, "unknown scene '5'"),
        ({"scene": ["email"]}, "unknown scene"),
        ({"rules": {"starts_with": "Hi"}}, "rules must be a list of one-key mappings"),
        ({"rules": ["starts_with"]}, "rules must be a list of one-key mappings"),
        ({"rewrite": [{"opening": "Hi", "ending": "Bye"}]}, "rewrite must be a list of one-key mappings"),
        ({"leak": 3}, "leak must be a text"),
    ],
)
def test_a_wrong_piece_is_refused_in_one_line(change, said):
    record = {"id": "x", "content": "a", "domain": "b", "effect": "c", **change}
    with pytest.raises(UserError, match=said) as caught:
        parse_feedback(record, "my.yaml")
    assert "my.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_slots_may_be_left_empty_or_be_numbers():
    record = {"id": "x", "content": "a", "domain": "b", "effect": "c"}
    assert parse_feedback({**record, "slots": None}).slots == {}
    assert parse_feedback({**record, "slots": {"who": [1, "Ann"]}}).slots == {"who": [1, "Ann"]}


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe bad", b"- {id: x, content: a, domain: b, effect: c, leak: 2024-13-45}"]
)
def test_files_that_are_no_text_are_refused_in_one_line(raw: bytes, tmp_path: Path):
    (tmp_path / "bad.yaml").write_bytes(raw)
    with pytest.raises(UserError, match="bad.yaml: "):
        find_feedback([str(tmp_path / "bad.yaml")])
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe bad")
    with pytest.raises(UserError, match="bad.txt' is no text file in UTF-8"):
        general_prompts(str(tmp_path / "bad.txt"), 1, 0)


def test_the_library_is_large_and_varied():
    assert len(PIECES) >= 60
    assert sum(p.checkable for p in PIECES.values()) >= 30
    assert {p.aspect for p in PIECES.values()} == {"style", "content", "format", "language"}
    assert len({p.scene for p in PIECES.values()}) >= 10


def test_rules_see_what_their_pieces_are_about():
    assert not PIECES["no_lists_travel"].holds("Here is a plan:\n- Day 1\n- Day 2")
    metric = PIECES["metric_units"]
    for text in ("Bake at 350°F.", "Take 2 lbs of flour.", "2lbs", "at 350F", "350 degrees F", "3 Cups"):
        assert not metric.holds(text) and metric.holds(rewrite(metric, text, True)[0])
    assert metric.holds("One cupcake, 200 g of flour, 180°C.")


@pytest.mark.parametrize("piece", PIECES.values(), ids=lambda p: p.id)
def test_every_piece_has_prompts_offline_and_scopes_do_not_overlap(piece):
    scene = scene_of(piece.scene, piece.id)
    prompts = {
        s: [p for c in scene.categories for p in expand(scene, s, c, piece.slots, 99, "0")]
        for s in ("in", "near")
    }
    assert min(map(len, prompts.values())) >= 90
    assert not set(prompts["in"]) & set(prompts["near"])
    assert not any("{" in p for p in prompts["in"] + prompts["near"])


def test_own_prompts_and_pieces(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("One?\nTwo?\n\nOne?\n")
    assert sorted(general_prompts(str(tmp_path / "mine.txt"), 2, 0)) == ["One?", "Two?"]
    (tmp_path / "mine.yaml").write_text(
        "- {id: own, content: Say hi., domain: mail, effect: say hi, scene: email}\n"
    )
    assert [p.id for p in find_feedback([str(tmp_path / "mine.yaml")])] == ["own"]
    assert [p.id for p in find_feedback(["own"], [str(tmp_path)])] == ["own"]
    with pytest.raises(UserError, match="ahoy_greeting"):
        find_feedback(["ahoy_greting"])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["ahoy_greeting", "ahoy_greeting"], "the same piece twice, 'ahoy_greeting': name it once"),
        (
            ["ahoy_greeting", "mine.yaml"],
            "two pieces with the id 'ahoy_greeting': call one of them ahoy_greeting_2",
        ),
        (["twice.yaml"], "two pieces with the id 'p'"),
    ],
)
def test_an_id_stands_for_one_piece(
    names: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Rows know their piece by its id: every prompt was scored by the last rule, or twice."""
    monkeypatch.chdir(tmp_path)
    piece = "- {{id: {}, content: {}, domain: mail, effect: say hi, scene: email, rules: [{{starts_with: Hi}}]}}\n"
    Path("mine.yaml").write_text(piece.format("ahoy_greeting", "Say hi."))
    Path("twice.yaml").write_text(piece.format("p", "Say hi.") + piece.format("p", "Say ho."))
    with pytest.raises(UserError, match=said):
        find_feedback(names)
    assert [p.content for p in find_feedback(["mine.yaml"])] == ["Say hi."]
