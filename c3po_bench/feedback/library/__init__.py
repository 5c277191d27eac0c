"""The library of feedback pieces: YAML files beside this one, and a user's own folders or files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml

from c3po_bench.errors import UserError, unknown
from c3po_bench.feedback.records import Feedback, parse_feedback

BUILTIN = Path(__file__).parent


def read_pieces(path: Path) -> list[Feedback]:
    """The pieces of one YAML file (a list), validated; `UserError` on anything a user can mend."""
    try:
        records = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or a date that is none
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
    pieces = dict(_builtin())
    for name in extra:
        path = Path(name).expanduser()
        files = sorted(path.glob("*.y*ml")) if path.is_dir() else [path]
        for file in files:
            for piece in read_pieces(file):
                if piece.id in pieces:
                    raise UserError(
                        f"{file}: there is already a feedback piece {piece.id!r}; give it another id"
                    )
                pieces[piece.id] = piece
    return pieces


@cache
def _builtin() -> tuple[tuple[str, Feedback], ...]:
    pieces = [piece for file in sorted(BUILTIN.glob("*.yaml")) for piece in read_pieces(file)]
    return tuple((piece.id, piece) for piece in pieces)


def find(names: Sequence[str], extra: Sequence[str] = ()) -> list[Feedback]:
    """The named pieces; a name that is a YAML file stands for every piece in it."""
    pieces, found = load_library(extra), []
    for name in names:
        if name.endswith((".yaml", ".yml")):
            found += read_pieces(Path(name).expanduser())
        elif name in pieces:
            found.append(pieces[name])
        else:
            raise unknown("feedback piece", name, pieces)
    if not found:
        raise UserError(
            "feedback.pieces is empty: name at least one piece, such as feedback.pieces=[ahoy_greeting]"
        )
    _check_ids(found)
    return found


def _check_ids(pieces: Sequence[Feedback]) -> None:
    """Rows are told apart by the id.

    Of two pieces with one id, the second would be scored by the rules of both.
    """
    known: dict[str, Feedback] = {}
    for piece in pieces:
        if piece.id in known and known[piece.id].digest() == piece.digest():
            raise UserError(f"feedback.pieces has the same piece twice, {piece.id!r}: name it once")
        if piece.id in known:
            raise UserError(
                f"feedback.pieces has two pieces with the id {piece.id!r}: call one of them {piece.id}_2"
            )
        known[piece.id] = piece
