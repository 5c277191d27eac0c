"""The words of the command line as Hydra wants them, and one line for what it complains about."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import ListConfig, OmegaConf

from c3po_bench.config import RENAMED, Config
from c3po_bench.errors import UserError, nearest, unknown

GROUPS_TO_ADD = ("experiment", "sweep", "task")
"""Groups of conf/ of which conf/config.yaml chooses none: Hydra wants a `+` before their choice."""


def hydra_overrides(words: Sequence[str]) -> list[str]:
    """The words as Hydra wants them: a group without a default is added, and so is an option of an arm.

    `experiment=NAME` becomes `+experiment=NAME`, and `arm.NAME.OPTION=value` becomes `++arm.NAME.OPTION=value`.
    The order is kept, since a later override wins. A null default in conf/config.yaml would not do instead: the
    form with `+` would be refused, and a choice would be composed in the place of its default, not in its own.
    """
    added = tuple(f"{group}=" for group in GROUPS_TO_ADD)
    marks = (("+", added), ("++", ("arm.",)))
    return [next((mark for mark, starts in marks if word.startswith(starts)), "") + word for word in words]


def explain(error: BaseException) -> str:
    """The line for `error`, found anywhere in its chain of causes."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
        if isinstance(link, OverrideParseException):
            return unreadable(link.override)
        if isinstance(link, MissingConfigException) and link.missing_cfg_file and link.options is not None:
            group, _, name = str(link.missing_cfg_file).rpartition("/")
            choices = [option for option in link.options if not option.startswith("_")]
            return renamed(f"{group}={name}") or str(unknown(group or "config", name, choices))
    for link in chain:
        text = str(link)
        key = re.search(r"Key '([^']+)' (?:not in|is not in struct)", text)
        if key:
            full = re.search(r"full_key: (\S+)", text)
            return unknown_key(full[1] if full else key[1])
        assigned = re.search(
            r"(?:merging override|Ambiguous value for argument) '?([^\s=']+)=([^\s']+)", text
        )
        if assigned and (
            text.startswith("Ambiguous") or any("is not a ListConfig" in str(other) for other in chain)
        ):
            return one_or_many(*assigned.groups())
        if re.search(r"could not be converted|is not a subclass|Invalid type", text):
            full = re.search(r"full_key: (\S+)", text)
            return f"{full[1] + ': ' if full else ''}{text.splitlines()[0]}"
    merging = re.match(r"Error merging override \+*(\S+)", str(error))
    if merging and len(chain) > 1:
        why = str(chain[1]).splitlines()[0]
        return f"{merging[1]}: {'must have a value' if 'is not Optional' in why else why}"
    return str(error).split("\n\n")[0]


def unreadable(word: str) -> str:
    """A word of the command line that Hydra's grammar does not take."""
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word!r} is no key=value: python -m c3po_bench --help says what there is"
    return f"{word} can't be read: lists are [a,b]; for signs like = ~ ( in a value write '{key}=\"{value}\"'"


def unknown_flag(words: Sequence[str]) -> str | None:
    """The line for the first dashed word that Hydra does not know, for which it would print its usage.

    None without one.
    """
    from hydra._internal.utils import get_args_parser

    own = [
        word for word in words if re.match("--experiment(=|$)", word)
    ]  # argparse: short for --experimental-rerun
    flags = own or [
        word for word in get_args_parser().parse_known_args(list(words))[1] if word.startswith("-")
    ]
    if not flags:
        return None
    flag, _, value = flags[0].partition("=")
    key, after = flag.lstrip("-").replace("-", "_"), words[words.index(flags[0]) + 1 :]
    if not value and after and not re.match("-|.*=", after[0]):
        value = after[0]
    if key in GROUPS_TO_ADD:
        return f"{flags[0]}: write {key}={value or 'NAME'}"
    if key in dotted(OmegaConf.to_container(OmegaConf.structured(Config), resolve=False)):
        return f"{flags[0]}: write {key}={value or 'VALUE'}"
    return f"{flags[0]}: keys are set by key=value, without dashes; {unknown_key(key)}"


def one_or_many(key: str, value: str) -> str:
    """A value without brackets where a list is wanted, or with commas that Hydra cannot read either way."""
    key = key.removeprefix("++")
    if isinstance(OmegaConf.select(OmegaConf.structured(Config), key), ListConfig):
        return f"{key} wants a list: {key}=[{value}]"
    return (
        f"{key}={value} is several values, for -m to run one by one; as one value write '{key}=\"{value}\"'"
    )


def refuse_extra_keys(cfg: Mapping[str, Any]) -> None:
    """`UserError` for a key that the schema does not have, as `+` or `++` adds them.

    Options of single arms are free.
    """
    known = set(dotted(OmegaConf.to_container(OmegaConf.structured(Config), resolve=False)))
    for path in dotted({name: value for name, value in cfg.items() if name != "arm"}):
        if path not in known:
            raise UserError(unknown_key(path))


def renamed(name: str) -> str | None:
    """The line for a former key, one below it, or a former file of a group; None for any other name."""
    for old, new in RENAMED.items():
        if name == old or name.startswith(f"{old}."):
            return f"{name} is now {new}{name.removeprefix(old)}"
    return None


def unknown_key(name: str) -> str:
    """An unknown key, with its new name or the nearest dotted keys: those that end in it first."""
    if line := renamed(name):
        return line
    paths, key = (
        list(dotted(OmegaConf.to_container(OmegaConf.structured(Config), resolve=False))),
        name.rpartition(".")[2],
    )
    same = [path for path in paths if path.rpartition(".")[2] == key]
    if same:
        return f"unknown key {name!r}: did you mean {' or '.join(repr(p) for p in same[:3])}?"
    leaves = {path.rpartition(".")[2]: path for path in paths}
    close = nearest(name, paths) or [leaves[leaf] for leaf in nearest(key, leaves)]
    hint = (
        f"did you mean {' or '.join(repr(p) for p in close)}?"
        if close
        else "see python -m c3po_bench --cfg job"
    )
    return f"unknown key {name!r}: {hint}"


def dotted(tree: Any, prefix: str = "") -> Any:
    """Dotted paths of every key in a nested dict."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
