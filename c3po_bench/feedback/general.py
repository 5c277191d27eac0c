"""The out-of-scope prompts: the embedded general set, or a data set of the hub named by the config."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import yaml

from c3po_bench.errors import UserError


@cache
def builtin() -> tuple[str, ...]:
    """The embedded general prompts, in their written order, without duplicates."""
    families = yaml.safe_load(Path(__file__).with_name("general.yaml").read_text(encoding="utf-8"))
    prompts = [
        template.format(*(fill if isinstance(fill, list) else [fill]))
        for template, fills in families
        for fill in fills
    ]
    return tuple(dict.fromkeys(prompts))


def general_prompts(source: str, n: int, seed: int) -> list[str]:
    """`n` prompts drawn with `seed`.

    `source` is ``builtin``, a text file (a prompt a line) or ``org/name:split:column``.
    """
    pool = list(builtin()) if source == "builtin" else _load(source)
    if n > len(pool):
        raise UserError(
            f"feedback.n_out={n} asks for more prompts than {source!r} has ({len(pool)}); lower it, or name a "
            "larger set in feedback.out_of_scope"
        )
    return random.Random(f"out-of-scope/{seed}").sample(pool, n)


def _load(source: str) -> list[str]:
    path = Path(source).expanduser()
    if path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"feedback.out_of_scope={source!r} is no text file in UTF-8: {error}") from None
        return list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    name, split, column = ([*source.split(":"), "", ""])[:3]
    if not (name and split and column):
        raise UserError(
            f"feedback.out_of_scope={source!r} is neither 'builtin', a text file, nor 'org/name:split:column'"
        )
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split=split)[column]
    except Exception as error:  # the hub raises many kinds; all of them are the user's to mend
        raise UserError(f"feedback.out_of_scope={source!r} could not be read: {error}") from error
    return list(dict.fromkeys(str(row).strip() for row in rows if str(row).strip()))
