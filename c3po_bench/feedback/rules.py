"""The metric kinds: what a rule of a piece of feedback may check in an answer.

The twelve names are those of the RLVF paper's code (arXiv 2402.10893), done with word boundaries, bounded
lengths and seeded language detection. A new kind is one line of `KINDS`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from c3po_bench.errors import UserError
from c3po_bench.registry import Registry

MIN_LETTERS = 20  # below this many letters no detection of a language can be trusted
UNSPACED_WEIGHT = 4  # a Chinese, Japanese, Korean or Thai character says as much as some letters
LANGUAGES = (
    "af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr ne nl no pa "
    "pl pt ro ru sk sl so sq sv sw ta te th tl tr uk ur vi zh-cn zh-tw"
)
"""What langdetect knows, separated by blanks."""

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[^\W_{_UNSPACED}]")
_FENCE = re.compile(r"^\s*```[\w+-]*[ \t]*\n?|\n?[ \t]*```\s*$")
_WRAPPING = " \t\r\n\"'*_`\u201c\u201d\u2018\u2019"
_PHONE = re.compile(r"(?<![\d.])\+?\(?\d(?:[\d .\-()/]{5,17})\d(?![\d])")
_TIMES = re.compile(r"(?<![\d-])(?:(?:1\d|20)\d\d *- *(?:1\d|20)\d\d|\d{4}-\d\d-\d\d)(?![\d-])")
"""Ranges of years, and dates, beside which there may be a number."""
_NO_PHONE = re.compile(
    r"\d\d?[./-]\d\d?[./-]\d{2,4}|\d{4}[./]\d\d?[./]\d\d?|\d+\.\d+|\d{1,3}(?:\.\d{1,3}){3}"
)
"""Other dates, decimals, and network addresses."""


def text_value(value: Any) -> str:
    """A non-empty string, or `ValueError`."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("needs a non-empty text")
    return value


@dataclass(frozen=True)
class Kind:
    """One way of checking an answer, or of editing it (`edits.EDITS`).

    `validate(value)` returns the value in its normal form, or raises `ValueError`; `apply(text, value)` is
    given what it returned, and says whether the answer follows the rule, or gives the edited answer.
    """

    apply: Callable[[str, Any], Any]
    validate: Callable[[Any], Any] = text_value


def _text_list(value: Any) -> list[str]:
    """A non-empty list of non-empty strings (a single one is taken as a list), or `ValueError`."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values:
        raise ValueError("needs a list of texts")
    return [text_value(v) for v in values]


def _cleanable(value: Any) -> str:
    """A text of which something is left when it is cleaned, or `ValueError`."""
    if not _letters(text_value(value)).strip(" .,!?"):
        raise ValueError("needs letters or digits: nothing else is compared")
    return value


def _bounds(value: Any) -> dict[str, int]:
    """``{min, max}`` in characters, or `ValueError`.

    `min` defaults to a fifth of `max`, so that an empty or one-word answer does not win.
    """
    if not isinstance(value, dict) or not value or set(value) - {"min", "max"}:
        raise ValueError("needs {min: characters, max: characters}, at least one of them")
    if any(not isinstance(v, int) or isinstance(v, bool) or v < 0 for v in value.values()):
        raise ValueError("needs whole, non-negative numbers of characters")
    high = value.get("max", 1_000_000)
    low = value.get("min", high // 5 if "max" in value else 0)
    if low > high:
        raise ValueError(f"has min {low} above max {high}")
    return {"min": low, "max": high}


def _pattern(value: Any) -> str:
    """A regular expression that compiles, or `ValueError`."""
    try:
        re.compile(text_value(value))
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return value


def _phone_value(value: Any) -> str:
    """``any``, or the number that must occur, or `ValueError`."""
    if value in (True, "any"):
        return "any"
    if isinstance(value, str) and len(_digits(value)) >= 7:
        return value
    raise ValueError("needs 'any' or a phone number of at least 7 digits")


def _language(value: Any) -> str:
    """An ISO 639-1 code such as ``de`` or ``zh-cn``, or `ValueError`."""
    if value is False:  # YAML 1.1 reads a bare `no` (Norwegian) as false
        value = "no"
    if not isinstance(value, str) or value.lower() not in LANGUAGES.split():
        raise ValueError(f"needs a code that langdetect knows, such as de or zh-cn: {LANGUAGES}")
    return value.lower()


def is_word(character: str) -> bool:
    """A letter or digit of a script that parts words by spaces.

    Not Chinese, Japanese, Thai, or Korean with its particles.
    """
    return _WORD.match(character) is not None


def contains(text: str, needle: str) -> bool:
    """Whether `needle` occurs in `text`, ignoring case.

    Where it begins or ends with a letter or digit, it does so at a word's edge.
    """
    pattern = re.escape(needle)
    if is_word(needle[0]):
        pattern = f"(?<!{_WORD.pattern}){pattern}"
    if is_word(needle[-1]):
        pattern += f"(?!{_WORD.pattern})"
    return re.search(pattern, text, re.IGNORECASE) is not None


def starts_with(text: str, prefix: str) -> bool:
    """Whether the answer begins with `prefix` at a word's edge, ignoring case, outer blanks and wrapping."""
    start = prefix.strip().casefold()
    return any(v.startswith(start) and not _inside_word(v, len(start)) for v in _views(text, prefix))


