"""Pieces of verbal feedback, the library of them, and the scenes that prompts about them come from.

The sentence is split as in RLVF (arXiv 2402.10893, section 4): `content` (the whole), `domain` (when it
applies) and `effect` (what changes). Each stage of the synthesis uses a different one of them.

A scene is the embedded, deterministic source of prompts about a piece: items by category, and templates for
prompts inside the domain (``in``) and for related ones outside it (``near``). ``{item}`` is an item; every
other ``{slot}`` comes from the piece, or from the scene's own `slots`, and may have several values.
"""

import hashlib
import itertools
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from c3po_bench.errors import UserError, unknown
from c3po_bench.feedback.edits import EDITS, Step, implied_edits
from c3po_bench.feedback.rules import KINDS
from c3po_bench.runtime.limits import check_yaml

LIBRARY, SCENES = (Path(__file__).with_name(name) for name in ("library", "scenes"))
ASPECTS = ("style", "content", "format", "language")
SCOPES = ("global", "regional", "local")
_ID = re.compile(r"^[a-z0-9][a-z0-9_]*$")
_SLOT = re.compile(r"\{(\w+)\}")


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
    rules: tuple[Step, ...] = ()
    rewrite: tuple[Step, ...] = ()
    scene: str | None = None
    slots: Mapping[str, Any] = field(default_factory=dict)
    leak: str = ""
    provenance: str = "c3po_bench"

    @property
    def checkable(self) -> bool:
        """Whether rules alone decide if an answer follows the feedback."""
        return bool(self.rules)

    @property
    def edits(self) -> list[Step]:
        """Its own edits, or the ones that its rules imply; empty when no rewriter can serve it."""
        return list(self.rewrite) or implied_edits(self.rules)

    def holds(self, text: str) -> bool:
        """Whether an answer satisfies every rule (an answer without a word never does)."""
        if not self.rules:
            raise ValueError(f"feedback {self.id!r} has no rules")
        return any(c.isalnum() for c in text) and all(
            KINDS[rule.kind].apply(text, rule.value) for rule in self.rules
        )

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
    parsed = {
        "rules": _steps(record, "rules", where, ("metric kind", "rule"), KINDS),
        "rewrite": _steps(record, "rewrite", where, ("edit", "edit"), EDITS),
        "slots": _slots(record.get("slots"), where),
    }
    return Feedback(**{**record, **parsed})


def _steps(
    record: Mapping[str, Any], key: str, where: str, nouns: tuple[str, str], kinds: Mapping[str, Any]
) -> tuple[Step, ...]:
    """Kinds and normal values of a list such as ``rules: [{starts_with: Hello}]``."""
    steps = record.get(key) or []
    if not isinstance(steps, list) or any(not isinstance(s, Mapping) or len(s) != 1 for s in steps):
        raise UserError(f"{where}: {key} must be a list of one-key mappings, such as - starts_with: Hello")
    parsed = []
    for kind, value in (next(iter(s.items())) for s in steps):
        if kind not in kinds:
            raise UserError(f"{where}: {unknown(nouns[0], str(kind), kinds)}")
        try:
            parsed.append(Step(kind, kinds[kind].validate(value)))
        except ValueError as error:
            raise UserError(f"{where}: {nouns[1]} {kind} {error}") from None
    return tuple(parsed)


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


def read_feedback(path: Path) -> list[Feedback]:
    """The pieces of one YAML file (a list), validated; `UserError` on anything a user can mend."""
    try:
        check_yaml(text := path.read_text(encoding="utf-8"))
        records = yaml.safe_load(text)
    except (
        OSError,
        ValueError,
        RecursionError,
        yaml.YAMLError,
    ) as error:  # ValueError: not UTF-8, or a date that is none
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if isinstance(records, dict):
        records = [records]
    if not isinstance(records, list) or not records:
        raise UserError(f"{path}: needs a list of feedback pieces")
    return [parse_feedback(record, path.name) for record in records]


