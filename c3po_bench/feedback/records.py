"""What a piece of verbal feedback is: a sentence, when it applies, what it changes, and how to tell.

The sentence is split as in RLVF (arXiv 2402.10893, section 4): `content` (the whole), `domain` (when it
applies) and `effect` (what changes). Each stage of the synthesis uses a different one of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from c3po_bench.errors import UserError, unknown
from c3po_bench.feedback.metrics import KINDS
from c3po_bench.feedback.scenes import scenes

ASPECTS = ("style", "content", "format", "language")
SCOPES = ("global", "regional", "local")
_ID = re.compile(r"^[a-z0-9][a-z0-9_]*$")


@dataclass(frozen=True)
class Rule:
    """One check on an answer: a metric kind and its value."""

    kind: str
    value: Any

    def holds(self, text: str) -> bool:
        """Whether `text` satisfies the rule."""
        return KINDS[self.kind].check(text, self.value)


@dataclass(frozen=True)
class Edit:
    """One step of a rule rewriter: `kind` is a name in `feedback.rewrite.EDITS`."""

    kind: str
    value: Any


@dataclass(frozen=True)
class Feedback:
    """A piece of feedback. `rules` are combined by AND; without rules it needs a judge.

    `leak` says how it can leak.
    """

    id: str
    content: str
    domain: str
    effect: str
    aspect: str = "style"
    scope: str = "regional"
    rules: tuple[Rule, ...] = ()
    rewrite: tuple[Edit, ...] = ()
    scene: str | None = None
    slots: Mapping[str, Any] = field(default_factory=dict)
    leak: str = ""
    provenance: str = "c3po_bench"

    @property
    def checkable(self) -> bool:
        """Whether rules alone decide if an answer follows the feedback."""
        return bool(self.rules)

    def holds(self, text: str) -> bool:
        """Whether an answer satisfies every rule (an answer without a word never does)."""
        if not self.rules:
            raise ValueError(f"feedback {self.id!r} has no rules")
        return any(c.isalnum() for c in text) and all(rule.holds(text) for rule in self.rules)

    def digest(self) -> str:
        """A hash of everything but id and provenance: the identity that caches are keyed by."""
        record = {k: v for k, v in asdict(self).items() if k not in ("id", "provenance", "leak")}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def parse_feedback(record: Any, source: str = "feedback") -> Feedback:
    """A `Feedback` from a plain mapping.

    `UserError` names the source, the piece, the field and the valid choices.
    """
    if not isinstance(record, Mapping):
        raise UserError(f"{source}: a piece must be a mapping with id, content, domain, effect")
    where = f"{source}: piece {record.get('id', '?')!r}"
    fields = set(Feedback.__dataclass_fields__)
    for key in record:
        if key not in fields:
            raise UserError(f"{where}: {unknown('field', str(key), fields)}")
    for key in ("id", "content", "domain", "effect"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise UserError(f"{where}: {key} must be a non-empty text")
    if not _ID.match(record["id"]):
        raise UserError(f"{where}: id must be lower-case letters, digits and underscores")
    for key, choices in (("aspect", ASPECTS), ("scope", SCOPES)):
        if record.get(key, choices[0]) not in choices:
            raise UserError(f"{where}: {unknown(key, str(record[key]), choices)}")
    for key in ("leak", "provenance"):
        if not isinstance(record.get(key, ""), str):
            raise UserError(f"{where}: {key} must be a text")
    if record.get("scene") is not None and record["scene"] not in list(scenes()):
        raise UserError(f"{where}: {unknown('scene', str(record['scene']), scenes())}")
    return Feedback(
        **{
            **{k: v for k, v in record.items() if k not in ("rules", "rewrite", "slots")},
            "slots": _slots(record.get("slots"), where),
            "rules": tuple(_rule(r, where) for r in _steps(record, "rules", where)),
            "rewrite": tuple(_edit(e, where) for e in _steps(record, "rewrite", where)),
        }
    )


def _steps(record: Mapping[str, Any], key: str, where: str) -> list[tuple[str, Any]]:
    """The one-key mappings of a list such as ``rules: [{starts_with: Hello}]``."""
    steps = record.get(key) or []
    if not isinstance(steps, list) or any(not isinstance(s, Mapping) or len(s) != 1 for s in steps):
        raise UserError(f"{where}: {key} must be a list of one-key mappings, such as - starts_with: Hello")
    return [next(iter(s.items())) for s in steps]


def _slots(slots: Any, where: str) -> dict[str, Any]:
    """What fills the scene's templates: a text, or a list of texts, by name; numbers are taken as texts."""
    if not (slots is None or isinstance(slots, Mapping)):
        raise UserError(
            f"{where}: slots must be a mapping, such as {{who: my boss, others: [a friend, my bank]}}"
        )
    for name, value in (slots or {}).items():
        values = value if isinstance(value, list) else [value]
        plain = [
            isinstance(v, str | int | float) and not isinstance(v, bool) and str(v).strip() for v in values
        ]
        if not isinstance(name, str) or not plain or not all(plain):
            raise UserError(f"{where}: slot {name} must be a text or a list of texts; put it in quotes")
    return dict(slots or {})


def _rule(step: tuple[str, Any], where: str) -> Rule:
    kind, value = step
    if kind not in KINDS:
        raise UserError(f"{where}: {unknown('metric kind', str(kind), KINDS)}")
    try:
        return Rule(kind, KINDS[kind].validate(value))
    except ValueError as error:
        raise UserError(f"{where}: rule {kind} {error}") from None


def _edit(step: tuple[str, Any], where: str) -> Edit:
    from c3po_bench.feedback.rewrite import EDITS, VALUES

    kind, value = step
    if kind not in EDITS:
        raise UserError(f"{where}: {unknown('edit', str(kind), EDITS)}")
    try:
        return Edit(kind, VALUES[kind](value) if kind in VALUES else value)
    except ValueError as error:
        raise UserError(f"{where}: edit {kind} {error}") from None
