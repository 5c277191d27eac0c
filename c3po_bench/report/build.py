"""From a store to report.html, figures and tables."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import c3po_bench
from c3po_bench.analysis.ablation import ablation_table, axes, known, shown, write_table
from c3po_bench.analysis.compare import compare, records
from c3po_bench.analysis.controls import compare_controls
from c3po_bench.analysis.measures import feedback_measures
from c3po_bench.analysis.paired import DRAWS
from c3po_bench.analysis.roles import role, title
from c3po_bench.analysis.seeds import seed_agreement
from c3po_bench.analysis.verdict import summary_rows, verdict_sentences
from c3po_bench.errors import UserError
from c3po_bench.report import page
from c3po_bench.report.items import Explorer, explore
from c3po_bench.report.selection import Selection, commands, name_of, select
from c3po_bench.report.tables import (
    COLUMNS,
    FEEDBACK_COLUMNS,
    SEED_COLUMNS,
    comparison_rows,
    feedback_rows,
    levels,
    marks,
    seed_rows,
)
from c3po_bench.report.triangle import outline, triangles
from c3po_bench.store.reader import load_experiments, load_runs

if TYPE_CHECKING:
    from c3po_bench.report.figures import Figure
    from c3po_bench.store.reader import Run

log = logging.getLogger(__name__)
MOST_CONFIGS = 24  # runs whose configuration the page carries
TABLES = ("comparison", "ablation", "controls", "seeds", "feedback")
FIGURES = ("effects", "cost", "heat_*", "curve_*")


def write_report(results_dir: str | Path, output: str | Path | None = None) -> Path:
    """Write report.html, figures/ (SVG, PNG) and tables/ (CSV, parquet); returns the path of the page.

    Everything is written under `output`, by default the store itself; figures and tables of an earlier report
    that this one has not go away. Raises UserError where there is no store or nothing has finished in it.
    """
    try:
        from c3po_bench.report.ablation_figures import ablation_figures
        from c3po_bench.report.figures import comparison_figures
    except ImportError as error:
        raise UserError("the report needs altair and vl-convert: pip install 'c3po-bench[report]'") from error
    results_dir = Path(results_dir)
    output = Path(output) if output else results_dir
    runs, experiments = load_runs(results_dir), load_experiments(results_dir)
    if not runs:
        raise UserError(
            f"no run in {results_dir} has finished yet; run its experiment again, it goes on where it stopped"
        )
    start = time.perf_counter()
    refused: dict[str, str] = {}
    compared = compare(runs, refused=refused)
    controls = compare_controls(runs, refused=refused)
    table = ablation_table(runs, compared, results_dir)
    seeds = seed_agreement(runs) if len({run.result.get("seed") for run in runs}) > 1 else pd.DataFrame()
    write_tables(output / "tables", runs, compared, controls, table, seeds)
    selection = select(runs, compared)
    figures = comparison_figures(selection.rows) + ablation_figures(table)
    explorer = explore(selection.runs, selection.rows)
    explorer.meta["first"] = _first_label(selection.rows)
    html = _page(
        results_dir,
        experiments,
        runs,
        selection,
        compared,
        controls,
        table,
        seeds,
        refused,
        figures,
        explorer,
    )
    output.mkdir(parents=True, exist_ok=True)
    path = output / "report.html"
    path.write_text(html, encoding="utf-8")
    write_figures(output / "figures", figures)
    log.debug("report of %d runs in %.1f s", len(runs), time.perf_counter() - start)
    return path


def write_tables(
    folder: Path,
    runs: Sequence[Run],
    compared: pd.DataFrame,
    controls: pd.DataFrame,
    table: pd.DataFrame,
    seeds: pd.DataFrame,
) -> list[Path]:
    """comparison, ablation and, where there are such runs, controls, seeds and feedback.

    Each as CSV and parquet.
    """
    written = write_table(compared, folder / "comparison") + write_table(table, folder / "ablation")
    if len(controls):
        written += write_table(controls, folder / "controls")
    if len(seeds):
        written += write_table(seeds, folder / "seeds")
    if any(compared["scope"]):
        written += write_table(feedback_measures(runs, pieces=True), folder / "feedback")
    _remove_others(folder, written, TABLES, (".csv", ".parquet"))
    return written


def write_figures(folder: Path, figures: Sequence[Figure]) -> None:
    """Each figure as SVG and PNG (twice the size, for slides)."""
    import json

    import vl_convert

    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for figure in figures:
        spec = figure.chart.properties(width=680).to_dict()
        text, version = json.dumps(spec), page.vega_lite_version()
        svg = vl_convert.vegalite_to_svg(text, vl_version=version, config=PRINT)
        drawn = folder / f"{figure.name}.svg"
        drawn.write_text(svg, encoding="utf-8")
        drawn.with_suffix(".png").write_bytes(vl_convert.svg_to_png(svg, scale=2))
        written += [drawn, drawn.with_suffix(".png")]
    _remove_others(folder, written, FIGURES, (".svg", ".png"))


def _remove_others(
    folder: Path, written: Sequence[Path], names: Sequence[str], suffixes: Sequence[str]
) -> None:
    """Remove what an earlier report wrote under these names and this one did not.

    Anything else is not ours.
    """
    for path in (path for name in names for suffix in suffixes for path in folder.glob(name + suffix)):
        if path not in written:
            path.unlink()


HEADINGS = {
    "value": "accuracy %",
    "difference": "difference",
    "diff_low": "from",
    "diff_high": "to",
    "p_holm": "Holm p",
    "seconds_per_item": "s/item",
}
PRINT = {
    "background": "white",
    "font": "DejaVu Sans, Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "range": {
        "diverging": ["#f0a48c", "#f3f5f7", "#8db9ea"],
        "category": ["#1f5fbf", "#c05a00", "#0b7d5a", "#9a3d93"],
    },
    "axis": {
        "titleFontWeight": "normal",
        "gridColor": "#e3e7ec",
        "domainColor": "#c5ccd4",
        "tickColor": "#c5ccd4",
        "labelLimit": 300,
    },
}


def _page(
    results_dir: Path,
    experiments: Sequence[dict[str, Any]],
    runs: Sequence[Run],
    selection: Selection,
    compared: pd.DataFrame,
    controls: pd.DataFrame,
    table: pd.DataFrame,
    seeds: pd.DataFrame,
    refused: dict[str, str],
    figures: Sequence[Figure],
    explorer: Explorer,
) -> str:
    varied = axes(table)
    rows, shown = comparison_rows(selection.rows, controls), levels(selection.rows)
    blocks = {"figures": {figure.name: figure.spec() for figure in figures}, "explorer": explorer.meta}
    if varied:
        blocks["ablation"] = ablation_rows(table, varied)
    packed = {"items-index": explorer.index, **explorer.chunks}
    return page.render(
        "report.html.j2",
        version=c3po_bench.__version__,
        name=name_of(experiments, results_dir.resolve().name),
        models=sorted({str(run.result.get("model")) for run in runs}),
        tasks=sorted({task for run in runs for task in run.result.get("tasks") or []}),
        items=f"{explorer.questions:,}",
        run_count=f"{len(runs):,}",
        finished=max((str(run.provenance.get("finished") or "")[:10] for run in selection.runs), default=""),
        verdict=verdict_sentences(compared, controls),
        selection_note=selection.note,
        refused=sorted(refused.items())[:20],
        draws=f"{DRAWS:,}",
        columns=COLUMNS,
        rows=rows,
        levels=shown,
        first_level=shown[0] if shown else "",
        marks=marks(selection.rows),
        figures=figures,
        triangles=triangles(selection.rows),
        seed_columns=SEED_COLUMNS,
        seed_rows=seed_rows(seeds),
        feedback_columns=FEEDBACK_COLUMNS,
        feedback_rows=feedback_rows(feedback_measures(selection.runs))
        if any(selection.rows["scope"])
        else [],
        rings=[outline(dict.fromkeys(("in", "near", "out"), share)) for share in (1 / 3, 2 / 3, 1)],
        has_ablation=bool(varied),
        ablation_note=ablation_note(table, varied),
        has_pathways=any(run.result.get("backend") == "rewiring" for run in selection.runs),
        commands=commands(experiments, runs)[:10],
        notes=list(dict.fromkeys(note for run in selection.runs for note in run.result.get("notes") or []))[
            :20
        ],
        provenance=[provenance(run) for run in selection.runs[:MOST_CONFIGS]],
        json_blocks=[(f"data-{name}", page.embed(data)) for name, data in blocks.items()],
        packed_blocks=[(f"data-{name}", page.pack(data)) for name, data in packed.items()],
    )


def _first_label(compared: pd.DataFrame) -> str:
    """The arm that the explorer opens with: the method with the largest difference."""
    rows = [
        r for r in summary_rows(records(compared)) or records(compared) if r["difference"] == r["difference"]
    ]
    methods = [r for r in rows if role(r["arm"]) == "method"] or rows
    best = max(methods, key=lambda r: r["difference"], default=None)
    return title(best["arm"]) + best["label"][len(best["arm"]) :] if best else ""


def ablation_rows(table: pd.DataFrame, varied: list[str]) -> dict[str, Any]:
    """The ablation table as the page lists it: varied settings and the numbers, one row a run and task."""
    measures = {
        "value": 1,
        "difference": 1,
        "diff_low": 1,
        "diff_high": 1,
        "p_holm": 3,
        "seconds_per_item": 3,
    }
    names = ["arm", *varied, "task", "n", *measures, "status"]
    rows = [row for row in shown(table, varied) if row["metric"] == "acc"]
    numeric = {
        name for name in names if any(isinstance(row[name], int | float) and known(row[name]) for row in rows)
    }
    columns = [
        {"title": HEADINGS.get(name, name.replace("_", " ")), "numeric": name in numeric}
        | ({"digits": measures[name]} if name in measures else {})
        for name in names
    ]
    return {"columns": columns, "rows": [[_shown(name, row[name]) for name in names] for row in rows]}


def _shown(name: str, value: Any) -> Any:
    """A value as the page's table lists it: shares in percent, missing ones as None."""
    if value is pd.NA:
        return None
    return 100 * value if name in ("value", "difference", "diff_low", "diff_high") else value