def load_library(extra: Sequence[str] = ()) -> dict[str, Feedback]:
    """All pieces by id: the embedded ones, then those of the folders or files in `extra`.

    Ids must be unique.
    """
    library = dict(_embedded())
    for name in extra:
        path = Path(name).expanduser()
        for file in sorted(path.glob("*.y*ml")) if path.is_dir() else [path]:
            for feedback in read_feedback(file):
                if feedback.id in library:
                    raise UserError(
                        f"{file}: there is already a feedback piece {feedback.id!r}; give it another id"
                    )
                library[feedback.id] = feedback
    return library


@cache
def _embedded() -> tuple[tuple[str, Feedback], ...]:
    return tuple((f.id, f) for file in sorted(LIBRARY.glob("*.yaml")) for f in read_feedback(file))


def find_feedback(names: Sequence[str], extra: Sequence[str] = ()) -> list[Feedback]:
    """The named pieces; a name that is a YAML file stands for every piece in it.

    Rows are told apart by the id: of two pieces with one id, the second would be scored by the rules of both.
    """
    library, chosen = load_library(extra), []
    for name in names:
        if name.endswith((".yaml", ".yml")):
            chosen += read_feedback(Path(name).expanduser())
        elif name in library:
            chosen.append(library[name])
        else:
            raise unknown("feedback piece", name, library)
    if not chosen:
        raise UserError(
            "feedback.pieces is empty: name at least one piece, such as feedback.pieces=[ahoy_greeting]"
        )
    known: dict[str, Feedback] = {}
    for feedback in chosen:
        name = feedback.id
        if name in known and known[name].digest() == feedback.digest():
            raise UserError(f"feedback.pieces has the same piece twice, {name!r}: name it once")
        if name in known:
            raise UserError(f"feedback.pieces has two pieces with the id {name!r}: call one of them {name}_2")
        known[name] = feedback
    return chosen


@dataclass(frozen=True)
class Scene:
    """The raw material of one kind of situation."""

    name: str
    categories: dict[str, list[str]]
    inside: list[str]
    near: list[str]
    slots: dict[str, Any]


@cache
def scenes() -> dict[str, Scene]:
    """Every embedded scene by name."""
    return {
        name: Scene(name, raw["categories"], raw["in"], raw["near"], raw.get("slots", {}))
        for file in sorted(SCENES.glob("*.yaml"))
        for name, raw in yaml.safe_load(file.read_text(encoding="utf-8")).items()
    }


def scene_of(name: str | None, feedback_id: str) -> Scene:
    """The scene of that name; `UserError` when the piece has none."""
    if name is None:
        raise UserError(
            f"feedback piece {feedback_id!r} has no scene, so the template generator cannot write its prompts: "
            "set feedback.generator.kind to openai or transformers, or give the piece a scene"
        )
    return scenes()[name]


def expand(scene: Scene, scope: str, category: str, slots: Mapping[str, Any], n: int, seed: str) -> list[str]:
    """At most `n` different prompts of one category: `scope` is ``in`` or ``near``.

    The order depends on `seed` only.
    """
    templates = scene.inside if scope == "in" else scene.near
    filled = []
    for template, item in itertools.product(templates, scene.categories[category]):
        names = [s for s in dict.fromkeys(_SLOT.findall(template)) if s != "item"]
        options = [_values({**scene.slots, **slots}, s, f"scene {scene.name!r}") for s in names]
        for values in itertools.product(*options):
            filled.append(_fill(template, {"item": item, **dict(zip(names, values, strict=True))}))
    random.Random(f"{seed}/{scene.name}/{scope}/{category}").shuffle(filled)
    return list(dict.fromkeys(filled))[:n]


def _values(slots: Mapping[str, Any], name: str, where: str) -> list[str]:
    if name not in slots:
        raise UserError(f"{where}: the scene's template needs a slot {name!r}")
    value = slots[name]
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


def _fill(template: str, values: Mapping[str, str]) -> str:
    text = _SLOT.sub(lambda m: values[m.group(1)], template)
    return text[0].upper() + text[1:]
