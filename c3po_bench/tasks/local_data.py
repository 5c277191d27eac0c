"""Where the rows of a task come from: local JSON lines, or the hub. Both end as a dict of splits.

Local data is laid out as `ROOT/TASK/SPLIT.jsonl` (MMLU: `ROOT/mmlu/SUBJECT/SPLIT.jsonl`) with the columns of
the stock dataset. Rows are read directly, not through the `json` builder of `datasets`: no cache, no network.
"""

import gzip
import json
import logging
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import datasets

from c3po_bench.errors import UserError, nearest
from c3po_bench.models import hub
from c3po_bench.tasks.fields import is_mmlu

FORMATS = ("json", "csv", "parquet", "text")  # what `datasets` calls files that a task names itself
ENDINGS = ([".jsonl"], [".json"])
# A file that stands in for a missing one of a stock data set, with what is said about it in the notes.
STAND_INS = {
    ("Rowan/hellaswag", "train"): (
        "reference_from_validation",
        "held-out validation items (no train split here)",
    ),
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


def folder_name(task: str, config: Mapping[str, Any]) -> str:
    """The folder of a task below the data root: its name, but `mmlu/anatomy` for the stock `mmlu_anatomy`."""
    return f"mmlu/{task.removeprefix('mmlu_')}" if is_mmlu(task, config) else task


def has_local(task: str, root: Path, config: Mapping[str, Any]) -> bool:
    """Whether `root` holds any data of `task`."""
    return any((root / folder_name(task, config)).glob("*.jsonl"))


def evaluated_split(config: Mapping[str, Any]) -> str | None:
    """The split whose documents are scored."""
    return config.get("test_split") or config.get("validation_split")


def names_files(config: dict[str, Any]) -> bool:
    """Whether a task's YAML says itself in which files its rows are, as one of the user's own does."""
    return config.get("dataset_path") in FORMATS and bool(
        (config.get("dataset_kwargs") or {}).get("data_files")
    )


def localize(task: str, config: dict[str, Any], root: Path) -> tuple[dict[str, Any], list[str]]:
    """The config overrides that make `task` read from `root`, and notes on what stands in for what.

    Splits without a file are dropped, except the one that is evaluated: that is a `UserError`.
    """
    folder = root / folder_name(task, config)
    if not has_local(task, root, config):
        folders = sorted(path.name for path in root.iterdir() if path.is_dir())
        close = nearest(task, folders, 1)
        hint = f"the nearest is {close[0]!r}" if close else f"it has {', '.join(folders[:12]) or 'nothing'}"
        raise UserError(
            f"data.root={root}: no folder {folder_name(task, config)!r} with data of task {task!r}; {hint}"
        )
    evaluated = evaluated_split(config)
    files: dict[str, Path] = {}
    overrides: dict[str, Any] = {"custom_dataset": partial(read_splits, files=files), "dataset_kwargs": None}
    notes: list[str] = []
    for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if (split := config.get(key)) is None:
            continue
        path = folder / f"{split}.jsonl"
        if not path.is_file() and (name := (str(config.get("dataset_path")), split)) in STAND_INS:
            stem, what = STAND_INS[name]
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
        rows = list(read_lines(path))
        if not rows:
            raise UserError(f"{path} holds no rows")
        columns = dict.fromkeys(key for _, row in rows for key in row)
        try:
            splits[split] = datasets.Dataset.from_list([dict.fromkeys(columns) | row for _, row in rows])
        except Exception as error:
            raise UserError(_mixed(rows) or f"{path} can't be read ({_first_line(error)})") from error
    return splits


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file of JSON lines, each with the file and line to name it by.

    Raises:
        UserError: naming the file, and the line that is no JSON object or no text.
    """
    try:
        # a byte that is no UTF-8 becomes half a surrogate pair, as JSON's own escapes can
        opened: Any = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}, line {number}", _row(line, f"{path}, line {number}")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} can't be read ({getattr(error, 'strerror', None) or error})") from error


def check_lines(splits: Mapping[str, Sequence[str]]) -> None:
    """`UserError` for what is wrong with files of JSON: a bad line, and a field of two types in the files of a split.

    `datasets` names neither, and some of both it reads as something else. Files of another form are left to
    it.
    """
    for named in splits.values():
        paths = [
            Path(path) for name in named for path in ([name] if Path(name).is_file() else sorted(glob(name)))
        ]
        rows: list[tuple[str, dict[str, Any]]] = []
        for path in paths:
            if not path.is_file() or path.suffixes[-2 if path.suffix == ".gz" else -1 :][:1] not in ENDINGS:
                continue
            found = _array(path) if path.suffix == ".json" else None
            found = list(read_lines(path)) if found is None else found
            if not found and path.suffix != ".json":
                raise UserError(f"{path} holds no rows")
            known = {field for _, row in rows for field in row}
            for where, row in found if rows else ():
                if more := [field for field in row if field not in known]:
                    raise UserError(
                        f"{where}: field {more[0]!r} is in no row of the files of this split before it"
                    )
            rows += found
        if line := _mixed(rows):
            raise UserError(line)


def _array(path: Path) -> list[tuple[str, dict[str, Any]]] | None:
    """The rows of a file that is one array of JSON.

    None of one that is an object, or None where it holds lines.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    if not text.strip():
        raise UserError(f"{path} holds no rows")
    if not text.lstrip().startswith("["):
        first = next(line for line in text.splitlines() if line.strip())
        return None if _is_object(first) else []
    try:
        value = json.loads(text, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON ({error})") from error
    rows = enumerate(value, 1) if isinstance(value, list) else ()
    return [(f"{path}, row {number}", row) for number, row in rows if isinstance(row, dict)]


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} is not UTF-8: save the file in that encoding") from error
    try:
        row = json.loads(line, object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON ({error})") from error
    if not isinstance(row, dict):
        raise UserError(f"{where} is no JSON object")
    if "\\u" in line:
        for field, value in row.items():
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{where}: field {field!r} holds half a character (a lone surrogate like \\ud83d): mend or leave it out"
                ) from error
    return row


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, of which readers of JSON would take one of two fields of a name, and not all the same one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"field {next(name for name in names if names.count(name) > 1)!r} stands twice in it"
        )
    return found


