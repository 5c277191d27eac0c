"""Config keys that explain themselves: a default and one line of help, read by `--help`, docs and tests."""

from __future__ import annotations

import copy
from dataclasses import field
from typing import Any


def option(default: Any, text: str) -> Any:
    """A dataclass field with its description in `metadata["help"]`.

    Lists and dicts are copied for each instance.
    """
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})
