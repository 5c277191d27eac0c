"""Metric kinds: word boundaries, bounded lengths, wrapping, phone numbers, languages."""

from __future__ import annotations

import pytest

from c3po_bench.feedback.rules import KINDS, Kind, detect_language
from c3po_bench.feedback.sentences import parse_feedback


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
    assert KINDS[kind].apply(holds, normal)
    assert not KINDS[kind].apply(fails, normal)


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


def test_a_new_metric_kind_is_one_table_line():
    record = {"id": "x", "content": "a", "domain": "b", "effect": "c", "rules": [{"palindrome": True}]}
    KINDS.add("palindrome")(Kind(lambda text, _: text == text[::-1], lambda value: value))
    try:
        piece = parse_feedback(record)
        assert piece.holds("abba") and not piece.holds("abc")
    finally:
        KINDS.remove("palindrome")
