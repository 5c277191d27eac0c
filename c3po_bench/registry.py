"""Named things that a config chooses from: one helper for backends, arms, kernels, embedders, judges, ..."""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from c3po_bench.errors import UserError, unknown

T = TypeVar("T")


class Registry(Mapping[str, Any], Generic[T]):
    """Entries by name. An entry is the thing itself, or `module:attribute`, imported when it is first needed.

    Args:
        what: what an unknown name is called in the error, such as `method.kernel.name`.
        entries: the entries that the package brings.
        also: names that a config may have besides, such as `auto`.
    """

    def __init__(self, what: str, entries: Mapping[str, T | str], also: Sequence[str] = ()) -> None:
        self.what, self._entries, self._also = what, dict(entries), also

    def __getitem__(self, name: str) -> T:
        """The entry called `name`.

        Raises:
            UserError: if there is none, with the nearest name.
        """
        self.check(name)
        return load(self._entries[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def check(self, name: str) -> None:
        """Refuse an unknown name in one line, with the nearest known one."""
        if name not in self._entries and name not in self._also:
            raise unknown(self.what, name, [*self._also, *self._entries])

    def add(self, name: str) -> Callable[[T], T]:
        """A decorator that registers what it decorates as `name`; for plugins."""

        def register(entry: T) -> T:
            self._entries[name] = entry
            return entry

        return register

    def remove(self, name: str) -> None:
        """Take an entry out again, if it is there."""
        self._entries.pop(name, None)


def import_plugins(names: Sequence[str]) -> None:
    """Import the modules of a config's `plugins`: their decorators register what they bring.

    Raises:
        UserError: if one can't be imported, with its reason.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            why = error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
            raise UserError(f"plugins: module {name!r} can't be imported ({why})") from error


def load(entry: Any) -> Any:
    """What `module:attribute` names; anything else is the thing itself."""
    if not isinstance(entry, str):
        return entry
    module, _, attribute = entry.partition(":")
    return getattr(importlib.import_module(module), attribute)


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of a method with their defaults: they are its options."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def checked_options(arm: str, function: Callable[..., Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `arm`: the defaults of its function, with `chosen` over them.

    Raises:
        UserError: for an unknown option, or a value of another type than the default's.
    """
    options = options_of(function)
    for key, value in chosen.items():
        if key not in options:
            raise unknown(f"option of arm {arm}", key, options)
        default = options[key]
        fits = (
            default is None
            or isinstance(value, type(default))
            or (isinstance(default, float) and isinstance(value, int))
        )
        if not fits or (isinstance(value, bool) and not isinstance(default, bool)):
            raise UserError(
                f"arm_options.{arm}.{key}={value!r}: {type(default).__name__} expected, like {default!r}"
            )
        options[key] = value
    return options
