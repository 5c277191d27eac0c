"""Keys and passwords, kept out of everything that is written or printed: the one masking function, and what refuses them.

Known secrets are the values of environment variables whose names say so (`OPENAI_API_KEY`, `HF_TOKEN`), and
those that were handed to `remember`. They are masked everywhere, in the records of a run, too. What only
looks like a secret is masked in messages and logs, and refused in a config, but left in what tasks ask and
models answer: that is data.
"""

import base64
import json
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

MASK = "***"
LEAST = 8
"""Letters of a secret, at least: shorter ones, such as "none", are no keys, and would be found in words."""
SECRET_NAMES = re.compile(
    r"(?i)(?:^|_)(?:key|apikey|token|secret|password|passwd|pwd|credentials?|auth)(?:$|_)"
)
LOOKS = re.compile(
    r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{12,}|\bhf_[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bAIza[A-Za-z0-9_-]{30,}|\bglpat-[\w-]{16,}"
    r"|(?<![\w-])eyJ[\w-]{10,4000}\.[\w-]{10,4000}\.[\w-]{10,}"
)
"""Keys of well-known services, and JSON web tokens."""
USERINFO = re.compile(r"(?<=://)[^\s/?#@'\"]+(?=@)")
PARAMETER = re.compile(
    r"(?i)([?&;](?:[\w-]*[_-])?(?:api-?key|key|token|secret|sig|signature|password|passwd|pwd|auth|code)=)[^\s&#'\"]+"
)
HEADER = re.compile(r"(?i)\b((?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_remembered: set[str] = set()


def remember(secret: str) -> None:
    """Mask this value from now on, too: a key that a variable of another name held."""
    if _is_secret(secret):
        _remembered.add(secret.strip())


def secrets() -> frozenset[str]:
    """The secrets that are known now."""
    named = (value.strip() for name, value in os.environ.items() if _names_secret(name))
    return frozenset(value for value in named if _is_secret(value)) | frozenset(_remembered)


@lru_cache(1000)  # asked of every variable for every text
def _names_secret(name: str) -> bool:
    return bool(SECRET_NAMES.search(name))


def _is_secret(value: str) -> bool:
    """Whether a value may be a secret: no word, number, path or address, which other texts may hold."""
    value = value.strip()
    plain = value.isalpha() or value.isdigit() or value.startswith(("/", "~", "./")) or "://" in value
    return len(value) >= LEAST and not plain


@lru_cache(8)
def _pattern(known: frozenset[str]) -> re.Pattern[str] | None:
    """Finds each secret as it is, within JSON, in a URL, and in base64, alone or behind a user's name."""
    forms: set[str] = set()
    for secret in known:
        forms |= {secret, json.dumps(secret)[1:-1], urllib.parse.quote(secret, safe="")}
        forms.add(base64.b64encode(secret.encode()).decode().rstrip("="))
    return re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True)))) if forms else None


def without_secrets(text: str) -> str:
    """A text in which known secrets are masked, and nothing else: for records of what was asked and answered."""
    return _without(secrets(), text)


def masked(text: str) -> str:
    """A text in which known secrets are masked, and what looks like one: for messages, logs and settings."""
    return _without_lookalikes(without_secrets(text))


def _without(known: frozenset[str], text: str) -> str:
    pattern = _pattern(known)
    return pattern.sub(MASK, text) if pattern else text


def _without_lookalikes(text: str) -> str:
    text = LOOKS.sub(MASK, USERINFO.sub(MASK, text))
    return HEADER.sub(rf"\1{MASK}", PARAMETER.sub(rf"\1{MASK}", text))


def clean(values: Any) -> Any:
    """Nested values with every text in them `masked`."""
    if isinstance(values, Mapping):
        return {clean(name): clean(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [clean(value) for value in values]
    return masked(values) if isinstance(values, str) else values


def holding_secrets(values: Any) -> Iterable[tuple[str, str]]:
    """Dotted names of the texts in nested `values` that hold a secret or what looks like one, with why.

    A key `api_key_env` holds one where it is no variable's name.
    """
    return _holding(values, "", secrets())


def _holding(values: Any, name: str, known: frozenset[str]) -> Iterable[tuple[str, str]]:
    if hasattr(values, "__dict__"):  # a section of a config
        values = vars(values)
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _holding(key, f"a name in {name}" if name else "a name", known)
            yield from _holding(value, f"{name}.{key}" if name else str(key), known)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _holding(value, name, known)
    elif isinstance(values, str):
        if name.endswith("api_key_env") and not _is_variable(values):
            yield (
                name,
                "wants the name of the environment variable that holds the key, such as OPENAI_API_KEY",
            )
        elif _without(known, values) != values:
            yield name, "holds a key of the environment"
        elif _without_lookalikes(values) != values:
            yield name, "holds what looks like a key or a password"


def _is_variable(text: str) -> bool:
    """Whether a text is the name of a variable, not a key that happens to be made of letters and digits."""
    keylike = len(text) >= 20 and "_" not in text.strip("_") and any(map(str.isdigit, text))
    return bool(VARIABLE.fullmatch(text)) and not keylike and not LOOKS.search(text) and text not in secrets()
