"""The ablation table of any sweep: one typed row a run, task and metric, and its gaps marked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from c3po_bench.analysis.compare import compare, records
from c3po_bench.analysis.roles import BASE

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run

SETTINGS = {
    "layers": "str",
    "n_layers": "Int64",
    "experts": "str",
    "n_experts": "Int64",
    "neighbors": "Int64",
    "kernel": "str",
    "steps": "Int64",
    "embedder": "str",
    "reference_size": "Int64",
    "mixing": "str",
    "learning_rate": "float64",
    "seed": "Int64",
}
MEASURES = {
    "task": "str",
    "level": "str",
    "scope": "str",
    "group": "str",
    "metric": "str",
    "n": "Int64",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "difference": "float64",
    "diff_low": "float64",
    "diff_high": "float64",
    "p": "float64",
    "p_holm": "float64",
    "seconds_per_item": "float64",
    "flops_per_item": "float64",
    "seconds": "float64",
    "flops": "float64",
    "status": "str",  # done | unfinished (a folder without result) | missing (a cell of the grid)
}
IDENTITY = {"arm": "str", "label": "str", "run_id": "str", "model": "str"}
ALIASES = {"k": "neighbors", "lr": "learning_rate", "references": "reference_size"}
IMPLIED = 0.5  # a grid filled beyond this share is one grid with gaps; below, it is several one-way sweeps


def ablation_table(
    runs: Sequence[Run], compared: pd.DataFrame | None = None, results_dir: str | Path | None = None
) -> pd.DataFrame:
    """Rows of `runs` with their settings, intervals, differences to base and costs, one metric a row.

    `compared` is the frame of `compare` over the same runs where the caller has it already. Run folders
    under `results_dir` that have no result yet are listed as `unfinished`, cells that a mostly complete grid
    lacks as `missing`. Settings beyond the usual ones, and how runs were scored, keep their own names, as
    columns after `seed`; the limit of items is one of them where it varies.
    """
    if compared is None:
        compared = compare(runs)
    limits = len({run.result.get("limit") for run in runs})
    settings = {run.run_id: settings_of(run, limits > 1) for run in runs}
    by_run = {run.run_id: run for run in runs}
    rows: list[dict[str, Any]] = []
    for row in records(compared):
        run = by_run[row["run_id"]]
        rows.append(settings[run.run_id] | row | _cost(run) | {"metric": "acc", "value": row["accuracy"]})
        if row["level"] == "task":
            rows += [settings[run.run_id] | _cost(run) | other for other in _other_metrics(run, row)]
    for run_id in dict.fromkeys(row["run_id"] for row in rows):
        rows += [
            settings[run_id] | _cost(by_run[run_id]) | other
            for other in _summary_metrics(by_run[run_id], rows)
        ]
    rows += _unfinished(results_dir)
    extra = sorted({name for row in settings.values() for name in row} - SETTINGS.keys())
    varied = _axes(rows, ["model", *SETTINGS, *extra])
    return _typed(rows + _missing(rows, varied), extra)


def axes(frame: pd.DataFrame) -> list[str]:
    """The settings that the sweep varies, the model among them.

    Columns that take two or more values within one arm.
    """
    names = [str(name) for name in frame.columns]
    return _axes(records(frame), ["model", *names[len(IDENTITY) : names.index("task")]])


def shown(frame: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    """The records of `frame` for a reader.

    "none" where an arm has one of the settings `names`, but no value of it.
    """
    rows = records(frame)
    found = {name: _values(rows, name) for name in names}
    for row in rows:
        if row["status"] != "unfinished":
            row.update({name: "none" for name in names if row["arm"] in found[name] and not known(row[name])})
    return rows


def _axes(rows: list[dict[str, Any]], names: list[str]) -> list[str]:
    methods = [row for row in rows if row["arm"] != BASE]
    varied = [name for name in names if any(len(found) > 1 for found in _values(methods, name).values())]
    derived = {"n_layers": "layers", "n_experts": "experts"}
    return [name for name in varied if derived.get(name) not in varied]


def _values(rows: list[dict[str, Any]], name: str) -> dict[str, set[Any]]:
    """What finished runs set `name` to, by arm.

    None is a value, too (all references, no limit) where an arm has others.
    """
    found: dict[str, set[Any]] = {}
    for row in rows:
        if row["status"] == "done" and row["metric"] == "acc":
            found.setdefault(row["arm"], set()).add(row[name] if known(row.get(name)) else None)
    return {arm: values for arm, values in found.items() if values != {None}}


def leading_number(value: object) -> float:
    """The size that a setting names: 5 for 'last:5', 20 for 'top:20', 3 for '0,3,7'; NaN for 'all'."""
    text = str(value)
    with suppress(ValueError):
        return float(text)
    if re.fullmatch(r"\d+(,\d+)+", text):
        return float(text.count(",") + 1)
    found = re.findall(r":(\d+)", text)
    return sum(map(float, found)) if found else float("nan")


def write_table(frame: pd.DataFrame, stem: Path) -> list[Path]:
    """Write `frame` as STEM.csv and STEM.parquet, typed; returns the two paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    csv, parquet = stem.with_suffix(".csv"), stem.with_suffix(".parquet")
    frame.to_csv(csv, index=False)
    frame.to_parquet(parquet, index=False)
    return [csv, parquet]


