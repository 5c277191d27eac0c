"""Where the rows of a task come from: local JSON lines, or the hub. Both end as a dict of splits.

Local data is laid out as `ROOT/TASK/SPLIT.jsonl` (MMLU: `ROOT/mmlu/SUBJECT/SPLIT.jsonl`) with the columns of
the stock dataset. Rows are read directly, not through the `json` builder of `datasets`: no cache, no network.
"""

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import datasets
from datasets import config as datasets_config
from huggingface_hub import constants as hub

from c3po_bench.errors import UserError, nearest

FORMATS = ("json", "csv", "parquet", "text")  # what `datasets` calls files that a task names itself
# A file that stands in for a missing one, with what is said about it in the notes.
STAND_INS = {
    ("hellaswag", "train"): ("reference_from_validation", "held-out validation items (no train split here)"),
}


def check_root(root: str | Path) -> Path:
    """The folder `root`, or a `UserError` that names the nearest existing one."""
    path = Path(root).expanduser()
    if path.is_dir():
        return path
    siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    close = nearest(path.name, siblings, 1)
    hint = f"did you mean {str(path.parent / close[0])!r}?" if close else "data.root=null reads from the hub"
    raise UserError(f"data.root: there is no folder {str(root)!r}; {hint}")


def folder_name(task: str) -> str:
    """The folder of a task below the data root: its name, but `mmlu/anatomy` for `mmlu_anatomy`."""
    return f"mmlu/{task.removeprefix('mmlu_')}" if task.startswith("mmlu_") else task


def has_local(task: str, root: Path) -> bool:
    """Whether `root` holds any data of `task`."""
    return any((root / folder_name(task)).glob("*.jsonl"))


def names_files(config: dict[str, Any]) -> bool:
    """Whether a task's YAML says itself in which files its rows are, as one of the user's own does."""
    return config.get("dataset_path") in FORMATS and bool(
        (config.get("dataset_kwargs") or {}).get("data_files")
    )


def localize(task: str, config: dict[str, Any], root: Path) -> tuple[dict[str, Any], list[str]]:
    """The config overrides that make `task` read from `root`, and notes on what stands in for what.

    Splits without a file are dropped, except the one that is evaluated: that is a `UserError`.
    """
    folder = root / folder_name(task)
    if not has_local(task, root):
        folders = sorted(path.name for path in root.iterdir() if path.is_dir())
        close = nearest(task, folders, 1)
        hint = f"the nearest is {close[0]!r}" if close else f"it has {', '.join(folders[:12]) or 'nothing'}"
        raise UserError(
            f"data.root={root}: no folder {folder_name(task)!r} with data of task {task!r}; {hint}"
        )
    evaluated = config.get("test_split") or config.get("validation_split")
    files: dict[str, Path] = {}
    overrides: dict[str, Any] = {"custom_dataset": partial(read_splits, files), "dataset_kwargs": None}
    notes: list[str] = []
    for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if (split := config.get(key)) is None:
            continue
        path = folder / f"{split}.jsonl"
        if not path.is_file() and (task, split) in STAND_INS:
            stem, what = STAND_INS[task, split]
            path = folder / f"{stem}.jsonl"
            notes.append(f"{task}: {what}")
        if path.is_file():
            files[split] = path
        elif split != evaluated:
            overrides[key] = None
        else:
            present = ", ".join(sorted(file.name for file in folder.glob("*.jsonl")))
            raise UserError(
                f"data.root: {folder} lacks {path.name}, which task {task!r} evaluates; it has {present}"
            )
    return overrides, notes


def read_splits(files: dict[str, Path], **_: Any) -> dict[str, Any]:
    """Read JSON lines into a `datasets.Dataset` for each split."""
    splits = {}
    for split, path in files.items():
        with path.open(encoding="utf-8") as lines:
            rows = [
                _row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
            ]
        if not rows:
            raise UserError(f"{path} holds no rows")
        splits[split] = datasets.Dataset.from_list(rows)
    return splits


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is no JSON ({error})") from error
    if not isinstance(row, dict):
        raise UserError(f"{where} is no JSON object")
    return row


def from_hub(task: str, config: dict[str, Any]) -> dict[str, Any]:
    """The config overrides that make a failing download a one-line `UserError`."""
    kwargs = {k: v for k, v in (config.get("dataset_kwargs") or {}).items() if k != "trust_remote_code"}
    source = partial(_download, task, str(config.get("dataset_path")), config.get("dataset_name"), kwargs)
    return {"custom_dataset": source, "dataset_kwargs": None}


def _download(task: str, path: str, name: str | None, kwargs: dict[str, Any], **_: Any) -> Any:
    try:
        with _without_retries():
            return datasets.load_dataset(path=path, name=name, **kwargs)
    except Exception as error:
        logging.getLogger(__name__).debug("loading %s failed", path, exc_info=True)
        lines = str(error).strip().splitlines() or ["no details"]
        raise UserError(
            f"no data for task {task!r}: give local copies with data.root=DIR, or connect to the hub "
            f"({path}: {type(error).__name__}: {lines[0][:120]})"
        ) from error


@contextmanager
def _without_retries() -> Iterator[None]:
    """Use the cache alone when the hub cannot be reached, instead of half a minute of retries."""
    if hub.HF_HUB_OFFLINE or getproxies() or _reachable(hub.ENDPOINT):
        yield
        return
    before = hub.HF_HUB_OFFLINE, datasets_config.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = datasets_config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, datasets_config.HF_HUB_OFFLINE = before


@cache
def _reachable(endpoint: str) -> bool:
    url = urlsplit(endpoint)
    try:
        address = (url.hostname or "", url.port or (80 if url.scheme == "http" else 443))
        with socket.create_connection(address, timeout=5):
            return True
    except OSError:
        return False
