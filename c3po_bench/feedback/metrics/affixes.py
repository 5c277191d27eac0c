"""Kinds that look at the beginning or the end of an answer, through the wrapping that models put around it."""

from __future__ import annotations

import re

from c3po_bench.feedback.metrics.kind import Kind, text_value

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
    """Whether the answer begins with `prefix`, ignoring case, outer whitespace and wrapping."""
    return any(v.startswith(prefix.strip().casefold()) for v in _views(text, prefix))


def ends_with(text: str, suffix: str) -> bool:
    """Whether the answer ends with `suffix`, ignoring case, outer whitespace and wrapping."""
    return any(v.endswith(suffix.strip().casefold()) for v in _views(text, suffix))


def _letters(text: str) -> str:
    """Letters, digits and basic punctuation only, in lower case, single spaces."""
    return " ".join(re.sub(r"[^\w\s.,!?]", " ", text.casefold()).split())


def ends_with_cleaned(text: str, suffix: str) -> bool:
    """`ends_with` after both sides are reduced to letters, digits and basic punctuation."""
    return _letters(text).rstrip(" .,!?").endswith(_letters(suffix).rstrip(" .,!?"))


STARTS = Kind(starts_with, text_value)
DOES_NOT_START = Kind(lambda text, prefix: not starts_with(text, prefix), text_value)
ENDS = Kind(ends_with, text_value)
ENDS_CLEANED = Kind(ends_with_cleaned, text_value)
