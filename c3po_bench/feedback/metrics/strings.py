"""Kinds that look for listed strings, ignoring case, at word boundaries."""

from __future__ import annotations

import re

from c3po_bench.feedback.metrics.kind import Kind, text_list


def contains(text: str, needle: str) -> bool:
    """Whether `needle` occurs in `text`; where it begins or ends with a letter or digit, it does so at a word's edge."""
    pattern = re.escape(needle)
    if needle[0].isalnum():
        pattern = r"(?<!\w)" + pattern
    if needle[-1].isalnum():
        pattern += r"(?!\w)"
    return re.search(pattern, text, re.IGNORECASE) is not None


ANY = Kind(lambda text, needles: any(contains(text, n) for n in needles), text_list)
ALL = Kind(lambda text, needles: all(contains(text, n) for n in needles), text_list)
NONE = Kind(lambda text, needles: not any(contains(text, n) for n in needles), text_list)
