"""The ablation table of any sweep: one typed row a run, task and metric, and the gaps of its grid marked."""

import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from math import nan, prod
from pathlib import Path
from typing import Any

import pandas as pd

from c3po_bench.analysis.arms import BASE, columns_of
from c3po_bench.analysis.compare import compare, total_flops
from c3po_bench.analysis.frames import known, masked_cells, plain_cells, records
from c3po_bench.store.files import replacing
from c3po_bench.store.reader import Run

IDENTITY = {"arm": "str", "title": "str", "role": "str", "label": "str", "run_id": "str", "model": "str"}
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
    compared_rows = records(compare(runs) if compared is None else compared)
    limits = len({run.result["limit"] for run in runs})
    of_run = {
        run.run_id: settings_of(run, limits > 1)
        | {"seconds": run.result["cost"]["seconds"], "flops": total_flops(run), "status": "done"}
        for run in runs
    }
    by_id = {run.run_id: run for run in runs}
    rows: list[dict[str, Any]] = []
    for row in compared_rows:
        rows.append(of_run[row["run_id"]] | row | {"metric": "acc", "value": row["accuracy"]})
        if (
            row["level"] == "task"
        ):  # metrics beside accuracy (drift, share of a gap recovered) have no interval
            kept = {name: row[name] for name in (*IDENTITY, "task", "level", "scope", "group", "n")}
            rows += [of_run[row["run_id"]] | kept | m for m in _metrics(by_id[row["run_id"]], row["task"])]
    for run_id, label in {row["run_id"]: row["label"] for row in compared_rows}.items():
        run = by_id[run_id]
        for task, metrics in run.result["metrics"].items():
            if (
                task not in run.result["tasks"]
            ):  # of the run as a whole: S_overall, the recovered share of a gap
                kept = columns_of(run) | {"label": label, "run_id": run_id, "model": run.result["model"]}
                kept |= {"task": task, "level": "summary", "n": metrics.get("n")}
                rows += [of_run[run_id] | kept | metric for metric in _metrics(run, task)]
    if results_dir is not None:
        folders = sorted((Path(results_dir) / "runs").glob("*/"))
        rows += [
            {"arm": path.name.rpartition("-")[0], "metric": "acc", "status": "unfinished"}
            | dict.fromkeys(("label", "run_id"), path.name)
            for path in folders
            if not (path / "result.json").exists()
        ]
    extra = sorted({name for own in of_run.values() for name in own} - {*SETTINGS, *MEASURES})
    rows += _missing(rows, _varied(rows, ["model", *SETTINGS, *extra]))
    kinds = IDENTITY | SETTINGS | dict.fromkeys(extra, "object") | MEASURES
    return pd.DataFrame({name: _column([row.get(name) for row in rows], name, kinds[name]) for name in kinds})


def _metrics(run: Run, task: str) -> list[dict[str, Any]]:
    """The metrics of `task` beside accuracy, one a row."""
    metrics = run.result["metrics"].get(task, {}).items()
    return [
        {"metric": name, "value": float(value)}
        for name, value in metrics
        if name not in ("acc", "n") and isinstance(value, int | float)
    ]


def settings_of(run: Run, limited: bool = True) -> dict[str, Any]:
    """What a sweep may vary of a run, under the names of the table's columns.

    The limit of items if `limited`.
    """
    named = {
        str(ALIASES.get(name, name)): _flat(value)
        for name, value in run.result["settings"].items()
        if name not in IDENTITY | MEASURES
    }
    named |= {name: _flat(value) for name, value in run.result["scoring"].items()}
    named["seed"] = run.result["seed"]
    if limited:
        named["limit"] = run.result["limit"]
    if run.path.parts[-4:-3] == ("shards",):  # of a run that is not merged yet
        named["shard"] = run.path.parts[-3].replace("-of-", "/")
    if run.arm != BASE:
        named.setdefault("reference_size", run.result["counts"].get("references"))
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


def leading_number(value: object) -> float:
    """The size that a setting names: 5 for 'last:5', 20 for 'top:20', 3 for '0,3,7'; NaN for 'all'."""
    text = str(value)
    with suppress(ValueError):
        return float(text)
    if re.fullmatch(r"\d+(,\d+)+", text):
        return text.count(",") + 1.0
    sizes = re.findall(r":(\d+)", text)
    return sum(map(float, sizes)) if sizes else nan


