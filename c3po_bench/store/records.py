"""The one reader of a store's files: each is decoded, parsed and held to the schema of its kind.

Whatever is wrong with one ends in one line that names the file, what is wrong with it, and what to do.
Records that can be made again (trainings, tunings) are sealed with a checksum, and one that does not hold
counts as not there.
"""

import json
import logging
import types
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

import yaml

from c3po_bench.errors import DamagedFile, UserError
from c3po_bench.masking import without_secrets
from c3po_bench.runtime.limits import check_yaml
from c3po_bench.store.files import write_json

log = logging.getLogger("c3po_bench")
REMEDY = "put it back, or delete it to have it made again"


def read_json(path: Path, kind: Any = Any, remedy: str = REMEDY) -> Any:
    """What a JSON file of a store holds.

    Args:
        path: of the file.
        kind: what it must be: a type, or a `TypedDict` of `store.schema`.
        remedy: what to do where it is not.

    Raises:
        UserError: where it is missing, can't be read, is not UTF-8, no JSON, or of another kind.
    """
    return _read(path, json.loads, kind, remedy)


def read_yaml(path: Path, kind: Any = Any, remedy: str = REMEDY) -> Any:
    """The same of a YAML file."""

    def parse(text: str) -> Any:
        check_yaml(text)
        return yaml.safe_load(text)

    return _read(path, parse, kind, remedy)


def _read(path: Path, parse: Callable[[str], Any], kind: Any, remedy: str) -> Any:
    try:
        text = path.read_bytes().decode("utf-8")
        if not text.strip():
            raise ValueError("it is empty")
        data = parse(text)
        if why := mismatch(data, kind):
            raise ValueError(why)
    except FileNotFoundError as error:
        raise DamagedFile(f"{path} is missing: {remedy}") from error
    except OSError as error:
        raise DamagedFile(f"{path} can't be read ({error.strerror}): {remedy}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise DamagedFile(f"{path} is damaged ({why}): {remedy}") from error
    return data


def mismatch(value: Any, kind: Any, at: str = "") -> str:
    """What keeps `value` from being of `kind`, with the place inside it; empty where nothing does."""
    kind = get_args(kind)[0] if get_origin(kind) is NotRequired else kind
    if kind is Any:
        return ""
    if get_origin(kind) in (Union, types.UnionType):
        reasons = [mismatch(value, option, at) for option in get_args(kind)]
        return "" if "" in reasons else reasons[0]
    name, parts = at or "it", get_args(kind)
    if is_typeddict(kind):
        if not isinstance(value, dict):
            return f"{name} is {_kind(value)}, not an object"
        for key, hint in _hints(kind).items():
            if key not in value:
                if key in kind.__required_keys__:
                    return f"{at and at + '.'}{key} is missing"
            elif why := mismatch(value[key], hint, f"{at and at + '.'}{key}"):
                return why
        return ""
    plain = get_origin(kind) or kind
    plain = type(None) if plain is None else plain
    whole = isinstance(value, float) and value.is_integer()  # 1e9
    fits = isinstance(value, plain) or (plain is float and isinstance(value, int)) or (plain is int and whole)
    if not fits or (isinstance(value, bool) and plain in (int, float)):
        return f"{name} is {_kind(value)}, not {_KINDS.get(plain, plain.__name__)}"
    inside: Any = value
    if plain is list and parts:
        return next((why for i, v in enumerate(inside) if (why := mismatch(v, parts[0], f"{at}[{i}]"))), "")
    if plain is dict and parts:
        return next(
            (why for k, v in inside.items() if (why := mismatch(v, parts[1], f"{at and at + '.'}{k}"))), ""
        )
    return ""


_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "a yes or no",
}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "null")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """The types of a `TypedDict`'s fields."""
    return get_type_hints(kind)


def write_sealed(path: Path, record: dict[str, Any]) -> None:
    """Write a record with its checksum."""
    record = json.loads(without_secrets(json.dumps(record, ensure_ascii=False)))  # as it will be read
    write_json(path, {**record, "crc": checksum(record)})


def read_sealed(path: Path, kind: Any = dict) -> dict[str, Any] | None:
    """A record that can be made again.

    None, and a warning, where it is damaged, and None where there is none.
    """
    if not path.exists():
        return None
    try:
        record = read_json(path, kind)
        if record.pop("crc", None) != checksum(record):
            raise UserError(f"{path} is damaged (its checksum does not hold)")
    except UserError as error:
        log.warning("%s: it is made anew", str(error).partition(": put it back")[0])
        return None
    return record


def checksum(data: Any) -> str:
    """CRC-32 of bytes, or of data as canonical JSON, in 8 hexadecimal digits."""
    raw = data if isinstance(data, bytes | memoryview) else json.dumps(data, sort_keys=True).encode()
    return f"{zlib.crc32(raw):08x}"


def file_checksums(folder: Path, skip: tuple[str, ...] = ()) -> dict[str, str]:
    """Checksums of the files in a folder, by name, but of those in `skip` and of hidden ones."""
    return {
        path.name: file_checksum(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in skip and not path.name.startswith(".")
    }


def file_checksum(path: Path) -> str:
    """CRC-32 of a file's bytes, and their number: a gigabyte takes about a second."""
    crc = size = 0
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            crc, size = zlib.crc32(part, crc), size + len(part)
    return f"{crc:08x}-{size}"


def bytes_checksum(data: bytes) -> str:
    """The same of bytes."""
    return f"{zlib.crc32(data):08x}-{len(data)}"


def lost_file(folder: Path, checksums: dict[str, str]) -> str | None:
    """The first of the files with these checksums that `folder` lacks, or that is not what was written."""
    for name, known in checksums.items():
        try:
            if file_checksum(folder / name) != known:
                return name
        except OSError:
            return name
    return None
