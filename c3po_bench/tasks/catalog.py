"""Finds lm-eval tasks by name without indexing all of them (a full `TaskManager()` takes 12 seconds).

A known task is read from its one folder; an unknown one is searched for by its name in the text of lm-eval's
YAML files (well under a second), so that a misspelt name is refused at once.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

from c3po_bench import errors

OWN = Path(__file__).parent

# Our own tasks: each has a folder of its name beside this file. A new task is one YAML file and one name here.
OWN_TASKS = ("facts", "planted", "qasc")

# Stock tasks: name -> folder below lm_eval/tasks. `NAME_*` stands for the members of a group.
STOCK_FOLDERS = {
    "ai2_arc": "arc",
    "arc_challenge": "arc",
    "arc_easy": "arc",
    "boolq": "super_glue/boolq",
    "cb": "super_glue/cb",
    "commonsense_qa": "commonsense_qa",
    "copa": "super_glue/copa",
    "gsm8k": "gsm8k",
    "hellaswag": "hellaswag",
    "lambada_openai": "lambada",
    "logiqa": "logiqa",
    "mmlu": "mmlu/default",
    "openbookqa": "openbookqa",
    "piqa": "piqa",
    "race": "race",
    "sciq": "sciq",
    "sglue_rte": "super_glue/rte",
    "social_iqa": "siqa",
    "swag": "swag",
    "truthfulqa_mc1": "truthfulqa",
    "truthfulqa_mc2": "truthfulqa",
    "wic": "super_glue/wic",
    "winogrande": "winogrande",
    "wsc": "super_glue/wsc",
    "wsc273": "wsc273",
}
_GROUP_PREFIXES = ("facts", "mmlu")
_GROUP_FIELDS = {
    "group",
    "group_alias",
    "task",
    "aggregate_metric_list",
    "metadata",
    "tag",
    "task_list",
    "include",
}


def known_names() -> list[str]:
    """The names of the tables above, for hints."""
    return sorted([*OWN_TASKS, *STOCK_FOLDERS])


@cache
def stock_root() -> Path:
    """lm-eval's own tasks folder, found without importing lm-eval."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise errors.UserError("lm_eval is not installed: pip install lm_eval==0.4.13")
    return Path(spec.origin).parent / "tasks"


@cache
def _stock_yamls() -> tuple[Path, ...]:
    found: list[Path] = []
    for folder, _, files in os.walk(stock_root()):
        found += [Path(folder, file) for file in files if file.endswith(".yaml")]
    return tuple(sorted(found))


def folder_of(name: str) -> Path | None:
    """The folder whose YAML files define a task, group or tag, or None if the tables do not know it."""
    for candidate in (name, *(p for p in _GROUP_PREFIXES if name.startswith(f"{p}_"))):
        if candidate in OWN_TASKS:
            return OWN / candidate
        if candidate in STOCK_FOLDERS:
            return stock_root() / STOCK_FOLDERS[candidate]
    return None


class Catalog:
    """The tasks of a few folders. `folders` grows as names are asked for."""

    def __init__(self) -> None:
        """Start empty."""
        self.folders: list[Path] = []
        self._index: dict[str, Any] = {}

    def _read(self, folder: Path) -> None:
        from lm_eval.tasks._index import TaskIndex

        if folder not in self.folders:
            self.folders.append(folder)
            self._index = {**TaskIndex.build([folder]), **self._index}

    def _search(self, name: str) -> None:
        """Read the folder of the first YAML file that defines `name`, if there is one."""
        from lm_eval.tasks._index import TaskIndex

        wanted = name.encode()
        for path in _stock_yamls():
            if wanted not in path.read_bytes():
                continue
            entry = None
            try:
                entry = TaskIndex.entry_from_path(path)
            except Exception as error:  # a broken stock file must not stop the search
                logging.getLogger(__name__).debug("skipped %s: %s", path, error)
            if entry and entry.name == name:
                self._read(path.parent)
                return

    def _entry(self, name: str) -> Any:
        if name not in self._index and (folder := folder_of(name)) is not None:
            self._read(folder)
        if name not in self._index:
            self._search(name)
        if name not in self._index:
            raise errors.unknown("task", name, [*known_names(), *self._index])
        return self._index[name]

    def expand(self, name: str, overrides: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
        """The whole configs of the leaf tasks behind a task, group, tag or YAML file, by task name.

        Raises `UserError` with the nearest names when there is no such task.
        """
        from lm_eval.tasks._index import Kind
        from lm_eval.tasks._yaml_loader import load_yaml

        entry = self._entry_of_file(name) if name.endswith((".yaml", ".yml")) else self._entry(name)
        if entry.kind is Kind.TAG:
            leaves: dict[str, dict[str, Any]] = {}
            for member in sorted(entry.tags):
                leaves |= self.expand(member, overrides)
            return leaves
        config = load_yaml(entry.yaml_path, resolve_func=True)
        if entry.kind is not Kind.GROUP:
            config = {**config, **(overrides or {})}
            for key in ("tag", "group", "task_list"):
                config.pop(key, None)
            return {config["task"]: {**config, "task": config["task"]}}
        return self._expand_group(config, overrides or {})

    def _entry_of_file(self, path: str) -> Any:
        from lm_eval.tasks._index import TaskIndex

        entry = TaskIndex.entry_from_path(Path(path))
        if entry is None:
            raise errors.UserError(f"no task file {path!r}: give a YAML file with a `task:` or `group:` key")
        self._read(Path(path).expanduser().resolve().parent)
        return entry

    def _expand_group(self, group: dict[str, Any], overrides: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Members of a group; its own task settings yield to the caller's, as lm-eval merges them."""
        shared = {k: v for k, v in group.items() if k not in _GROUP_FIELDS} | overrides
        members = group["task"] if isinstance(group["task"], list) else [group["task"]]
        leaves: dict[str, dict[str, Any]] = {}
        for member in members:
            if isinstance(member, str):
                leaves |= self.expand(member, shared)
            elif "group" in member:
                leaves |= self._expand_group(member, shared)
            else:
                own = {k: v for k, v in member.items() if k != "task"}
                leaves |= self.expand(member["task"], shared | own)
        return leaves
