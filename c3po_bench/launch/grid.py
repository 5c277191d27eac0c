"""From a sweep's overrides to its cells: the same grid, in the same order, as Hydra's basic sweeper makes."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from types import SimpleNamespace
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from c3po_bench.config import Config, check_ranges, conf_dir, register
from c3po_bench.errors import UserError
from c3po_bench.explain import hydra_overrides, refuse_extra_keys
from c3po_bench.store.identity import content_hash


def _as_section(values: dict[str, Any], like: Any) -> SimpleNamespace:
    """Attributes in place of keys, in nested sections too.

    A `Config` would take as long as composing it did.
    """
    return SimpleNamespace(
        **{
            k: _as_section(v, getattr(like, k)) if is_dataclass(getattr(like, k, None)) else v
            for k, v in values.items()
        }
    )


@dataclass(frozen=True)
class Cell:
    """One point of a grid: its number, its overrides, and its resolved config (without the key `hydra`)."""

    number: int
    overrides: tuple[str, ...]
    config: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """A composed sweep. `launcher` is the launcher's config, `results_dir` the store that all cells share."""

    name: str
    overrides: tuple[str, ...]
    cells: list[Cell]
    launcher: dict[str, Any]

    @property
    def results_dir(self) -> str:
        """The store."""
        return self.cells[0].config["results_dir"]

    @property
    def folder_name(self) -> str:
        """Name and content of the grid: the same sweep has the same folder, whoever launches it."""
        return f"{self.name}-{content_hash([cell.config for cell in self.cells], 8)}"


@contextmanager
def composer() -> Iterator[Any]:
    """Hydra's config loader over our conf folder, outside of `hydra.main`."""
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="c3po_bench"):
        yield GlobalHydra.instance().config_loader()


def compose_grid(overrides: Sequence[str]) -> Grid:
    """The grid that `python -m c3po_bench -m OVERRIDES` would run.

    Raises:
        UserError, hydra.errors.HydraException, OmegaConfBaseException: for overrides that do not compose.
    """
    with composer() as loader:
        master = loader.load_configuration(
            config_name="config", overrides=hydra_overrides(overrides), run_mode=RunMode.MULTIRUN
        )
        return expand(loader, master)


def is_grid(master: DictConfig) -> bool:
    """Whether a multirun's config asks for Hydra's basic sweeper, whose cells are known beforehand."""
    return str(master.hydra.sweeper.get("_target_", "")).endswith("BasicSweeper")


def expand(loader: Any, master: DictConfig) -> Grid:
    """All cells of a master config composed for a multirun."""
    hydra = master.hydra
    if not is_grid(master):
        raise UserError(
            "only grids (hydra/sweeper=basic) can be frozen: "
            "run this sweeper through `python -m c3po_bench -m`"
        )
    words = list(hydra.overrides.task)
    parser = OverridesParser.create(config_loader=loader)
    params = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    points = BasicSweeper.split_arguments(parser.parse_overrides(params + words), None)[0]
    compose = _Composer(loader, master, parser)
    cells = [Cell(i, tuple(point), compose(point)) for i, point in enumerate(points)]
    refuse_extra_keys(cells[0].config)
    for cell in cells:
        read: Any = _as_section(cell.config, Config())
        check_ranges(read)
    stores = {cell.config["results_dir"] for cell in cells}
    if len(stores) > 1:
        raise UserError(
            f"the cells of a sweep share one store, these have {len(stores)}: set results_dir or name once"
        )
    name = (hydra.runtime.get("choices") or {}).get("sweep") or cells[0].config["name"]
    launcher: Any = OmegaConf.to_container(hydra.launcher, resolve=False)
    return Grid(str(name), tuple(words), cells, launcher)


class _Composer:
    """Composes cells. Those that choose the same group options share one composition, which takes 50 ms."""

    def __init__(self, loader: Any, master: DictConfig, parser: Any):
        self.loader, self.master, self.parser = loader, master, parser
        self.parsed: dict[str, Any] = {}
        self.bases: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, point: Sequence[str]) -> dict[str, Any]:
        for text in point:
            if text not in self.parsed:
                self.parsed[text] = self.parser.parse_overrides([text])[0]
        choices = tuple(text for text in point if not self._is_value(self.parsed[text]))
        if choices not in self.bases:
            base = self.loader.load_sweep_config(self.master, list(choices))
            with open_dict(base):
                del base["hydra"]
            self.bases[choices] = base
        config = self.bases[choices]  # not copied: all points of a grid set the same keys
        for override in (self.parsed[text] for text in point if text not in choices):
            value = override.value()
            if isinstance(value, dict):
                config = copy.deepcopy(config)
            OmegaConf.update(config, override.key_or_group, value, merge=True)
        values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        return values

    def _is_value(self, override: Any) -> bool:
        """A value for an existing key; not an option of a group, an addition or a deletion."""
        added = override.is_add() or override.is_force_add()
        special = added or override.is_delete() or override.package is not None
        return not special and not self.loader.repository.group_exists(override.key_or_group)
