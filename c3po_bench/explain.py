"""The words of the command line as Hydra wants them, and one line for what goes wrong with them."""

import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from c3po_bench.config import KEYS, RENAMED, Config, conf_dir, register
from c3po_bench.errors import (
    OURS,
    UserError,
    cause,
    foreign_place,
    nearest,
    of_the_disk,
    our_fault,
    out_of_memory,
    refuse,
    unknown,
)
from c3po_bench.masking import masked

GROUPS_TO_ADD = ("experiment", "sweep", "task")
"""Groups of conf/ of which conf/config.yaml chooses none: Hydra wants a `+` before their choice."""
PLAIN = {
    "Config group override must be": "{}: python -m c3po_bench --help lists the groups and their options",
    "Only one of --run, --multirun, --cfg": "--cfg and --info show one composed config: leave out -m",
}
"""What Hydra says of `model=null` and of its flags, by errors of no class of its own: how they begin, and our line."""

TEXTS = ("str", "str | None", "list[str]", "<class 'str'>")
NUMBER_LIKE = re.compile(
    r"(?i)(?<![^\[,])(?:[+-]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)(?:e[+-]?[0-9_]+)?|[+-]?(?:inf|nan)|true|false)(?![^\],])"
)
"""A whole value, or element of a list, that Hydra's grammar takes for a number or a truth value."""

ASSIGNED = r"""'?(?:\+\+)?([^\s=']+)=((?:"[^"]*"|[^\s'"])+)"""
"""Key and value of an override that a message of Hydra's quotes."""


def hydra_overrides(words: Sequence[str]) -> list[str]:
    """The words as Hydra wants them: a group without a default is added, and so is an option of an arm.

    `experiment=NAME` becomes `+experiment=NAME`, and `arm_options.NAME.OPTION=value` gets `++` before it. The
    order is kept, since a later override wins. A null default in conf/config.yaml would not do instead: the
    form with `+` would be refused, and a choice would be composed in the place of its default, not in its
    own.
    """
    added = tuple(f"{group}=" for group in GROUPS_TO_ADD)
    marks = (("+", added), ("++", ("arm_options.",)))
    marked = [next((mark for mark, starts in marks if word.startswith(starts)), "") + word for word in words]
    return [as_typed(word) for word in marked]


def as_typed(word: str) -> str:
    """`key=value` with quotes around what looks like a number or truth value where the key is a text or a list of texts.

    Hydra would read `name=2024_01` as 202401, and `model.revision=12e4567` as infinity.
    """
    key, equals, value = word.partition("=")
    plain = key.lstrip("+~")
    kind = str(KEYS[plain].type) if plain in KEYS else ""
    if not equals or kind not in TEXTS or re.search(r"""["'(){}$\\]""", value):
        return word
    return key + equals + NUMBER_LIKE.sub(r'"\g<0>"', value)


def status_of(error: BaseException) -> int:
    """The exit status that an error ends a command with, after a line on standard error.

    Where it is our fault the line stands below the traceback. A cell's failure in a submitted job is in its
    log and its state already.
    """
    if line := explain(error):
        return refuse(line)
    if not type(error).__module__.startswith("submitit"):
        sys.stderr.write(masked(traceback.format_exc() + our_fault(error)))
    return OURS


def explain(error: BaseException) -> str | None:
    """The line for an error that the user can mend, found anywhere in its chain of causes.

    None for any other.
    """
    if not isinstance(error, UserError | HydraException | OmegaConfBaseException):
        lines = (line.format(error) for start, line in PLAIN.items() if str(error).startswith(start))
        return (
            of_the_disk(error)
            or of_memory(error)
            or next(lines, None)
            or (cause(error) if foreign_place(error) else None)
        )
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) and before not in chain:
        chain.append(before)
    for link in chain:
        if isinstance(link, UserError):
            return str(link)
        if isinstance(link, OverrideParseException):
            return unreadable(link.override)
        if isinstance(link, MissingConfigException) and link.missing_cfg_file and link.options is not None:
            group, _, name = str(link.missing_cfg_file).rpartition("/")
            choices = [option for option in link.options if not option.startswith("_")]
            return renamed(f"{group}={name}") or str(unknown(group or "config", name, choices))
    texts = [str(link) for link in chain]
    for text in texts:
        full = re.search(r"full_key: (\S+)", text)
        if key := re.search(r"Key '([^']+)' (?:not in|is not in struct)", text):
            return unknown_key(full[1] if full else key[1])
        assigned = re.search(f"(?:merging override|Ambiguous value for argument) {ASSIGNED}", text)
        if assigned and (text.startswith("Ambiguous") or "is not a ListConfig" in " ".join(texts)):
            return one_or_many(assigned[1], assigned[2])
        if re.search(r"could not be converted|is not a subclass|Invalid type", text):
            return f"{full[1] + ': ' if full else ''}{text.splitlines()[0]}"
    merging = re.match(r"Error merging override \+*(\S+)", texts[0])
    if merging and len(chain) > 1:
        why = texts[1].splitlines()[0]
        return f"{merging[1]}: {'must have a value' if 'is not Optional' in why else why}"
    return texts[0].split("\n\n")[0]