def ends_with(text: str, suffix: str) -> bool:
    """Whether the answer ends with `suffix` at a word's edge, ignoring case, outer blanks and wrapping."""
    end = suffix.strip().casefold()
    return any(v.endswith(end) and not _inside_word(v, len(v) - len(end)) for v in _views(text, suffix))


def _views(text: str, affix: str) -> list[str]:
    """`text` as it is, and without code fence, quotes and emphasis, unless the affix is made of those."""
    views = [text.strip()]
    if affix.strip(_WRAPPING):
        views.append(_FENCE.sub("", views[0]).strip(_WRAPPING))
    return [v.casefold() for v in views]


def _inside_word(text: str, place: int) -> bool:
    """Whether the characters on both sides of `place` are letters or digits of one word."""
    return 0 < place < len(text) and is_word(text[place - 1]) and is_word(text[place])


def ends_with_cleaned(text: str, suffix: str) -> bool:
    """`ends_with` after both sides are reduced to letters, digits and basic punctuation."""
    return ends_with(_letters(text).rstrip(" .,!?"), _letters(suffix).rstrip(" .,!?"))


def _letters(text: str) -> str:
    """Letters, digits and basic punctuation only, in lower case, single spaces."""
    return " ".join(re.sub(r"[^\w\s.,!?]", " ", text.casefold()).split())


def has_phone_number(text: str, number: str) -> bool:
    """Whether the phone number occurs however it is written; ``any``: one of 7 to 15 digits."""
    if number == "any":
        numbers = [m.group() for m in _PHONE.finditer(_TIMES.sub("|", text))]
        return any(7 <= len(_digits(n)) <= 15 and not _NO_PHONE.fullmatch(n.strip("() ")) for n in numbers)
    spelled = r"[\s.\-\u2011\u2013()/]{0,3}".join(_digits(number))
    return re.search(rf"(?<!\d)(?:\+\d{{1,3}})?{spelled}(?!\d)", text) is not None


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def matches(text: str, pattern: str) -> bool:
    """Whether a regular expression occurs, ignoring case."""
    return re.search(pattern, text, re.IGNORECASE) is not None


def detect_language(text: str) -> str | None:
    """The language of `text` (ISO 639-1), the same at every call; None when there is too little to tell.

    Raises:
        UserError: without langdetect.
    """
    if sum(1 if is_word(c) else UNSPACED_WEIGHT for c in text if c.isalpha()) < MIN_LETTERS:
        return None
    try:
        import langdetect  # needed by this kind alone
    except ImportError:
        raise UserError("metric is_language needs langdetect: pip install langdetect") from None
    langdetect.DetectorFactory.seed = 0
    try:
        return langdetect.detect(text)
    except langdetect.LangDetectException:
        return None


KINDS: Registry[Kind] = Registry(
    "metric kind",
    {
        "length": Kind(lambda text, bounds: bounds["min"] <= len(text.strip()) <= bounds["max"], _bounds),
        "contains_any_string": Kind(
            lambda text, needles: any(contains(text, n) for n in needles), _text_list
        ),
        "contains_all_strings": Kind(
            lambda text, needles: all(contains(text, n) for n in needles), _text_list
        ),
        "contains_none_strings": Kind(
            lambda text, needles: not any(contains(text, n) for n in needles), _text_list
        ),
        "contains_phone_number": Kind(has_phone_number, _phone_value),
        "ends_with": Kind(ends_with, text_value),
        "ends_with_cleaned": Kind(ends_with_cleaned, _cleanable),
        "starts_with": Kind(starts_with, text_value),
        "doesnt_start_with": Kind(lambda text, prefix: not starts_with(text, prefix), text_value),
        "regex_search": Kind(matches, _pattern),
        "regex_search_false": Kind(lambda text, pattern: not matches(text, pattern), _pattern),
        "is_language": Kind(lambda text, code: detect_language(text) == code, _language),
    },
)
