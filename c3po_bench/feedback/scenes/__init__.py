"""Scenes: the embedded, deterministic source of prompts.

A scene has items by category, and templates for both scopes.

``categories: {name: [item, ...]}``, ``in: [template, ...]`` for prompts inside a piece's domain and ``near:
[...]`` for related prompts outside it. ``{item}`` is an item; every other ``{slot}`` comes from the piece (or
the scene's `slots`) and may have several values. `expand` walks the product in a seeded order, evenly by
category.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from c3po_bench.errors import UserError, unknown

FOLDER = Path(__file__).parent
_SLOT = re.compile(r"\{(\w+)\}")


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
    found = {}
    for file in sorted(FOLDER.glob("*.yaml")):
        for name, raw in yaml.safe_load(file.read_text(encoding="utf-8")).items():
            found[name] = Scene(name, raw["categories"], raw["in"], raw["near"], raw.get("slots", {}))
    return found


def scene_of(name: str | None, piece_id: str) -> Scene:
    """The scene of that name; `UserError` when the piece has none or an unknown one."""
    if name is None:
        raise UserError(
            f"feedback piece {piece_id!r} has no scene, so the template generator cannot write its prompts: "
            "set feedback.generator.kind to openai or transformers, or give the piece a scene"
        )
    if name not in scenes():
        raise unknown("scene", name, scenes())
    return scenes()[name]


def _values(slots: Mapping[str, Any], name: str, where: str) -> list[str]:
    if name not in slots:
        raise UserError(f"{where}: the scene's template needs a slot {name!r}")
    value = slots[name]
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


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


def _fill(template: str, values: Mapping[str, str]) -> str:
    text = _SLOT.sub(lambda m: values[m.group(1)], template)
    return text[0].upper() + text[1:]
