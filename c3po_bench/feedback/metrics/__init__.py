"""The metric kinds: what a rule of a feedback piece may check in an answer.

A kind is a `Kind`: `check(text, value) -> bool` and `validate(value)`, which returns the value in its normal
form or raises `ValueError`. A new kind is one file here and one line of `KINDS`. The twelve names are those
of the RLVF paper's code (arXiv 2402.10893), done with word boundaries, bounded lengths and seeded language
detection.
"""

from __future__ import annotations

from c3po_bench.feedback.metrics import affixes, language, length, patterns, strings
from c3po_bench.feedback.metrics.kind import Kind

KINDS: dict[str, Kind] = {
    "length": length.LENGTH,
    "contains_any_string": strings.ANY,
    "contains_all_strings": strings.ALL,
    "contains_none_strings": strings.NONE,
    "contains_phone_number": patterns.PHONE,
    "ends_with": affixes.ENDS,
    "ends_with_cleaned": affixes.ENDS_CLEANED,
    "starts_with": affixes.STARTS,
    "doesnt_start_with": affixes.DOES_NOT_START,
    "regex_search": patterns.FOUND,
    "regex_search_false": patterns.NOT_FOUND,
    "is_language": language.LANGUAGE,
}

__all__ = ["KINDS", "Kind"]