def settings_of(run: Run, limited: bool = True) -> dict[str, Any]:
    """What a sweep may vary of a run, under the names of the table's columns.

    The limit of items if `limited`.
    """
    raw = run.result.get("settings") or {}
    named = {
        str(ALIASES.get(str(k), k)): _flat(value) for k, value in raw.items() if k not in IDENTITY | MEASURES
    }
    scoring = run.result.get("scoring") or {}
    named |= {str(name): _flat(value) for name, value in scoring.items()} | {"seed": run.result.get("seed")}
    if limited:
        named["limit"] = run.result.get("limit")
    *_, folder, shard, _, _ = "", "", *run.path.parts
    if folder == "shards":  # of a run that is not merged yet
        named["shard"] = shard.replace("-of-", "/")
    if run.arm != BASE:
        named.setdefault("reference_size", (run.result.get("counts") or {}).get("references"))
    for name in ("layers", "experts"):
        if named.get(name) is not None:
            named[f"n_{name}"] = leading_number(named[name])
    return named


def _flat(value: Any) -> Any:
    """A list (a plugin's options may hold one) as the text that names it.

    Other containers as Python shows them.
    """
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, dict | set) else value


def _cost(run: Run) -> dict[str, Any]:
    cost = run.result.get("cost") or {}
    flops = [phase.get("flops") for phase in (cost.get("phases") or {}).values()]
    known = [f for f in flops if f is not None]
    total = float(sum(known)) if known else float("nan")
    return {"seconds": cost.get("seconds"), "flops": total, "status": "done"}