def ablation_note(table: pd.DataFrame, varied: list[str]) -> str:
    """How many cells there are, over what, and how many are still missing."""
    status = [row["status"] for row in records(table) if row["metric"] == "acc"]
    gaps = status.count("missing") + status.count("unfinished")
    said = f"{status.count('done'):,} finished rows over {', '.join(varied)}."
    return said + (f" {gaps:,} rows are missing or unfinished: the sweep is incomplete." if gaps else "")


def provenance(run: Run) -> dict[str, Any]:
    """What the page says of where one run came from."""
    import yaml

    record = run.provenance
    facts = [
        ("command", record.get("command")),
        ("code", f"{record.get('code_version')} ({record.get('git_commit')})"),
        ("model", f"{run.result.get('model')} ({record.get('model_hash')})"),
        ("data", ", ".join(f"{task} {digest}" for task, digest in (record.get("data_hashes") or {}).items())),
        ("seeds", ", ".join(f"{k} {v}" for k, v in (record.get("seeds") or {}).items())),
        ("libraries", ", ".join(f"{k} {v}" for k, v in (record.get("libraries") or {}).items())),
        ("hardware", ", ".join(f"{k} {v}" for k, v in (record.get("hardware") or {}).items())),
        ("time", f"{record.get('started')} to {record.get('finished')}"),
        (
            "counts",
            ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in (run.result.get("counts") or {}).items()),
        ),
    ]
    cost = run.result.get("cost") or {}
    summary = f"{cost.get('items', 0):,} items in {cost.get('seconds', 0):.1f} s"
    try:
        config = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    except FileNotFoundError:
        config = "not kept: a published study holds what the tables are computed from"
    return {
        "run_id": run.run_id,
        "summary": summary,
        "facts": [(key, str(value)) for key, value in facts if value],
        "config": config,
    }
