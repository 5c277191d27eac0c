"""The tables of docs/reference.md, made from the code. hook.py writes them into the page."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import Field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAPER = re.compile(r"[;,]?\s*\(?(?:the )?paper(?:'s)?: ([^();]+)\)?")
OPEN = re.compile(r"open in the paper|the paper names (?:none|no number)|not given in the paper")


def config_keys(section: Any = None, prefix: str = "") -> Iterator[tuple[str, Field[Any], Any]]:
    """(dotted key, dataclass field, default) of every key of the schema, in the order of the code."""
    from c3po_bench.config import Config

    section = Config() if section is None else section
    for entry in fields(section):
        default = getattr(section, entry.name)
        if is_dataclass(default):
            yield from config_keys(default, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", entry, default


def shown(value: Any) -> str:
    """A default as it is written on the command line."""
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return f"`[{','.join(map(str, value))}]`"
    return f"`{value}`"


def cell(text: str) -> str:
    """One line of text, safe inside a table and free of HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def key_tables() -> str:
    """One table for each top-level section: key, meaning, default, paper."""
    groups: dict[str, list[list[str]]] = {}
    for key, entry, default in config_keys():
        help_text = entry.metadata["help"]
        paper = PAPER.search(help_text)
        value = cell(paper[1]) if paper else "open" if OPEN.search(help_text) else ""
        meaning = PAPER.sub("", help_text).strip(" ,;") if paper else help_text
        if not meaning:
            meaning = entry.name.replace("n_", "number of ")
        section = key.split(".")[0] if "." in key else "top level"
        groups.setdefault(section, []).append([f"`{key}`", cell(meaning), cell(shown(default)), value])
    ordered = sorted(groups.items(), key=lambda item: item[0] != "top level")
    return "\n\n".join(
        f"### {name}\n\n" + table(["key", "meaning", "default", "paper"], rows) for name, rows in ordered
    )


def options_text(function: Any) -> str:
    """Keyword options of a method with their defaults."""
    from c3po_bench.registry import options_of

    return ", ".join(f"`{name}={value}`" for name, value in options_of(function).items()) or "none"


def first_line(thing: Any) -> str:
    """The first sentence of a docstring."""
    return cell((inspect.getdoc(thing) or "").split("\n\n")[0])


def rewiring_arms() -> str:
    """Every arm of the rewiring backend with its role and options."""
    from c3po_bench.registry import load
    from c3po_bench.rewiring.arms import ARMS

    rows = []
    for row in ARMS.values():
        shown = options_text(load(row.factory)) if row.factory else "none"
        about = row.about or first_line(load(row.factory))
        rows.append([f"`{row.name}`", row.role, cell(about), shown])
    return table(["arm", "role", "what it does", "options (`arm_options.NAME.OPTION=value`)"], rows)


def surrogate_text() -> str:
    """Each method's docstring: its formula and what its options mean."""
    from c3po_bench.registry import load
    from c3po_bench.rewiring.arms import ARMS

    found, seen = [], set()
    for row in ARMS.values():
        if row.builds != "solver" or (function := load(row.factory)) in seen:
            continue
        seen.add(function)
        module = first_line(inspect.getmodule(function)).rstrip(".")
        body, _, rest = (inspect.getdoc(function) or "").partition("Args:")
        arguments = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", rest, re.M)
        items = "\n".join(f"- `{key}`: {cell(text)}" for key, text in arguments if key != "queries")
        found.append(f"**`{row.name}`**: {module}. {cell(body)}\n\n{items}".rstrip())
    return "\n\n".join(found)


def kernels() -> str:
    """Kernels with their formulas."""
    from c3po_bench.rewiring.kernels import KERNELS

    return table(
        ["kernel", "weight"], [[f"`{name}`", first_line(function)] for name, function in KERNELS.items()]
    )


