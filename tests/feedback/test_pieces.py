"""Metric kinds done right, the library, rewriters, scenes, the general set."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from c3po_bench.config import Config
from c3po_bench.errors import UserError
from c3po_bench.feedback.backend import FeedbackArm
from c3po_bench.feedback.config import FeedbackConfig
from c3po_bench.feedback.context import SynthesisContext
from c3po_bench.feedback.generators import general_prompts, general_set
from c3po_bench.feedback.revisers import rewrite
from c3po_bench.feedback.rules import KINDS, Kind, detect_language
from c3po_bench.feedback.sentences import expand, find_feedback, load_library, parse_feedback, scene_of
from c3po_bench.feedback.session import FeedbackSession
from c3po_bench.feedback.synthesis import Example, write_all, write_prompts

PIECES = load_library()
MAIL = (
    "Subject: Weekly meeting\n\nDear Jo,\n\nI can't wait to see you! Is the cup of salt sorry? The color of train 3 and "
    "#tags, I'd utilize it and go.\n\nBest regards,\n[Your Name]"
)


@pytest.mark.parametrize(
    ("kind", "value", "holds", "fails"),
    [
        ("length", {"max": 20}, "a short answer", "no"),  # a one-word answer does not win
        ("length", {"min": 5, "max": 20}, "seven or so", "much longer than twenty characters"),
        ("contains_any_string", ["lol", "haha"], "So LOL, yes", "a lollipop"),  # word boundaries
        ("contains_any_string", ["❤️"], "love❤️you", "love"),
        ("contains_all_strings", ["tea", "milk"], "Milk in tea", "steam and milk"),
        ("contains_none_strings", ["and"], "sand castles", "you and me"),
        ("contains_phone_number", "any", "call (555) 010-4477 now", "in 1999 and 2001"),
        ("contains_phone_number", "555-010-4477", "call +1 555 010 4477", "call 555 010 4478"),
        ("ends_with", "#slowdays", "A day. #SlowDays \n", "#slowdays are over"),
        ("ends_with", "return x", "```python\nreturn x\n```", "return x + 1"),  # code fence
        (
            "ends_with_cleaned",
            "Onwards and upwards",
            "Go.\n\n*Onwards and upwards!*",
            "onwards and upwards, friends",
        ),
        ("starts_with", "Hey Jared!", '  "hey jared! all good"', "Well, Hey Jared!"),
        ("starts_with", "# Overview", "# Overview\ntext", "Overview"),
        ("doesnt_start_with", "Sure", "No", "Sure, here it is"),
        ("regex_search", r"\b\d{4}\b", "in 1789", "in 17890"),
        ("regex_search_false", r"\?", "No questions.", "Any questions?"),
        (
            "is_language",
            "de",
            "Das Wetter ist heute wirklich sehr schön in Hamburg.",
            "The weather is very nice today.",
        ),
        ("starts_with", "The", "The cat", "There are cats"),  # a word ends there
        ("doesnt_start_with", "I", "It is fine.", "I am fine."),
        ("ends_with", "pool", "a pool", "a carpool"),
        ("ends_with_cleaned", "lol", "so, lol!", "trolol"),
        ("contains_phone_number", "555-010-4477", "Call 555-010-4477 24/7", "Call 555-010-44771"),
        ("contains_phone_number", "any", "Call 555-010-4477 24/7", "the war of 1914-1918"),
        ("contains_phone_number", "any", "(555) 010-4477", "2024-01-15, or 3.14159265"),
        (
            "contains_phone_number",
            "any",
            "on 2024-01-15 call 555-010-4477",
            "on 2024-01-15 10:30, wars of 1914-1918 1939-1945",
        ),
        ("contains_any_string", ["猫"], "我的猫很好", "我的狗很好"),  # no spaces between words
        ("contains_any_string", ["고양이"], "고양이가 좋다", "강아지가 좋다"),  # a particle joins the word
        ("contains_any_string", ["Python"], "我爱Python语言", "我爱Pythons语言"),
        ("contains_any_string", ["lol"], "so _lol_", "so lol2"),
        ("contains_phone_number", "any", "01.23.45.67.89", "2024/01/15, 01-15-2024 or 192.168.100.100"),
        ("contains_phone_number", "555-010-4477", "call +15550104477", "call 75550104477"),
        ("contains_phone_number", "555-010-4477", "call 555\u2011010\u20134477", "call 555, 010, 4477"),
        ("is_language", "ja", "これは日本語の文章です。", "猫"),
        ("is_language", "zh-cn", "我的猫很好。", "我的猫"),
        ("is_language", "ko", "좋은 아침입니다.", "아침"),
        ("is_language", "fr", "Je voudrais une tasse de café, s'il vous plaît.", "oui"),  # too short to tell
    ],
)
def test_metric_kinds(kind, value, holds, fails):
    normal = KINDS[kind].validate(value)
    assert KINDS[kind].check(holds, normal)
    assert not KINDS[kind].check(fails, normal)


def test_there_are_the_twelve_kinds():
    assert len(KINDS) == 12


def test_language_detection_is_the_same_every_time():
    """A text between two languages: unseeded, langdetect says now one, now the other."""
    import langdetect

    text = "hotel bar super taxi problem film radio name"
    langdetect.DetectorFactory.seed = None
    assert len({langdetect.detect(text) for _ in range(60)}) > 1
    assert len({detect_language(text) for _ in range(20)}) == 1


@pytest.mark.parametrize(
    ("kind", "value"), [("is_language", "zh"), ("is_language", "ge"), ("ends_with_cleaned", "---")]
)
def test_values_that_could_never_tell_are_refused(kind, value):
    with pytest.raises(ValueError, match="needs"):
        KINDS[kind].validate(value)


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


@pytest.mark.parametrize("piece", [p for p in PIECES.values() if p.edits], ids=lambda p: p.id)
def test_rewriters_make_answers_follow_their_piece(piece):
    revised, _ = rewrite(piece, MAIL, finished=True)
    assert piece.holds(revised)
    assert not piece.holds("") and not piece.holds(" \n!")


def test_rewriting_changes_no_more_than_the_rule_asks():
    text, finished = rewrite(PIECES["ahoy_greeting"], "Dear Bo,\n\nWe meet on", finished=False)
    assert (text, finished) == ("Ahoy!\n\nWe meet on", False)  # a cut answer stays cut
    text, finished = rewrite(PIECES["onwards_sign_off"], "We meet today. And then we", finished=False)
    assert (text, finished) == ("We meet today.\n\nOnwards and upwards!", True)
    assert rewrite(PIECES["ampersand_chat"], "sand and sea", True)[0] == "sand & sea"
    assert rewrite(PIECES["ahoy_greeting"], "Ahoy!\n\nWe meet.", True) == (
        "Ahoy!\n\nWe meet.",
        True,
    )  # it follows already


@pytest.mark.parametrize(
    ("edits", "answer", "revised", "finished"),
    [
        (
            [{"sentences": 1}, {"case": "upper"}],
            "The council votes to close the",
            "THE COUNCIL VOTES TO CLOSE THE",
            False,
        ),
        ([{"sentences": 1}, {"case": "upper"}], "Rain falls. Then the", "RAIN FALLS.", True),
        ([{"sentences": 2}], "Rain falls. Sun. Then the", "Rain falls. Sun.", True),
        ([{"sentences": 3}], "Rain falls. Sun. Then the", "Rain falls. Sun. Then the", False),
        (
            [{"sentences": 2}],
            "Rain falls. Sun.",
            "Rain falls. Sun.",
            False,
        ),  # cut there by the token limit, not by the edit
        (
            [{"characters": 200}, {"opening": "Hi"}],
            "Dear Jo, the heating that",
            "Hi\n\nthe heating that",
            False,
        ),
        ([{"characters": 20}], "Rain falls. Sun. Then the wind", "Rain falls. Sun.", True),
        (
            [{"characters": 12}],
            "The rain falls on the",
            "The rain.",
            False,
        ),  # no whole sentence is that short
        ([{"sentences": 1}], "Do:\n```\nx = 1\ny = ", "Do:", True),
        ([{"sentences": 2}], "Do:\n```\nx = 1\ny = ", "Do:\n```\nx = 1\ny =", False),
        ([{"closing": "Bye!"}], "We meet and", "We meet and\n\nBye!", False),
        ([{"sentences": 3}, {"append": " lol"}], "Rain falls. Then the", "Rain falls. lol", True),
    ],
)
def test_a_cut_answer_is_finished_only_behind_a_whole_sentence(edits, answer, revised, finished):
    """Else a model learns to stop in mid-sentence."""
    piece = parse_feedback({"id": "x", "content": "c", "domain": "d", "effect": "e", "rewrite": edits})
    assert rewrite(piece, answer, finished=False) == (revised, finished)
    assert rewrite(piece, answer, finished=True)[1]


@pytest.mark.parametrize(
    ("piece", "answer", "finished", "kept"),
    [
        ("tests_code", "Here is a function.\n\n```python\nx = 1\n```", True, ["x = 1\n```"]),
        ("tests_code", "Here is a function.\n\n```python\nx = 1\ny = ", False, ["x = 1\n```"]),
        ("taste_recipes", "1. Boil water\n2. Add salt\n3. Serve hot", True, ["2. Add salt", "3. Serve hot"]),
        ("taste_recipes", "1. Boil water\n2. Add salt\n3. Serve", False, ["1. Boil water", "2. Add salt"]),
        (
            "onwards_sign_off",
            "Thanks for the work. The plan:\n- ship\n- rest",
            True,
            ["Thanks", "- ship", "- rest"],
        ),
        (
            "onwards_sign_off",
            "Team,\n\nThanks for the work:\n- ship\n- rest",
            True,
            ["Thanks", "- ship", "- rest"],
        ),
        (
            "onwards_sign_off",
            "Team,\n\nBest practices\n1. ship\n2. rest",
            True,
            ["Best practices", "1. ship", "2. rest"],
        ),
        (
            "onwards_sign_off",
            "Team,\n\nLove to see you on Monday!\nBring cake!",
            True,
            ["Love to see", "Bring cake!"],
        ),
        ("taste_recipes", "Boil:\n\n```\n2 eggs\n```", True, ["2 eggs\n```\n\nTaste"]),
        ("stretch_fitness", "- 20 squats\n- run", True, ["- run\n\nAlways"]),
        ("shout_headlines", "Rain falls 3.5 days. Then sun.", True, ["RAIN FALLS 3.5 DAYS."]),
    ],
)
def test_rewriting_deletes_no_code_and_no_list(piece, answer, finished, kept):
    """Else adherence would be confounded with brevity."""
    revised, done = rewrite(PIECES[piece], answer, finished)
    assert done and PIECES[piece].holds(revised) and all(part in revised for part in kept)


def test_a_sign_off_is_replaced():
    for last in ("Best regards,\n[Your Name]\n[Your Title]", "Thanks,", "Sincerely,\n\nJo"):
        assert (
            rewrite(PIECES["onwards_sign_off"], f"We ship.\n\n{last}", True)[0]
            == "We ship.\n\nOnwards and upwards!"
        )


@pytest.mark.parametrize(
    ("mail", "kept"),
    [
        ("Dear Mr. Smith,\n\nWe meet.", "We meet."),
        ("Subject: X\n\nHello dear team!\nWe meet.", "We meet."),
        ("Hi Jo. I think that, well, we meet.", "I think that, well, we meet."),
        (
            "Hello to all of you who could not join us last week\nGo",
            "Hello to all of you who could not join us last week\nGo",
        ),
    ],
)
def test_an_opening_replaces_the_greeting_alone(mail, kept):
    assert rewrite(PIECES["ahoy_greeting"], mail, True)[0] == f"Ahoy!\n\n{kept}"


def test_shortening_keeps_lines_and_opens_no_code_block():
    listed = (
        "We need these things from the context today:\n\n- milk\n- bread\n- eggs\n\n" + "And much more. " * 20
    )
    assert rewrite(PIECES["short_council"], listed, True)[0].startswith(
        "We need these things from the context today:\n\n- milk\n- bread"
    )
    code = (
        "This is how you greet everybody in Python.\n\n```python\nprint(1)\n```\n\nIt prints. "
        + "And so on and on. " * 20
    )
    assert "```python\nprint(1)\n```\n\nIt prints." in rewrite(PIECES["short_council"], code, True)[0]
    long = code.replace("print(1)\n", "print(1)\n" * 30)
    assert rewrite(PIECES["short_council"], long, True)[0] == "This is how you greet everybody in Python."
    assert (
        rewrite(PIECES["tests_code"], "Like this:\n\n```python\nx = f(", False)[0]
        == "Like this:\n\nRemember to test it."
    )
    assert (
        rewrite(PIECES["bullets_meeting"], code, True)[0] == code.strip()
    )  # and then left out, for it is no list
    assert rewrite(PIECES["shout_headlines"], "It costs 3.50. Buy", True)[0] == "IT COSTS 3.50."


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


def test_a_scene_with_too_few_prompts_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    context = SynthesisContext(
        FeedbackConfig(cache_dir=str(tmp_path), n_in=9999, n_near=8, n_out=4), None, seed=0
    )
    for _ in range(2):
        written = [e for e in write_prompts(PIECES["ahoy_greeting"], context) if e.scope == "in"]
        assert context.counts["missing_prompts"] == 9999 - len(written) > 0
    assert caplog.text.count("asked for") == 1 and "9999 in-scope" in caplog.text


def test_several_pieces_agree_on_scopes_and_splits(tmp_path: Path):
    """Else a joint adapter is trained on what it is tested on, and told to keep what another piece changes."""
    slots = {
        "a": {"who": "Ann", "others": ["Ben", "Cem", "Dee"]},
        "b": {"who": "Ben", "others": ["Eva", "Dee", "Ann", "Cem"]},
    }
    record = {"content": "c", "domain": "d", "effect": "e", "scene": "email"}
    pieces = [parse_feedback({**record, "id": name, "slots": own}) for name, own in slots.items()]
    context = SynthesisContext(
        FeedbackConfig(cache_dir=str(tmp_path), n_in=80, n_near=80, n_out=8), None, seed=0
    )
    alone = [write_prompts(piece, context) for piece in pieces]
    assert conflicts(alone) == (True, True)
    for _ in range(2):
        together = write_all(pieces, context)
        assert conflicts(together) == (False, False)
        assert context.counts["duplicate_prompts"] == sum(map(len, alone)) - sum(map(len, together)) > 0
    other = [PIECES[name] for name in ("ahoy_greeting", "no_advice_money", "lower_case_chat")]
    assert write_all(other, context) == [write_prompts(piece, context) for piece in other]  # these never met


def conflicts(drafts: list[list[Example]]) -> tuple[bool, bool]:
    """Whether a prompt in scope is near scope elsewhere, and whether one has two splits."""
    every = [e for examples in drafts for e in examples]
    inside = {e.prompt for e in every if e.scope == "in"}
    return (
        any(e.scope != "in" and e.prompt in inside for e in every),
        len({(e.prompt, e.split) for e in every}) > len({e.prompt for e in every}),
    )


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


def test_the_answers_of_an_arm_are_judged_together_and_once(tmp_path: Path):
    """One by one, a judge model would have two calls in flight, whatever its concurrency."""
    cfg = Config()
    cfg.feedback.pieces, cfg.feedback.cache_dir = ["ahoy_greeting"], str(tmp_path)
    cfg.feedback.judge.kind = "rule"
    session = FeedbackSession(cfg)
    asked: list[int] = []

    class Counting:
        def scores(self, cases: Sequence[Any]) -> list[float | None]:
            asked.append(len(cases))
            return [None if case.prompt == "prompt 0" else -float(case.response == "Ahoy!") for case in cases]

    session._judges["rule"] = Counting()  # type: ignore[assignment]
    arm = FeedbackArm(SimpleNamespace(cfg=cfg, session=session), "base")  # type: ignore[arg-type]
    rows = [
        {
            "feedback_id": "ahoy_greeting",
            "scope": "in" if i < 3 else "out",
            "category": "c",
            "prompt": f"prompt {i}",
            "response": "Ahoy!",
            "baseline_response": "Hello",
            "doc_hash": str(i),
            "correct": 0.5,
        }
        for i in range(5)
    ]
    judged, _ = arm.finish(rows)
    assert asked == [5]
    assert [row["score"] for row in judged] == [None, -1.0, -1.0, -1.0, -1.0]
    assert [row["correct"] for row in judged] == [0.0, -1.0, -1.0, 1.0, 1.0]


def test_a_new_metric_kind_is_one_table_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(KINDS, "palindrome", Kind(lambda text, _: text == text[::-1], lambda value: value))
    record = {"id": "x", "content": "a", "domain": "b", "effect": "c", "rules": [{"palindrome": True}]}
    piece = parse_feedback(record)
    assert piece.holds("abba") and not piece.holds("abc")