def _other_metrics(run: Run, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Metrics beside accuracy (drift, share of a gap recovered): values without interval."""
    metrics = (run.result.get("metrics") or {}).get(row["task"]) or {}
    kept = {name: row[name] for name in (*IDENTITY, "task", "level", "scope", "group", "n")}
    numbers = {k: v for k, v in metrics.items() if k not in ("acc", "n") and isinstance(v, int | float)}
    return [kept | {"metric": name, "value": float(value)} for name, value in numbers.items()]


def _summary_metrics(run: Run, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics of the run as a whole (S_overall of a feedback, recovered share of a gap), under their own task name."""
    own = set(run.result.get("tasks") or [])
    found = []
    for task, metrics in (run.result.get("metrics") or {}).items():
        if task in own:
            continue
        kept = {
            "arm": run.arm,
            "run_id": run.run_id,
            "model": run.result.get("model"),
            "task": task,
            "level": "summary",
        }
        kept |= {
            "label": next(row["label"] for row in rows if row["run_id"] == run.run_id),
            "n": metrics.get("n"),
        }
        numbers = {k: v for k, v in metrics.items() if k != "n" and isinstance(v, int | float)}
        found += [kept | {"metric": name, "value": float(value)} for name, value in numbers.items()]
    return found


def _unfinished(results_dir: str | Path | None) -> list[dict[str, Any]]:
    if results_dir is None:
        return []
    folders = sorted((Path(results_dir) / "runs").glob("*/"))
    return [
        {
            "arm": p.name.rpartition("-")[0],
            "label": p.name,
            "run_id": p.name,
            "metric": "acc",
            "status": "unfinished",
        }
        for p in folders
        if not (p / "result.json").exists()
    ]


def _missing(rows: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """The cells that a mostly filled grid lacks, one row an arm, model, task and cell."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["status"] == "done" and row["arm"] != BASE and row["metric"] == "acc":
            groups.setdefault((row["arm"], row["model"], row["task"]), []).append(row)
    gaps: list[dict[str, Any]] = []
    for group in groups.values():
        grid = _grid(group, names)
        values = [sorted({row.get(name) for row in group}, key=str) for name in grid]
        present = {tuple(row.get(name) for name in grid) for row in group}
        cells = prod(map(len, values))
        if len(grid) < 2 or not IMPLIED * cells < len(present) < cells:
            continue
        shared = {name: group[0].get(name) for name in ("arm", "model", "task", "level", "scope", "group")}
        shared |= {"metric": "acc", "status": "missing"}
        follow = {name: _followed(group, name, grid) for name in names if name not in grid}
        for cell in product(*values):
            if cell not in present:
                own = dict(zip(grid, cell, strict=True))
                gaps.append(
                    shared | own | {name: value[own[other]] for name, (other, value) in follow.items()}
                )
    return gaps


def _grid(rows: list[dict[str, Any]], names: list[str]) -> list[str]:
    """The settings that vary over `rows` on their own.

    One that is a function of another spans no cells beside it.
    """
    grid = [name for name in names if len({row.get(name) for row in rows}) > 1]
    for name in grid[::-1]:
        if any(by_value(rows, name, other) for other in grid if other != name):
            grid.remove(name)
    return grid


def by_value(rows: list[dict[str, Any]], name: str, other: str) -> dict[Any, Any]:
    """The value of `name` for each of `other`, where it is a function of it (a rate tuned for each layer).

    Else empty.
    """
    found: dict[Any, Any] = {}
    for row in rows:
        if found.setdefault(row.get(other), row.get(name)) != row.get(name):
            return {}
    return found


def _followed(rows: list[dict[str, Any]], name: str, grid: list[str]) -> tuple[str, dict[Any, Any]]:
    """The setting of `grid` that decides `name`, and its values; what is constant follows any."""
    return next((other, found) for other in grid if (found := by_value(rows, name, other)))


def _typed(rows: list[dict[str, Any]], extra: list[str]) -> pd.DataFrame:
    kinds = IDENTITY | SETTINGS | dict.fromkeys(extra, "object") | MEASURES
    frame = pd.DataFrame(index=range(len(rows)), columns=list(kinds))
    for name, kind in kinds.items():
        values = [row.get(name) for row in rows]
        values = [v if known(v) else None for v in values]
        if kind == "object" or (name in SETTINGS and kind != "str" and not _fits(values, kind)):
            kind = _kind_of(values)
        if kind == "str":
            values = [None if v is None else str(v) for v in values]
        frame[name] = pd.Series(values, dtype=object).astype(kind)  # type: ignore[call-overload]
    return frame


def known(value: Any) -> bool:
    """Whether a cell of the table holds anything."""
    return value is not None and value is not pd.NA and value == value


def _fits(values: list[Any], kind: str) -> bool:
    """Whether a column of numbers takes these values as they are; a plugin may give half a step or a word."""
    known = [v for v in values if v is not None]
    return all(isinstance(v, int | float) and (kind == "float64" or float(v).is_integer()) for v in known)


def _kind_of(values: list[Any]) -> str:
    """The type of a setting whose values decide it: booleans, numbers, or text where they are mixed."""
    kinds = {type(v) for v in values if v is not None}
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "Int64"
    return "float64" if kinds and kinds <= {int, float} else "str"
