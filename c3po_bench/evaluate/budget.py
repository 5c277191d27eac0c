"""`budget=10min`: the limit that fits into a time, chosen once, written down, and taken again by every rerun.

The choice depends on how fast the machine is at that moment, so it is made once. `budgets/NAME-HASH.json` of
the store keeps it, by a hash of everything in the config that decides what is run. A rerun, a resumed run,
the other cells of a sweep, the other ranks and shards read the file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from c3po_bench.config import Config
from c3po_bench.contract import Backend
from c3po_bench.errors import UserError
from c3po_bench.evaluate.forecast import Forecast, detectable, forecast, with_references
from c3po_bench.evaluate.work import works_of_cells
from c3po_bench.options import seconds_of
from c3po_bench.runtime import ranks
from c3po_bench.runtime.console import duration
from c3po_bench.runtime.locks import exclusive_lock
from c3po_bench.runtime.ranks import parse_shard
from c3po_bench.store import provenance
from c3po_bench.store.files import write_json
from c3po_bench.store.identity import content_hash
from c3po_bench.store.records import read_json
from c3po_bench.store.schema import SCHEMA_VERSION

log = logging.getLogger("c3po_bench")
NOT_DECIDING = (
    "limit",
    "results_dir",
    "tracking",
    "analysis",
    "log_level",
    "threads",
    "shard",
    "reference_cache_gb",
)
"""Keys that two runs of one budget may differ in."""
MARGIN = 0.8
"""Share of a budget that the forecast may fill: it is no measurement."""
STEPS = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
"""Limits are round numbers, so that a slightly faster machine takes the same."""
ROUND_TIMES = (
    30,
    60,
    120,
    180,
    300,
    600,
    900,
    1200,
    1800,
    2700,
    3600,
    7200,
    10800,
    14400,
    21600,
    28800,
    43200,
    86400,
)


class Choice(TypedDict):
    """budgets/NAME-HASH.json."""

    schema_version: int
    name: str
    budget: str
    limit: int | None
    items: int
    forecast_seconds: float
    rates: dict[str, Any]
    detectable: str
    command: str
    created: str


@dataclass(frozen=True)
class SweepPlace:
    """Where an experiment stands in a sweep: its number, from 0, of how many cells, and how to read all."""

    number: int
    cells: int
    configs: Callable[[], Sequence[Config]]


def path_of(cfg: Config, cells: Sequence[Config]) -> Path:
    """The file that keeps the choice for `cfg`, one of the `cells`."""
    deciding = [{k: v for k, v in asdict(cell).items() if k not in NOT_DECIDING} for cell in cells]
    return Path(cfg.results_dir) / "budgets" / f"{cells[0].name}-{content_hash(deciding)}.json"


def with_limit(cfg: Config, open_backend: Callable[[Config], Backend], place: SweepPlace | None) -> Config:
    """`cfg` with the limit that its budget buys; as it is where it has no budget.

    Args:
        cfg: of an experiment, or of a cell of a sweep, whose cells all take the same limit.
        open_backend: makes the backend of a config, where rates must be measured.
        place: of the cell in its sweep.

    Raises:
        UserError: where not even one item of each task fits.
    """
    if cfg.budget is None:
        return cfg
    cells = [cfg] if place is None else place.configs()
    path = path_of(cfg, cells)
    if not path.exists() and ranks.rank() > 0:
        ranks.wait_for(path.exists)
    with exclusive_lock(path.parent, f"{path.name}.lock"):
        if not path.exists():
            write_json(path, {**_choose(cfg, open_backend(replace(cfg, limit=None)), cells)})
        choice = read_json(path, Choice, "delete it, and the limit is chosen anew")
    limit = "all items" if choice["limit"] is None else f"limit={choice['limit']}"
    several = f" for each of {len(cells)} cells" if len(cells) > 1 else ""
    log.info("budget=%s: %s%s; %s; kept in %s", cfg.budget, limit, several, choice["detectable"], path)
    return replace(cfg, limit=choice["limit"])


def record_of(cfg: Config) -> dict[str, Any]:
    """What a run's provenance says of its budget: the time given and the limit that it bought, or None."""
    return {"budget": {"time": cfg.budget, "limit": cfg.limit} if cfg.budget else None}


def _choose(cfg: Config, backend: Backend, cells: Sequence[Config]) -> Choice:
    found, count = forecast(cfg, backend), backend.timed_parts().references
    known = [with_references(cell, count) if cell.references == cfg.references else cell for cell in cells]
    found = replace(found, parts=works_of_cells(known, found.tasks))
    limit = fitting(found, MARGIN * seconds_of("budget", cfg.budget) * _shares(cfg))
    return {
        "schema_version": SCHEMA_VERSION,
        "name": cfg.name,
        "budget": str(cfg.budget),
        "limit": limit,
        "items": found.items(limit),
        "forecast_seconds": round(found.seconds(limit) / _shares(cfg), 1),
        "rates": asdict(found.rates),
        "detectable": detectable(found, limit),
        "command": provenance.command(),
        "created": provenance.now(),
    }


def _shares(cfg: Config) -> int:
    """Among how many processes the items are shared."""
    return ranks.world() * (parse_shard(cfg.shard)[1] if cfg.shard else 1)


def fitting(found: Forecast, seconds: float) -> int | None:
    """The largest round limit whose forecast stays within `seconds`; None where all items do.

    Raises:
        UserError: where one item of each task takes longer, with the next round budget that suffices.
    """
    if found.seconds(None) <= seconds:
        return None
    most = max(task.items for task in found.tasks)
    limits = sorted(
        {int(step * 10**power) for power in range(7) for step in STEPS if step * 10**power < most}
    )
    fits = [limit for limit in limits if found.seconds(limit) <= seconds]
    if fits:
        return fits[-1]
    least = found.seconds(1) / MARGIN
    enough = next((time for time in ROUND_TIMES if time >= least), least)
    raise UserError(
        f"budget={found.cfg.budget} is too short: one item of each task takes about "
        f"{duration(found.seconds(1))} here, what comes before the first included; the nearest that fits is "
        f"budget={written(enough)}"
    )


def written(seconds: float) -> str:
    """A time as the key takes it: 90s, 10min, 2h."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds // length:.0f}{unit}"
    return f"{seconds:.0f}s" if seconds < 3600 else f"{-(-seconds // 3600):.0f}h"
