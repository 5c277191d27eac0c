"""Kinds that search for a pattern: regular expressions and phone numbers."""

from __future__ import annotations

import re
from typing import Any

from c3po_bench.feedback.metrics.kind import Kind, text_value

_PHONE = re.compile(r"(?<![\d.])\+?\(?\d(?:[\d .\-()/]{5,17})\d(?![\d])")
_TIMES = re.compile(r"(?<![\d-])(?:(?:1\d|20)\d\d *- *(?:1\d|20)\d\d|\d{4}-\d\d-\d\d)(?![\d-])")
"""Ranges of years, and dates, beside which there may be a number."""
_OTHER = re.compile(r"\d\d?[./-]\d\d?[./-]\d{2,4}|\d{4}[./]\d\d?[./]\d\d?|\d+\.\d+|\d{1,3}(?:\.\d{1,3}){3}")
"""Other dates, decimals, and network addresses."""


def _pattern(value: Any) -> str:
    """A regular expression that compiles, or `ValueError`."""
    try:
        re.compile(text_value(value))
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return value


def _phone_value(value: Any) -> str:
    """``any``, or the number that must occur."""
    if value in (True, "any"):
        return "any"
    if isinstance(value, str) and len(_digits(value)) >= 7:
        return value
    raise ValueError("needs 'any' or a phone number of at least 7 digits")


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def has_phone_number(text: str, number: str) -> bool:
    """Whether a phone number of 7 to 15 digits occurs (`number` "any"), or the given one however it is written."""
    if number == "any":
        found = [m.group() for m in _PHONE.finditer(_TIMES.sub("|", text))]
        return any(7 <= len(_digits(f)) <= 15 and not _OTHER.fullmatch(f.strip("() ")) for f in found)
    spelled = r"[\s.\-\u2011\u2013()/]{0,3}".join(_digits(number))
    return re.search(rf"(?<!\d)(?:\+\d{{1,3}})?{spelled}(?!\d)", text) is not None


FOUND = Kind(lambda text, pattern: re.search(pattern, text, re.IGNORECASE) is not None, _pattern)
NOT_FOUND = Kind(lambda text, pattern: re.search(pattern, text, re.IGNORECASE) is None, _pattern)
PHONE = Kind(has_phone_number, _phone_value)