def _mixed(rows: Sequence[tuple[str, dict[str, Any]]]) -> str | None:
    """The line for the first field that is of another type than in the rows before; None without one."""
    kinds: dict[str, str] = {}
    for where, row in rows:
        for field, value in _leaves(row):
            kind = _KINDS.get(type(value), type(value).__name__)
            if value is not None and (before := kinds.setdefault(field, kind)) != kind:
                return f"{where}: field {field!r} is {kind}, and {before} in the rows before"
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                return f"{where}: field {field!r} is a number beyond 64 bits: write it in quotes"
    return None


_KINDS = {
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a row and of the objects and lists in it, by dotted name."""
    for key, part in value.items():
        yield f"{prefix}{key}", part
        for each in part if isinstance(part, list) else [part]:
            if each is not part:
                yield f"{prefix}{key}[]", each
            if isinstance(each, Mapping):
                yield from _leaves(each, f"{prefix}{key}.")


def find_files(task: str, config: dict[str, Any], folder: Path | None) -> tuple[dict[str, Any], list[str]]:
    """The config overrides that make a task read the files which its YAML names, and what is to be said about it.

    A relative path is sought where the command was given, as `datasets` does, and then beside the YAML file.
    A path without a split is the train split, as for `datasets`, and is evaluated where the task has no
    other.

    Raises:
        UserError: for a file or split that there is not, with what was tried.
    """
    if not names_files(config):
        return {}, []
    named = config["dataset_kwargs"]["data_files"]
    splits = named if isinstance(named, dict) else {"train": named}
    found: dict[str, list[str]] = {}
    for split, paths in splits.items():
        listed = paths if isinstance(paths, list) else [paths]
        found[split] = [_find(task, path, folder) for path in listed]
    overrides: dict[str, Any] = {"dataset_kwargs": {**config["dataset_kwargs"], "data_files": found}}
    notes = []
    for key in ("test_split", "validation_split", "training_split", "fewshot_split"):
        if (split := config.get(key)) is None or split.partition("[")[0] in found:
            continue
        if not isinstance(named, dict) and split == evaluated_split(config):
            overrides[key] = "train"
            notes.append(
                f"{task}: its one file is evaluated, which is the train split: there is no {split!r}"
            )
            logging.getLogger(__name__).warning("%s", notes[-1])
        else:
            raise UserError(
                f"task {task}: {key} is {split!r}, and data_files has only {', '.join(map(repr, found))}"
            )
    return overrides, notes


def _find(task: str, path: Any, folder: Path | None) -> str:
    """A file that a task names, as a path from the root of the file system; an address stays as it is."""
    if not isinstance(path, str) or not path:
        raise UserError(f"task {task}: data_files wants paths of files, and has {path!r}")
    if "://" in path:
        return path
    given = Path(path).expanduser()
    tried = list(dict.fromkeys([given.absolute(), (folder or Path.cwd()) / given]))
    for candidate in tried:
        if candidate.is_file() or candidate.is_dir() or glob(str(candidate), recursive=True):
            return str(candidate)
    beside = sorted({p.name for t in tried if t.parent.is_dir() for p in t.parent.iterdir() if p.is_file()})
    close = nearest(Path(path).name, beside, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UserError(f"task {task}: there is no file {' and no '.join(map(str, tried))}{hint}")


def from_hub(task: str, config: dict[str, Any]) -> dict[str, Any]:
    """The config overrides that make a failing download, or a bad file, a one-line `UserError`."""
    kwargs = {k: v for k, v in (config.get("dataset_kwargs") or {}).items() if k != "trust_remote_code"}
    files = {}
    if names_files(config):
        files = {
            split: Path(paths[0])
            for split, paths in kwargs["data_files"].items()
            if len(paths) == 1 and Path(paths[0]).is_file()
        }
    source = partial(
        _download, task, str(config.get("dataset_path")), config.get("dataset_name"), kwargs, files=files
    )
    return {"custom_dataset": source, "dataset_kwargs": None}


def _download(
    task: str, path: str, name: str | None, kwargs: dict[str, Any], files: dict[str, Path], **_: Any
) -> Any:
    own = path in FORMATS and "data_files" in kwargs
    if own and path == "json":
        check_lines(kwargs["data_files"] if not kwargs.get("field") else {})
    if not own and not Path(path).exists():
        hub.reachable()
    try:
        with _quiet_reading() if own else nullcontext():
            return datasets.load_dataset(path=path, name=name, **kwargs)
    except Exception as error:
        logging.getLogger(__name__).debug("loading %s failed", path, exc_info=True)
        if own:
            if path == "json":  # what one split has is made of the type of another one's
                check_lines({"all": [each for listed in kwargs["data_files"].values() for each in listed]})
            raise UserError(_bad_file(task, path, kwargs["data_files"], error)) from error
        if Path(path).expanduser().is_absolute() or path.startswith((".", "~")):
            missing = "there is no such folder or file" if not Path(path).expanduser().exists() else ""
            raise UserError(f"task {task}: dataset_path={path}: {missing or _first_line(error)}") from error
        raise UserError(
            f"no data for task {task!r}: give local copies with data.root=DIR, or connect to the hub "
            f"({path}: {_first_line(error)})"
        ) from error


def _bad_file(task: str, kind: str, named: Mapping[str, list[str]], error: BaseException) -> str:
    """The line for files of a task's own that can't be read."""
    paths = [path for listed in named.values() for path in listed]
    while error.__cause__ is not None:
        error = error.__cause__
    if re.search(r"corresponds to no data|BatchSize must be greater|No columns to parse", str(error)):
        return f"task {task}: {', '.join(paths)} holds no rows"
    return f"task {task}: {', '.join(paths)} can't be read as {kind} ({_first_line(error)})"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no details'])[0][:120]}"


@contextmanager
def _quiet_reading() -> Iterator[None]:
    """Without progress bars, and without the words of `datasets` for a bad file: ours name its line."""
    logger = logging.getLogger("datasets")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
