"""Rule rewriters: edit a model's own answer so that it follows a piece, with the smallest change.

The revised answer keeps the words of the baseline wherever the rule lets it, so a preference pair differs by
the effect and by nothing else. A new edit is one function and one line of `EDITS`.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from c3po_bench.feedback.rules import Kind


@dataclass(frozen=True)
class Step:
    """A rule (`kind` is a name in `rules.KINDS`) or an edit (in `EDITS`), with its value."""

    kind: str
    value: Any


_GREETING = re.compile(
    r"\A\W*(?:subject:[^\n]*\n+)?\W*(?:dear|hi|hello|hey|good (?:morning|afternoon|evening))\b"
    r"(?:[ \t]+(?:(?:mr|mrs|ms|dr|prof)\.|[^\s,!:.?]+)){0,6}[ \t]*(?:[,!:.]|\n|\Z)\s*",
    re.IGNORECASE,
)
_SUBJECT = re.compile(r"\A\W*subject:[^\n]*\n+", re.IGNORECASE)
_SIGN_OFF = re.compile(
    r"\n\s*(?:best|kind|warm|warmest|sincerely|yours|thanks|thank you|regards|cheers|respectfully|love|take care)"
    r"(?: [\w']+){0,3}[,.!]?[ \t]*(?:\n(?!\s*(?:[-*\u2022#>`]|\d+[.)]))[^\n.!?]{0,40}){0,4}\s*\Z",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?:\d+\.\s+)?(?:[^.!?\n]|[.!?]+(?=[^\s.!?\"')\]]))+(?:[.!?]+[\"')\]]*|(?=\n)|\Z)\s*")
_END = re.compile(r"[.!?][\"')\]]*(?=\s|\Z)|(?=\n)")
_BLOCK = re.compile(r"\s*(?:[-*\u2022]\s|\d+[.)]\s|```)")  # a line of a list, or a fence
_OPENED = re.compile(r"```[\w+-]*\n```\Z")  # a code block without code
_NUMBERED = re.compile(r"(?:\A|\n)\s*\d+\.\Z")


def whole_sentences(text: str) -> str:
    """A cut text up to its last whole sentence or line, with an open code block closed.

    All of it when there is none.
    """
    ends = _ends(text)
    kept = (text[: ends[-1]] if ends else text).rstrip()
    return kept if _closed(kept) else _OPENED.sub("", f"{kept}\n```").rstrip()


def _ends(text: str) -> list[int]:
    """Where a sentence or line ends."""
    return [m.end() for m in _END.finditer(text) if not _NUMBERED.search(text[: m.end()])]


def _closed(text: str) -> bool:
    return text.count("```") % 2 == 0


def sentences(text: str) -> list[str]:
    """The sentences and lines of `text`, trimmed, without empty ones."""
    return [s.strip() for s in _SENTENCE.findall(text) if any(c.isalnum() for c in s)]


def _opening(text: str, value: str) -> str:
    rest = _SUBJECT.sub("", _GREETING.sub("", text, count=1), count=1).lstrip()
    return f"{value}\n\n{rest}"


def _closing(text: str, value: str) -> str:
    return f"{_SIGN_OFF.sub('', text).rstrip()}\n\n{value}"


def _append(text: str, value: str) -> str:
    """Behind a list or a code block on a line of its own, so that neither is touched."""
    text = text.rstrip()
    return f"{text}\n\n{value.strip()}" if _BLOCK.match(text[text.rfind("\n") + 1 :]) else text + value


def _replace(text: str, value: list[str]) -> str:
    pattern, replacement = value
    return re.sub(pattern, replacement, text, flags=re.IGNORECASE | re.MULTILINE)


def _beginnings(text: str) -> list[str]:
    """`text` up to the end of each sentence or line, where no code block is open: lists stay lists."""
    parts = [text[: m.end()].strip() for m in _SENTENCE.finditer(text)]
    return [part for part in parts if _closed(part) and any(c.isalnum() for c in part)]


def _keep_sentences(text: str, value: int) -> str:
    return next(iter(_beginnings(text)[value - 1 :]), text)


def _characters(text: str, value: int) -> str:
    """The first whole sentences that fit into `value` characters; a sentence too long is cut at a word."""
    fitting = [part for part in _beginnings(text) if len(part) <= value]
    return fitting[-1] if fitting else text[: value - 1].rsplit(" ", 1)[0].rstrip(" ,;:") + "."


def _bullets(text: str, value: str) -> str:
    """Each sentence on its own line after the marker; ``1.`` counts.

    Code can't be told in sentences and is left alone.
    """
    if "```" in text:
        return text
    items = [re.sub(r"^(?:[-*\u2022]|\d+[.)])\s+", "", s) for s in sentences(text)]
    items = [s for s in items if any(c.isalpha() for c in s)]
    marks = (f"{i}." for i in range(1, len(items) + 1)) if value == "1." else (value for _ in items)
    return "\n".join(f"{mark} {item}" for mark, item in zip(marks, items, strict=True))


def _pair(value: Any) -> list[str]:
    if not isinstance(value, list) or len(value) != 2 or any(not isinstance(v, str) for v in value):
        raise ValueError("needs [pattern, replacement], two texts")
    try:
        re.sub(value[0], value[1], "")
    except (re.error, IndexError) as error:
        raise ValueError(f"has no regular expression and its replacement: {error}") from None
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError("needs a whole number, 1 or more")
    return value


def _direction(value: Any) -> str:
    if value not in ("lower", "upper"):
        raise ValueError(f"needs lower or upper, not {value!r}")
    return value


EDITS: dict[str, Kind] = {
    "opening": Kind(_opening),  # instead of the greeting (and subject line), on a line of its own
    "closing": Kind(_closing),  # instead of the sign-off
    "prepend": Kind(lambda text, value: value + text.lstrip()),
    "append": Kind(_append),
    "replace": Kind(_replace, _pair),
    "sentences": Kind(_keep_sentences, _number),  # how many to keep
    "characters": Kind(_characters, _number),  # at most
    "bullets": Kind(_bullets),  # the marker
    "case": Kind(lambda text, value: text.lower() if value == "lower" else text.upper(), _direction),
}
ADDING = ("closing", "append")  # edits that put something behind a cut answer's last whole sentence
CUTTING = ("sentences", "characters")  # edits that leave the beginning of an answer

_BY_RULE: dict[str, Callable[[Any], Step]] = {
    "starts_with": lambda value: Step("opening", value),
    "ends_with": lambda value: Step("closing", value),
    "ends_with_cleaned": lambda value: Step("closing", value),
    "contains_none_strings": lambda value: Step(
        "replace",
        [r"[ \t]*(?<!\w)(?:" + "|".join(re.escape(v) for v in value) + r")(?!\w)", ""],
    ),
    "contains_all_strings": lambda value: Step("append", " " + " ".join(value)),
    "contains_any_string": lambda value: Step("append", " " + value[0]),
    "length": lambda value: Step("characters", value["max"]),
}


def implied_edits(rules: Iterable[Step]) -> list[Step]:
    """The edits that rules imply; none where one of them implies none."""
    steps = list(rules)
    return [_BY_RULE[s.kind](s.value) for s in steps] if all(s.kind in _BY_RULE for s in steps) else []


def apply_edits(edits: Iterable[Step], answer: str, finished: bool) -> tuple[str, bool]:
    """The edited answer and whether it is finished.

    A cut answer stays unfinished unless an edit ends it after a sentence.
    """
    text = answer
    for edit in edits:
        if finished:
            text = EDITS[edit.kind].apply(text, edit.value)
        else:
            text, finished = _edit_cut(edit.kind, text, edit.value)
    return text.strip(), finished


def _edit_cut(kind: str, text: str, value: Any) -> tuple[str, bool]:
    """An edited answer whose end is missing.

    Finished where whole sentences of it are left, and what was put behind them.
    """
    if kind in ADDING:
        return EDITS[kind].apply(whole_sentences(text), value), bool(_ends(text))
    edited = EDITS[kind].apply(text, value)
    cut = kind in CUTTING and bool(_ends(text)) and len(edited) < len(text.strip())
    return edited, cut and whole_sentences(text).lstrip().startswith(edited)
