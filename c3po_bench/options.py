"""Config keys that explain themselves: a default, one line of help and the bounds of a number.

Docs, tests and the check of every config read them off the schema.
"""

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, field, fields, is_dataclass
from operator import attrgetter
from typing import Any

from c3po_bench.errors import UserError

MOST = 10**9
"""The largest whole number that a key without a bound of its own takes: beyond it there is a slip of the hand."""
A_DAY = 86400.0


def option(default: Any, text: str, **bounds: float) -> Any:
    """A dataclass field with its description and `bounds` (see `check_number`) in its metadata.

    Lists and dicts are copied for each instance.
    """
    metadata = {"help": text, "bounds": bounds}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def keys(section: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """Dotted name and dataclass field of every key of a config's `section`, nested sections among them."""
    for entry in fields(section):
        yield f"{prefix}{entry.name}", entry
        if is_dataclass(value := getattr(section, entry.name)):
            yield from keys(value, f"{prefix}{entry.name}.")


def check_number(
    key: str,
    value: float | None,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
) -> None:
    """`UserError` for a number below `least`, not above `above`, above `most`, or not finite; null passes."""
    if value is None or math.isfinite(value) and least <= value <= most and value > above:
        return
    if least > -math.inf and not (math.isfinite(value) and value >= least):
        raise UserError(f"{key}={value}: must be a number of at least {least}")
    limits = [f"above {above}"] * (above > -math.inf) + [f"at most {most}"] * (most < math.inf)
    raise UserError(f"{key}={value}: must be {' and '.join(limits) or 'a number'}")


UNITS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": A_DAY}


def seconds_of(key: str, text: str | None) -> float:
    """Seconds of a time such as 90s, 10min or 2h.

    Raises:
        UserError: for anything else, with the nearest valid form.
    """
    read = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", str(text))
    number, unit = (float(read[1]), read[2].lower()) if read else (0.0, "")
    if number > 0 and unit in UNITS and math.isfinite(number):
        return number * UNITS[unit]
    near = next((u for u in ("min", "h", "s", "d") if unit and (unit[0] == u[0])), "min")
    example = f"{number:g}{near}" if number > 0 else "10min"
    raise UserError(f"{key}={text}: write a number and s, min or h, as in {key}={example}")


def check_finite(key: str, value: Any) -> None:
    """`UserError` for NaN or infinity in a key's value, in a list's parts and in an arm's options."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}={value}: must be a number, neither NaN nor infinite")
    if isinstance(value, int) and abs(value) > MOST and key != "seed":
        raise UserError(f"{key}={str(value)[:30]}: must be at most {MOST}")
    if isinstance(value, Mapping):
        for name, part in value.items():
            check_finite(f"{key}.{name}", part)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for part in value:
            check_finite(key, part)


def check_bounds(section: Any, prefix: str = "") -> None:
    """`UserError` for a number of a config's `section`, nested ones included, that is out of its bounds."""
    for key, entry in keys(section):
        if bounds := entry.metadata.get("bounds"):
            check_number(f"{prefix}{key}", attrgetter(key)(section), **bounds)
