"""What a metric kind is, and the values they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One way of checking an answer: `check(text, value)`, with `value` as `validate` returned it."""

    check: Callable[[str, Any], bool]
    validate: Callable[[Any], Any]


def text_value(value: Any) -> str:
    """A non-empty string, or `ValueError`."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("needs a non-empty text")
    return value


def text_list(value: Any) -> list[str]:
    """A non-empty list of non-empty strings (a single one is taken as a list), or `ValueError`."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values:
        raise ValueError("needs a list of texts")
    return [text_value(v) for v in values]
