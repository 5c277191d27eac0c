"""Finds lm-eval tasks by name without indexing all of them (a full `TaskManager()` takes 12 seconds).

A known task is read from its one folder; an unknown one is searched for by its name in the text of lm-eval's
YAML files (well under a second), so that a misspelt name is refused at once.
"""

import logging
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval
import yaml
from lm_eval.tasks._index import Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from c3po_bench.errors import UserError, check_name, unknown
from c3po_bench.runtime.limits import check_yaml

OWN = Path(__file__).parent

# Our own tasks: each has a folder of its name beside this file. A new task is one YAML file and one name here.
OWN_TASKS = ("facts", "planted", "qasc", "skills")

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
_GROUP_PREFIXES = ("facts", "mmlu", "planted", "skills")
_INCLUDED = re.compile(r"(?m)^include:\s*[\"']?([^\s\"'#]+)")
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


def stock_root() -> Path:
    """lm-eval's own tasks folder."""
    return Path(lm_eval.__file__).parent / "tasks"


@cache
def _stock_yamls() -> list[Path]:
    return sorted(stock_root().rglob("*.yaml"))


def folder_of(name: str) -> Path | None:
    """The folder whose YAML files define a task, group or tag, or None if the tables do not know it."""
    for candidate in (name, *(p for p in _GROUP_PREFIXES if name.startswith(f"{p}_"))):
        if candidate in OWN_TASKS:
            return OWN / candidate
        if candidate in STOCK_FOLDERS:
            return stock_root() / STOCK_FOLDERS[candidate]
    return None


def _check_size(path: Path, above: tuple[Path, ...] = ()) -> None:
    """Refuse a file whose aliases stand for more than anybody would write; what else is wrong with it lm-eval says.

    The files that it includes, wherever they stand, are looked at, too. `above` are those that include it.
    """
    with suppress(OSError, yaml.YAMLError):
        text = path.expanduser().read_text(encoding="utf-8")
        try:
            check_yaml(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} can't be read as YAML: {error}") from error
        for name in _INCLUDED.findall(text):
            if (included := path.parent / name) not in (*above, path):
                _check_size(included, (*above, path))


class Catalog:
    """The tasks of a few folders. `folders` grows as names are asked for."""

    def __init__(self) -> None:
        """Start empty."""
        self.folders: list[Path] = []
        self._index: dict[str, Any] = {}
        self._files: dict[str, Path] = {}
        self._open: list[str] = []

    def folder_of(self, task: str) -> Path | None:
        """The folder of the YAML file that a leaf task came from; None for one that came from none."""
        file = self._files.get(task)
        return None if file is None else Path(file).parent

    def _read(self, folder: Path) -> None:
        if folder not in self.folders:
            if not folder.is_relative_to(stock_root()) and not folder.is_relative_to(OWN):
                for path in sorted(folder.rglob("*.y*ml")):
                    _check_size(path)
            self.folders.append(folder)
            self._index = {**TaskIndex.build([folder]), **self._index}

    def _search(self, name: str) -> None:
        """Read the folder of the first YAML file that defines `name`, if there is one."""
        for path in _stock_yamls():
            if name.encode() not in path.read_bytes():
                continue
            try:
                entry = TaskIndex.entry_from_path(path)
            except Exception as error:  # a broken stock file must not stop the search
                logging.getLogger(__name__).debug("skipped %s: %s", path, error)
                continue
            if entry and entry.name == name:
                return self._read(path.parent)

    def _entry(self, name: str) -> Any:
        """lm-eval's index entry of a task, group, tag or YAML file."""
        if name.endswith((".yaml", ".yml")):
            _check_size(Path(name))
            if (entry := TaskIndex.entry_from_path(Path(name))) is None:
                raise UserError(f"no task file {name!r}: give a YAML file with a `task:` or `group:` key")
            self._read(Path(name).expanduser().resolve().parent)
            return entry
        if name not in self._index and (folder := folder_of(name)) is not None:
            self._read(folder)
        if name not in self._index:
            self._search(name)
        if name not in self._index:
            raise unknown("task", name, [*known_names(), *self._index])
        return self._index[name]

    def expand(self, name: str, overrides: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
        """The whole configs of the leaf tasks behind a task, group, tag or YAML file, by task name.

        Raises `UserError` with the nearest names when there is no such task.
        """
        if name in self._open:
            raise UserError(f"group {name!r} holds itself: {' > '.join([*self._open, name])}")
        self._open.append(name)
        try:
            return self._leaves(name, overrides or {})
        finally:
            self._open.pop()

    def _leaves(self, name: str, overrides: dict[str, Any]) -> dict[str, dict[str, Any]]:
        entry = self._entry(name)
        if entry.kind is Kind.TAG:
            leaves: dict[str, dict[str, Any]] = {}
            for member in sorted(entry.tags):
                leaves |= self.expand(member, overrides)
            return leaves
        config = load_yaml(entry.yaml_path, resolve_func=True)
        if entry.kind is Kind.GROUP:
            return self._expand_group(config, overrides)
        config |= overrides
        if not isinstance(config.get("task"), str):
            raise UserError(
                f"{entry.yaml_path}: task: {config.get('task')!r} is no name: write names that look like numbers in quotes"
            )
        check_name(f"{entry.yaml_path}: task", config["task"])
        self._files[config["task"]] = entry.yaml_path
        return {config["task"]: {k: v for k, v in config.items() if k not in ("tag", "group", "task_list")}}

    def _expand_group(self, group: dict[str, Any], overrides: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Members of a group; its own task settings yield to the caller's, as lm-eval merges them."""
        shared = {k: v for k, v in group.items() if k not in _GROUP_FIELDS} | overrides
        named = group.get("task") or []
        members = named if isinstance(named, list) else [named]
        leaves: dict[str, dict[str, Any]] = {}
        for member in members:
            if isinstance(member, str):
                leaves |= self.expand(member, shared)
            elif not isinstance(member, dict) or not (
                "group" in member or isinstance(member.get("task"), str)
            ):
                raise UserError(f"group {group.get('group')!r}: {member!r} is the name of no task")
            elif "group" in member:
                leaves |= self._expand_group(member, shared)
            else:
                own = {k: v for k, v in member.items() if k != "task"}
                leaves |= self.expand(member["task"], shared | own)
        return leaves