def embedders() -> str:
    """Embedders."""
    from c3po_bench.rewiring.embedders import EMBEDDERS

    return table(
        ["embedder", "what it is"],
        [[f"`{name}`", first_line(function)] for name, function in EMBEDDERS.items()],
    )


def feedback_arms() -> str:
    """Prompt variants and recipes of the feedback backend."""
    from c3po_bench.feedback.arms import PROMPT_VARIANTS
    from c3po_bench.feedback.training.recipes import OPTIONS, RECIPES

    rows = [
        [
            f"`{name}`",
            "stored answers" if variant.stored else "prompt only" if variant.wrap else "asked again",
            cell(variant.about),
        ]
        for name, variant in PROMPT_VARIANTS.items()
    ]
    for name, recipe in RECIPES.items():
        scopes = ["in scope", *(scope for scope, on in (("near", recipe.near), ("out", recipe.out)) if on)]
        what = "preference pairs" if recipe.objective == "pairs" else "revised answers"
        rows.append([f"`{name}`", f"adapter: {what}; {', '.join(scopes)}", cell(recipe.source)])
    options = ", ".join(f"`{option}`" for option in OPTIONS)
    return (
        table(["arm", "kind", "source"], rows)
        + f"\n\nOptions of adapter arms: {options}. An arm refuses one that changes nothing about it."
    )


def feedback_kinds() -> str:
    """Generators, revisers, judges and metric kinds by name."""
    from c3po_bench.feedback.generators import GENERATORS
    from c3po_bench.feedback.judges import JUDGES
    from c3po_bench.feedback.revisers import REVISERS
    from c3po_bench.feedback.rules import KINDS

    rows = [
        ["metric kinds", ", ".join(f"`{name}`" for name in KINDS)],
        ["generators", ", ".join(f"`{name}`" for name in GENERATORS)],
        ["revisers", ", ".join(f"`{name}`" for name in ["auto", *REVISERS])],
        ["judges", ", ".join(f"`{name}`" for name in ["auto", *JUDGES])],
    ]
    return table(["what", "names"], rows)


def families() -> str:
    """Families of Mixture-of-Experts models, and those that can't be covered."""
    from c3po_bench.models.families import FAMILIES, REFUSED

    rows = []
    for name, family in FAMILIES.items():
        rule, score = family.renormalises, family.score
        sums = "the config says" if callable(rule) else f"`{rule}` says" if isinstance(rule, str) else "no"
        sums = "yes" if rule is True else sums
        engines = f"`naive`: {family.naive_only}" if family.naive_only else "both"
        score = "the config says" if callable(score) else score + (" + bias" if family.bias else "")
        rows.append([f"`{name}`", f"`{family.router}`", score, sums, engines, family.since])
    heads = ["`model_type`", "router within a layer", "score", "selected weights sum to one", "engines"]
    covered = table([*heads, "transformers"], rows)
    refused = table(["not covered", "why"], [[f"`{name}`", why] for name, why in REFUSED.items()])
    return f"{covered}\n\n{refused}"


def group(folder: str) -> str:
    """Options of a conf/ group with the comment at their head."""
    rows = []
    for path in sorted((ROOT / "conf" / folder).glob("[!_]*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        comments = []
        for line in lines:
            if not line.startswith("#"):
                break
            comments.append(line.lstrip("# ").strip())
        comments = [line for line in comments if not line.startswith(("@package", "python -m"))]
        rows.append([f"`{path.stem}`", cell(" ".join(comments))])
    return table(["name", "what it is"], rows)


MAKERS: dict[str, Callable[[], str]] = {
    "keys": key_tables,
    "rewiring-arms": rewiring_arms,
    "surrogates": surrogate_text,
    "kernels": kernels,
    "embedders": embedders,
    "feedback-arms": feedback_arms,
    "feedback-kinds": feedback_kinds,
    "families": families,
    **{f"conf-{name}": partial(group, name) for name in ("experiment", "sweep", "model", "task", "method")},
}
