"""Who may import whom: data moves in one direction, so imports do, too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "c3po_bench"
LEVELS = (
    ("masking",),
    ("__init__", "errors"),
    ("config",),  # dataclasses: each room's options are a file of their own, which knows no other room
    ("contract", "registry", "explain"),
    ("runtime",),
    ("store",),
    ("models",),
    ("tasks",),
    ("rewiring", "feedback", "analysis"),
    ("report", "tracking"),
    ("evaluate",),
    ("launch",),
    ("perf", "makers"),
    ("ask", "cli", "compare", "doctor", "export", "headroom", "power", "publish", "sweep", "verify"),
    ("__main__",),
)
"""Rooms from the bottom up: a room imports rooms of lower levels, and itself."""
READ_STORES, MAKE_STORES = ("analysis", "report", "tracking"), ("models", "tasks", "rewiring", "feedback")
NO_TORCH = ("analysis", "tracking", "report", "store", "runtime", "launch")
HEAVY = {"torch", "transformers", "lm_eval", "trl", "peft"}
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def room_of(module: str) -> str:
    """The room of `c3po_bench.a.b`; the options of a room belong to the config."""
    parts = module.split(".")[1:] or ["__init__"]
    if parts[:2] in (["models", "makers"], ["models", "specialists"]):
        return "makers"
    return "config" if parts[-1] in ("config", "options", "checks") else parts[0]


def modules() -> dict[str, Path]:
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


MODULES = modules()


def imports(path: Path, top_level: bool = False) -> set[str]:
    """Modules that a file imports: of the package by their whole name, of libraries by their first part."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}, line {node.lineno}: give the whole name"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name if name.startswith("c3po_bench") else name.split(".")[0] for name in found}


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_rooms_below_it(module: str):
    """In functions and for type checkers, too."""
    mine = room_of(module)
    for other in sorted(name for name in imports(MODULES[module]) if name.startswith("c3po_bench")):
        theirs = room_of(other)
        assert theirs == mine or LEVEL[theirs] < LEVEL[mine], f"{module} imports {other}"
        assert mine not in READ_STORES or theirs not in MAKE_STORES, f"{module} imports {other}"


@pytest.mark.parametrize("module", [name for name in MODULES if room_of(name) in NO_TORCH])
def test_rooms_that_read_stores_import_no_torch(module: str):
    """Nor does any file that comes with them."""
    seen, waiting = set(), {module}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        found = imports(MODULES[name], top_level=True)
        assert not found & HEAVY, f"{name}, which {module} imports, imports {found & HEAVY}"
        packages = {name.rpartition(".")[0]} | {other.rpartition(".")[0] for other in found}
        waiting |= ((found | packages) & MODULES.keys()) - seen


def test_there_is_no_circle():
    assert len(MODULES) > 100
    graph = {name: {i for i in imports(path) if i in MODULES} - {name} for name, path in MODULES.items()}
    while leaves := [name for name, others in graph.items() if not others]:
        for name in leaves:
            del graph[name]
        graph = {name: others - set(leaves) for name, others in graph.items()}
    assert not graph, f"these import each other: {sorted(graph)}"