def axes(frame: pd.DataFrame) -> list[str]:
    """The settings that the sweep varies, the model among them.

    Columns that take two or more values within one arm.
    """
    names = [str(name) for name in frame.columns]
    return _varied(records(frame), ["model", *names[len(IDENTITY) : names.index("task")]])


def shown(frame: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    """The records of `frame` for a reader.

    "none" where an arm has one of the settings `names`, but no value of it.
    """
    rows = records(frame)
    values = {name: _values(rows, name) for name in names}
    for row in rows:
        if row["status"] != "unfinished":
            row.update(
                {name: "none" for name in names if row["arm"] in values[name] and not known(row[name])}
            )
    return rows


def _varied(rows: list[dict[str, Any]], names: list[str]) -> list[str]:
    """Those settings of `names` that take two or more values within one arm: other than base, where there is one."""
    others = [row for row in rows if row["arm"] != BASE] or rows
    varied = [name for name in names if any(len(values) > 1 for values in _values(others, name).values())]
    derived = {"n_layers": "layers", "n_experts": "experts"}
    return [name for name in varied if derived.get(name) not in varied]


def _values(rows: list[dict[str, Any]], name: str) -> dict[str, set[Any]]:
    """What finished runs set `name` to, by arm.

    None is a value, too (all references, no limit) where an arm has others.
    """
    by_arm: dict[str, set[Any]] = {}
    for row in rows:
        if row["status"] == "done" and row["metric"] == "acc":
            by_arm.setdefault(row["arm"], set()).add(row[name] if known(row.get(name)) else None)
    return {arm: values for arm, values in by_arm.items() if values != {None}}


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
        kept = ("arm", "title", "role", "model", "task", "level", "scope", "group", "metric")
        shared = {name: group[0].get(name) for name in kept} | {"status": "missing"}
        # a setting that is a function of one of the grid's follows it; what is constant follows any
        follow = {
            name: next((other, by) for other in grid if (by := by_value(group, name, other)))
            for name in names
            if name not in grid
        }
        for cell in product(*values):
            if cell not in present:
                own = dict(zip(grid, cell, strict=True))
                gaps.append(shared | own | {name: by[own[other]] for name, (other, by) in follow.items()})
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
    values: dict[Any, Any] = {}
    for row in rows:
        if values.setdefault(row.get(other), row.get(name)) != row.get(name):
            return {}
    return values


def _column(cells: list[Any], name: str, kind: str) -> pd.Series:
    """A column of the table: of `kind`, or of its values' own type where a setting has values of another."""
    values = [value if known(value) else None for value in cells]
    if kind == "object" or (name in SETTINGS and kind != "str" and not _fits(values, kind)):
        kind = _kind_of(values)
    if kind == "str":
        values = [None if value is None else str(value) for value in values]
    return pd.Series(values, dtype=object).astype(kind)  # type: ignore[call-overload]


def _fits(values: list[Any], kind: str) -> bool:
    """Whether a column of numbers takes these values as they are; a plugin may give half a step or a word."""
    numbers = [value for value in values if value is not None]
    return all(isinstance(n, int | float) and (kind == "float64" or float(n).is_integer()) for n in numbers)


def _kind_of(values: list[Any]) -> str:
    """The type of a setting whose values decide it: booleans, numbers, or text where they are mixed."""
    types = {type(value) for value in values if value is not None}
    if types in ({bool}, {int}):
        return "boolean" if types == {bool} else "Int64"
    return "float64" if types and types <= {int, float} else "str"


def write_table(frame: pd.DataFrame, stem: Path) -> list[Path]:
    """Write `frame` as STEM.csv and STEM.parquet, typed; returns the two paths."""
    csv, parquet = stem.with_suffix(".csv"), stem.with_suffix(".parquet")
    frame = masked_cells(frame)
    with replacing(csv) as path:
        plain_cells(frame).to_csv(path, index=False)
    with replacing(parquet) as path:
        frame.to_parquet(path, index=False)
    return [csv, parquet]