def of_memory(error: BaseException) -> str | None:
    """The line for memory that does not suffice; None for any other error."""
    if not out_of_memory(error):
        return None
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"memory does not suffice ({reason}): use a smaller model or batch_size, model.dtype=bfloat16, or a larger machine"


def unreadable(word: str) -> str:
    """A word of the command line that Hydra's grammar does not take."""
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word!r} is no key=value: python -m c3po_bench --help says what there is"
    quoted = _in_quotes(value) if value.startswith("[") else f'"{value}"'
    return f"{word} can't be read: lists are [a,b]; for signs like = ~ ( in a value write '{key}={quoted}'"


def _in_quotes(value: str) -> str:
    """A list whose elements are in quotes: with quotes around the list it would be one text."""
    parts = value.strip("\"'").removeprefix("[").removesuffix("]").split(",")
    return "[" + ",".join('"' + part.strip(" \"'") + '"' for part in parts) + "]"


def one_or_many(key: str, value: str) -> str:
    """A value without brackets where a list is wanted, or with commas that Hydra cannot read either way."""
    if key in KEYS and str(KEYS[key].type).startswith("list"):
        plain = re.fullmatch(r"[\w./,@:-]+", value, re.ASCII)
        return f"{key} wants a list: " + (f"{key}=[{value}]" if plain else f"'{key}={_in_quotes(value)}'")
    value = value.replace('"', "")
    return (
        f"{key}={value} is several values, for -m to run one by one; as one value write '{key}=\"{value}\"'"
    )


def unknown_flag(words: Sequence[str]) -> str | None:
    """The line for the first dashed word that Hydra does not know, for which it would print its usage.

    None without one.
    """
    flags = [
        word for word in words if re.match("--experiment(=|$)", word)
    ]  # to argparse: --experimental-rerun
    if not flags:
        left = get_args_parser().parse_known_args(list(words))[1]
        flags = [word for word in left if word.startswith("-")]
    if not flags:
        return None
    flag, _, value = flags[0].partition("=")
    key, after = flag.lstrip("-").replace("-", "_"), words[words.index(flags[0]) + 1 :]
    if not value and after and not re.match("-|.*=", after[0]):
        value = after[0]
    if key in KEYS or key in GROUPS_TO_ADD:
        return f"{flags[0]}: write {key}={value or ('VALUE' if key in KEYS else 'NAME')}"
    return f"{flags[0]}: keys are set by key=value, without dashes; {unknown_key(key)}"


def composed(words: Sequence[str]) -> Config:
    """The typed config of an experiment, composed of overrides as `python -m c3po_bench` composes it.

    Raises:
        UserError: for a key that only `+` or `++` could add.
    """
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir()), job_name="c3po_bench"):
        cfg = compose("config", overrides=hydra_overrides(words))
    refuse_extra_keys(cast("dict[str, Any]", OmegaConf.to_container(cfg)))
    return cast("Config", OmegaConf.to_object(cfg))


def refuse_extra_keys(cfg: Mapping[str, Any], prefix: str = "") -> None:
    """`UserError` for a key that the schema does not have, as `+` or `++` adds them.

    Options of single arms are free.
    """
    for key, value in cfg.items():
        if (path := f"{prefix}{key}") not in KEYS:
            raise UserError(unknown_key(path))
        if isinstance(value, dict) and not str(KEYS[path].type).startswith("dict"):
            refuse_extra_keys(value, f"{path}.")


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
    key = name.rpartition(".")[2]
    leaves = {path.rpartition(".")[2]: path for path in KEYS}
    close = [path for path in KEYS if path.rpartition(".")[2] == key][:3]
    close = close or nearest(name, KEYS) or [leaves[leaf] for leaf in nearest(key, leaves)]
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see python -m c3po_bench --cfg job"
    return f"unknown key {name!r}: {hint}"
