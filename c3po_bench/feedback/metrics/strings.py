"""Kinds that look for listed strings, ignoring case, at word boundaries."""

from __future__ import annotations

import re

from c3po_bench.feedback.metrics.kind import Kind, text_list

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[^\W_{_UNSPACED}]")


def is_word(character: str) -> bool:
    """A letter or digit of a script that parts words by spaces.

    Not Chinese, Japanese, Thai, or Korean with its particles.
    """
    return _WORD.match(character) is not None


def contains(text: str, needle: str) -> bool:
    """Whether `needle` occurs in `text`.

    Where it begins or ends with a letter or digit, it does so at a word's edge.
    """
    pattern = re.escape(needle)
    if is_word(needle[0]):
        pattern = f"(?<!{_WORD.pattern}){pattern}"
    if is_word(needle[-1]):
        pattern += f"(?!{_WORD.pattern})"
    return re.search(pattern, text, re.IGNORECASE) is not None


ANY = Kind(lambda text, needles: any(contains(text, n) for n in needles), text_list)
ALL = Kind(lambda text, needles: all(contains(text, n) for n in needles), text_list)
NONE = Kind(lambda text, needles: not any(contains(text, n) for n in needles), text_list)
