"""The kind that checks in which language an answer is written."""

from __future__ import annotations

from typing import Any

from c3po_bench.feedback.metrics.kind import Kind
from c3po_bench.feedback.metrics.strings import is_word

MIN_LETTERS = 20  # below this many letters no detection can be trusted
UNSPACED_WEIGHT = 4  # a Chinese, Japanese, Korean or Thai character says as much as some letters
CODES = (
    "af",
    "ar",
    "bg",
    "bn",
    "ca",
    "cs",
    "cy",
    "da",
    "de",
    "el",
    "en",
    "es",
    "et",
    "fa",
    "fi",
    "fr",
    "gu",
    "he",
    "hi",
    "hr",
    "hu",
    "id",
    "it",
    "ja",
    "kn",
    "ko",
    "lt",
    "lv",
    "mk",
    "ml",
    "mr",
    "ne",
    "nl",
    "no",
    "pa",
    "pl",
    "pt",
    "ro",
    "ru",
    "sk",
    "sl",
    "so",
    "sq",
    "sv",
    "sw",
    "ta",
    "te",
    "th",
    "tl",
    "tr",
    "uk",
    "ur",
    "vi",
    "zh-cn",
    "zh-tw",
)
"""What langdetect can say."""


def _code(value: Any) -> str:
    """An ISO 639-1 code such as ``de`` or ``zh-cn``, or `ValueError`."""
    if value is False:  # YAML 1.1 reads a bare `no` (Norwegian) as false
        value = "no"
    if not isinstance(value, str) or value.lower() not in CODES:
        raise ValueError(f"needs a code that langdetect knows, such as de or zh-cn: {', '.join(CODES)}")
    return value.lower()


def detect(text: str) -> str | None:
    """The language of `text` (ISO 639-1), the same at every call; None when there is too little to tell."""
    if sum(1 if is_word(c) else UNSPACED_WEIGHT for c in text if c.isalpha()) < MIN_LETTERS:
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
