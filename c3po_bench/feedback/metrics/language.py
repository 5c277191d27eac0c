"""The kind that checks in which language an answer is written."""

from __future__ import annotations

import re
from typing import Any

from c3po_bench.feedback.metrics.kind import Kind

MIN_LETTERS = 20  # below this many letters no detection can be trusted
_CODE = re.compile(r"^[a-z]{2}(-[a-z]{2})?$")


def _code(value: Any) -> str:
    """An ISO 639-1 code such as ``de`` or ``zh-cn``, or `ValueError`."""
    if value is False:  # YAML 1.1 reads a bare `no` (Norwegian) as false
        value = "no"
    if not isinstance(value, str) or not _CODE.match(value.lower()):
        raise ValueError("needs an ISO 639-1 code, such as de")
    return value.lower()


def detect(text: str) -> str | None:
    """The language of `text` (ISO 639-1), the same at every call; None when there is too little to tell."""
    if sum(c.isalpha() for c in text) < MIN_LETTERS:
        return None
    try:
        from langdetect import DetectorFactory, LangDetectException
        from langdetect import detect as guess
    except ImportError:
        from c3po_bench.errors import UserError

        raise UserError("metric is_language needs langdetect: pip install langdetect") from None
    DetectorFactory.seed = 0
    try:
        return guess(text)
    except LangDetectException:
        return None


LANGUAGE = Kind(lambda text, code: detect(text) == code, _code)
