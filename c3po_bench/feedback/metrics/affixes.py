"""Kinds that look at the beginning or the end of an answer, through the wrapping that models put around it."""

from __future__ import annotations

import re
from typing import Any

from c3po_bench.feedback.metrics.kind import Kind, text_value
from c3po_bench.feedback.metrics.strings import is_word

_FENCE = re.compile(r"^\s*```[\w+-]*[ \t]*\n?|\n?[ \t]*```\s*$")
_WRAPPING = " \t\r\n\"'*_`\u201c\u201d\u2018\u2019"


def _views(text: str, affix: str) -> list[str]:
    """`text` as it is, and without code fence, quotes and emphasis (unless the affix itself is made of those)."""
    plain = text.strip()
    views = [plain]
    if affix.strip(_WRAPPING):
        views.append(_FENCE.sub("", plain).strip(_WRAPPING))
    return [v.casefold() for v in views]


def starts_with(text: str, prefix: str) -> bool:
    """Whether the answer begins with `prefix` and a word ends there, ignoring case, outer whitespace and wrapping."""
    wanted = prefix.strip().casefold()
    return any(v.startswith(wanted) and not _inside_word(v, len(wanted)) for v in _views(text, prefix))


def ends_with(text: str, suffix: str) -> bool:
    """Whether the answer ends with `suffix` and a word begins there, ignoring case, outer whitespace and wrapping."""
    wanted = suffix.strip().casefold()
    return any(v.endswith(wanted) and not _inside_word(v, len(v) - len(wanted)) for v in _views(text, suffix))


def _inside_word(text: str, place: int) -> bool:
    """Whether the characters on both sides of `place` are letters or digits of one word."""
    return 0 < place < len(text) and is_word(text[place - 1]) and is_word(text[place])


def _letters(text: str) -> str:
    """Letters, digits and basic punctuation only, in lower case, single spaces."""
    return " ".join(re.sub(r"[^\w\s.,!?]", " ", text.casefold()).split())


def ends_with_cleaned(text: str, suffix: str) -> bool:
    """`ends_with` after both sides are reduced to letters, digits and basic punctuation."""
    return ends_with(_letters(text).rstrip(" .,!?"), _letters(suffix).rstrip(" .,!?"))


def _cleanable(value: Any) -> str:
    """A text of which something is left when it is cleaned, or `ValueError`."""
    if not _letters(text_value(value)).strip(" .,!?"):
        raise ValueError("needs letters or digits: nothing else is compared")
    return value


STARTS = Kind(starts_with, text_value)
DOES_NOT_START = Kind(lambda text, prefix: not starts_with(text, prefix), text_value)
ENDS = Kind(ends_with, text_value)
ENDS_CLEANED = Kind(ends_with_cleaned, _cleanable)
