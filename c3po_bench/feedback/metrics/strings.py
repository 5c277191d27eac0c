"""Kinds that look for listed strings, ignoring case, at word boundaries."""

from __future__ import annotations

import re

from c3po_bench.feedback.metrics.kind import Kind, text_list

_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


def is_word(character: str) -> bool:
    """A letter or digit of a script that puts spaces between words (not Chinese, Japanese, Thai ...)."""
    return character.isalnum() and not _UNSPACED.match(character)


def contains(text: str, needle: str) -> bool:
    """Whether `needle` occurs in `text`; where it begins or ends with a letter or digit, it does so at a word's edge."""
    pattern = re.escape(needle)
    if is_word(needle[0]):
        pattern = r"(?<!\w)" + pattern
    if is_word(needle[-1]):
        pattern += r"(?!\w)"
    return re.search(pattern, text, re.IGNORECASE) is not None


ANY = Kind(lambda text, needles: any(contains(text, n) for n in needles), text_list)
ALL = Kind(lambda text, needles: all(contains(text, n) for n in needles), text_list)
NONE = Kind(lambda text, needles: not any(contains(text, n) for n in needles), text_list)
