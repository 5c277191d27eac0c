"""From a store to report.html, figures and tables; of a large store, which runs stand side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert
import yaml
from more_itertools import map_reduce

import c3po_bench
from c3po_bench.analysis.ablation import ablation_table, axes, write_table
from c3po_bench.analysis.arms import BASE, METHODS, arm_of, display_name
from c3po_bench.analysis.compare import compare, compare_controls, options_of, trained_on_seeds
from c3po_bench.analysis.footing import studies_note
from c3po_bench.analysis.frames import known, records
from c3po_bench.analysis.judging import judge_measures, newest_labels
from c3po_bench.analysis.measures import feedback_measures
from c3po_bench.analysis.movement import movement_rows
from c3po_bench.analysis.overall import arms_frame, by_scope, conclusion
from c3po_bench.analysis.seeds import seed_agreement
from c3po_bench.analysis.tables import feedback_note
from c3po_bench.analysis.verdict import summary_rows
from c3po_bench.errors import UserError
from c3po_bench.report import feedback, page, tables
from c3po_bench.report.figures import ablation_figures, comparison_figures
from c3po_bench.report.items import explore
from c3po_bench.report.marks import Figure
from c3po_bench.store.files import replacing, write_text
from c3po_bench.store.reader import Run, load_experiments, load_headroom, load_runs

MOST_RUNS = (
    24  # shown side by side, and whose configuration the page carries; of larger stores the best of each arm
)
BEST = 3
TABLES = ("comparison", "ablation", "controls", "seeds", "feedback", "feedback_arms", "judges")
FIGURES = ("effects", "cost", "feedback", "heat_*", "curve_*")
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
    "axisQuantitative": {"tickCount": 9},  # so few that none loses its label, 0 neither
}


@dataclass(frozen=True)
class Measured:
    """Everything that a report computes of a store's runs.

    Attributes:
        to_base: `compare`, a row an arm; what is said in sentences is about it.
        compared: the same with differences to the run asked for.
        to: what a reader calls that run.
        controls: `compare_controls`.
        pieces: `feedback_measures` by feedback and over all; empty where no run is of feedback.
        arms: `arms_frame`, likewise.
        ablation: `ablation_table`, a row a run.
        judges: `judge_measures`.
        seeds: `seed_agreement`.
        refused: runs that could not be compared, with the reason.
    """

    to_base: pd.DataFrame
    compared: pd.DataFrame
    to: str
    controls: pd.DataFrame
    pieces: pd.DataFrame
    arms: pd.DataFrame
    ablation: pd.DataFrame
    judges: pd.DataFrame
    seeds: pd.DataFrame
    refused: dict[str, str]

    def frames(self) -> dict[str, pd.DataFrame]:
        """The tables that are written, by the names of their files."""
        alike: Any = self.compared[self.compared["scope"] == ""]
        signs = [name for name in self.arms if str(name).endswith("_sign")]
        return {
            "comparison": wanted_first(alike),
            "ablation": by_scope(self.ablation),
            "controls": self.controls,
            "seeds": self.seeds,
            "feedback": self.pieces,
            "feedback_arms": self.arms.drop(columns=signs),
            "judges": self.judges,
        }


def measure(results_dir: Path, runs: Sequence[Run], against: str | None) -> Measured:
    """Compute what a report shows; raises UserError where nothing can be compared with `against`."""
    refused: dict[str, str] = {}
    options, seeds = options_of(results_dir), trained_on_seeds(results_dir)
    each = compare(runs, **options, refused=refused)  # a row a run, also of training seeds
    to_base = compare(runs, **options, refused=refused, one_row=True) if seeds else each
    compared, to = to_base, BASE
    if against and against != BASE:
        alone: dict[str, str] = {}
        compared = compare(runs, **options, against=against, refused=alone, one_row=seeds)
        if not len(compared):
            raise UserError(next(iter(alone.values())))
        to = next((row["title"] for row in records(compared) if row["arm"] == against), against)
    scoped = any(compared["scope"])
    pieces = feedback_measures(runs, pieces=True, one_row=seeds) if scoped else pd.DataFrame()
    return Measured(
        to_base,
        compared,
        to,
        compare_controls(runs, refused=refused),
        pieces,
        arms_frame(runs, pieces, against) if scoped else pd.DataFrame(),
        ablation_table(runs, each, results_dir),
        judge_measures(runs, newest_labels(results_dir)) if scoped else pd.DataFrame(),
        seed_agreement(runs),
        refused,
    )


def write_report(
    results_dir: str | Path, output: str | Path | None = None, against: str | None = None
) -> Path:
    """Write report.html, figures/ (SVG, PNG) and tables/ (CSV, parquet); returns the path of the page.

    Everything is written under `output`, by default the store itself; figures and tables of an earlier report
    that this one has not go away. With `against`, an arm or a run id, tables and charts have differences to
    it; what is said in sentences is always about base. Raises UserError where there is no store or nothing
    has finished in it, or nothing can be compared with `against`.
    """
    results_dir = Path(results_dir)
    output = Path(output) if output else results_dir
    runs, experiments = load_runs(results_dir), load_experiments(results_dir)
    if not runs:
        raise UserError(
            f"no run in {results_dir} has finished yet; run its experiment again, it goes on where it stopped"
        )
    measured = measure(results_dir, runs, against)
    write_tables(output / "tables", measured.frames())
    selection = select(runs, measured.compared, measured.arms)
    rows: Any = selection.rows[selection.rows["scope"] == ""]
    arms: Any = measured.arms
    if len(arms):
        arms = arms[arms["run_id"].isin([run.run_id for run in selection.runs])]
    figures = comparison_figures(rows, measured.to) + (feedback.figures(arms) if len(arms) else [])
    figures += ablation_figures(measured.ablation, measured.arms)
    write_figures(output / "figures", figures)
    explorer = explore(selection.runs, selection.rows)
    explorer.meta["first"] = _first_label(rows, arms)
    varied = axes(measured.ablation)
    blocks = {"figures": {figure.name: figure.spec() for figure in figures}, "explorer": explorer.meta}
    if varied:
        blocks["ablation"] = tables.ablation_rows(measured.ablation, varied, measured.arms)
    packed = {"items-index": explorer.index, **explorer.chunks}
    html = page.render(
        "report.html.j2",
        **_facts(results_dir, experiments, runs, selection),
        **_tables(measured, selection, rows, arms, len(experiments)),
        items=f"{explorer.questions:,}",
        verdict=conclusion(results_dir, runs, measured.to_base, measured.controls),
        headroom=load_headroom(results_dir, runs),
        refused=sorted(measured.refused.items())[:20],
        to=measured.to,
        figures=figures,
        has_ablation=bool(varied),
        ablation_note=tables.ablation_note(measured.ablation, varied),
        json_blocks=[(f"data-{name}", page.embed(data)) for name, data in blocks.items()],
        packed_blocks=[(f"data-{name}", page.pack(data)) for name, data in packed.items()],
    )
    path = output / "report.html"
    write_text(path, html)
    return path


def _tables(
    measured: Measured, selection: Selection, rows: pd.DataFrame, arms: pd.DataFrame, experiments: int
) -> dict[str, Any]:
    """The page's tables: of the runs selected, `rows` of the comparison, the `arms` of feedback."""
    facts = {row["run_id"]: row for row in records(selection.rows)}
    labels = {run_id: row["label"] for run_id, row in facts.items()}
    seconds = {run_id: row["seconds_per_item"] for run_id, row in facts.items()}
    listed: dict[str, tuple[list[tables.Column], list[tables.Row]]] = {
        "": (tables.COLUMNS, tables.comparison_rows(rows, measured.controls)),
        "best_": (
            tables.BEST_COLUMNS,
            tables.best_rows(measured.to_base, measured.controls, measured.arms),
        ),
        "feedback_": (feedback.columns(arms), feedback.rows(arms, seconds)) if len(arms) else ([], []),
    }
    values: dict[str, Any] = {}
    for name, (columns, cells) in listed.items():
        values[f"{name}columns"], values[f"{name}rows"] = tables.without_empty(columns, cells)
    levels = tables.levels(rows)
    return values | {
        "levels": levels,
        "first_level": levels[0] if levels else "",
        "glosses": list(dict.fromkeys((a.title, a.about) for a in map(arm_of, selection.runs) if a.about)),
        "marks": " ".join(filter(None, [tables.marks(rows), studies_note(experiments)])),
        "movement_columns": tables.MOVEMENT_COLUMNS,
        "movement_rows": tables.moved_rows(movement_rows(selection.runs, labels)),
        "seed_columns": tables.SEED_COLUMNS,
        "seed_rows": tables.seed_rows(measured.seeds),
        "feedback_note": feedback_note(records(measured.pieces)) if len(measured.pieces) else "",
        "judge_columns": tables.JUDGE_COLUMNS,
        "judge_rows": tables.judge_rows(measured.judges),
    }


def write_tables(folder: Path, frames: dict[str, pd.DataFrame]) -> None:
    """The frames that are not empty, each as CSV and parquet; comparison and ablation in any case."""
    written: list[Path] = []
    for name, frame in frames.items():
        if len(frame) or name in TABLES[:2]:
            written += write_table(frame, folder / name)
    _remove_others(folder, written, TABLES, (".csv", ".parquet"))


def wanted_first(compared: pd.DataFrame) -> pd.DataFrame:
    """The rows of `compare` with those first that people ask for: over everything, then benchmarks, then their tasks."""
    order = {"pooled": 0, "macro": 1, "group": 2}
    place = [order.get(row["level"], 3 if row["group"] else 2) for row in records(compared)]
    return compared.iloc[sorted(range(len(place)), key=place.__getitem__)]


def write_figures(folder: Path, figures: Sequence[Figure]) -> None:
    """Each figure as SVG and PNG (twice the size, for slides)."""
    written: list[Path] = []
    for figure in figures:
        spec = json.dumps(figure.spec(680))
        svg = vl_convert.vegalite_to_svg(spec, vl_version=page.VEGA_LITE, config=PRINT)
        drawn, pixels = folder / f"{figure.name}.svg", folder / f"{figure.name}.png"
        write_text(drawn, svg)
        with replacing(pixels) as path:
            path.write_bytes(vl_convert.svg_to_png(svg, scale=2))
        written += [drawn, pixels]
    _remove_others(folder, written, FIGURES, (".svg", ".png"))


def _remove_others(
    folder: Path, written: Sequence[Path], names: Sequence[str], suffixes: Sequence[str]
) -> None:
    """Remove what an earlier report wrote under these names and this one did not, and nothing else."""
    for path in (path for name in names for suffix in suffixes for path in folder.glob(name + suffix)):
        if path not in written:
            path.unlink()


@dataclass(frozen=True)
class Selection:
    """The runs shown, their rows of the comparison, and a sentence on what was left out."""

    runs: list[Run]
    rows: pd.DataFrame
    note: str


def select(runs: Sequence[Run], compared: pd.DataFrame, arms: pd.DataFrame) -> Selection:
    """All runs of an experiment; of a large sweep the bases and each arm's best cells, as the note says.

    `arms` is `arms_frame` of the runs: of feedback the best are those of the largest S_overall.
    """
    comparable = set(compared["run_id"])
    shown = [run for run in runs if run.run_id in comparable]
    if len(shown) <= MOST_RUNS:
        return Selection(shown, compared, "")
    picked = _picked(records(compared), arms)
    kept = [run for run in shown if run.run_id in picked]
    where = " (of feedback: the largest S_overall)" if any(compared["scope"]) else ""
    note = (
        f"{len(kept)} of {len(shown)} runs are shown here: the bases and each arm's {BEST} largest "
        f"differences{where}. They were picked after the scores were known, so expect less of them on new "
        "items; the ablation table has every run."
    )
    return Selection(kept, compared.loc[[run_id in picked for run_id in compared["run_id"]]], note)


def _picked(rows: list[dict[str, Any]], arms: pd.DataFrame) -> set[str]:
    """Ids of each arm's best runs and their bases, the best of all arms first, then of other bases."""
    overall: dict[str, Any] = {
        row["run_id"]: row["s_overall"] for row in records(arms) if known(row["s_overall"])
    }
    feedbacks: dict[str, dict[str, Any]] = {
        row["run_id"]: row | {"difference": overall.get(row["run_id"], math.nan)}
        for row in rows
        if row["scope"]
    }
    ranked: list[tuple[int, dict[str, Any]]] = []
    for candidates in (summary_rows(rows), feedbacks.values()):
        by_arm = map_reduce((row for row in candidates if row["arm"] != BASE), itemgetter("arm"))
        for own in by_arm.values():
            own.sort(key=lambda row: -row["difference"] if known(row["difference"]) else math.inf)
            ranked += enumerate(own[:BEST])
    groups = [[row["base_run_id"], row["run_id"]] for _, row in sorted(ranked, key=lambda pair: pair[0])]
    groups += [[row["run_id"]] for row in rows if row["arm"] == BASE]
    picked: set[str] = set()
    for ids in groups:
        if len(picked.union(ids)) <= 4 * MOST_RUNS:
            picked.update(ids)
    return picked


def _first_label(compared: pd.DataFrame, arms: pd.DataFrame) -> str:
    """The arm that the explorer opens with: the method with the largest difference.

    Of feedback it is the first that is told of.
    """
    rows = [row for row in summary_rows(records(compared)) or records(compared) if known(row["difference"])]
    methods = [row for row in rows if row["role"] in METHODS] or rows
    best = max(methods, key=lambda row: row["difference"], default=None)
    first = next((row for row in records(arms) if row["arm"] != BASE), None)
    best = best or first
    return display_name(best) if best else ""


def _facts(
    results_dir: Path, experiments: Sequence[dict[str, Any]], runs: Sequence[Run], selection: Selection
) -> dict[str, Any]:
    """What the page says of the store as a whole, and of where the runs shown came from."""
    names = list(dict.fromkeys(str(e["name"]) for e in experiments))
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    commands = [e["command"] for e in experiments] or [run.provenance["command"] for run in runs]
    notes = [note for run in selection.runs for note in run.result["notes"]]
    return {
        "version": c3po_bench.__version__,
        "name": f"{names[0]}{more}" if names else results_dir.resolve().name,
        "models": sorted({run.result["model"] for run in runs}),
        "tasks": sorted({task for run in runs for task in run.result["tasks"]}),
        "run_count": f"{len(runs):,}",
        "finished": max((run.provenance["finished"][:10] for run in selection.runs), default=""),
        "selection_note": selection.note,
        "has_pathways": any(run.result["backend"] == "rewiring" for run in selection.runs),
        "commands": list(dict.fromkeys(commands))[:10],
        "notes": list(dict.fromkeys(notes))[:20],
        "provenance": [_provenance(run) for run in selection.runs[:MOST_RUNS]],
    }


def _provenance(run: Run) -> dict[str, Any]:
    """What the page says of where one run came from."""
    record, cost = run.provenance, run.result["cost"]

    def listed(values: dict[str, Any]) -> str:
        return ", ".join(f"{name} {value}" for name, value in values.items())

    counts = {name.replace("_", " "): value for name, value in run.result["counts"].items()}
    facts = {
        "command": record["command"],
        "code": f"{record['code_version']} ({record['git_commit']})",
        "model": f"{run.result['model']} ({record['model_hash']})",
        "data": listed(record["data_hashes"]),
        "seeds": listed(record["seeds"]),
        "libraries": listed(record["libraries"]),
        "hardware": listed(record.get("hardware", {})),  # a published study has none
        "time": f"{record['started']} to {record['finished']}",
        "counts": listed(counts),
    }
    config = "not kept: a published study holds what the tables are computed from"
    if (run.path / "config.yaml").exists():
        config = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    return {
        "run_id": run.run_id,
        "summary": f"{cost['items']:,} items in {cost['seconds']:.1f} s",
        "facts": [(name, value) for name, value in facts.items() if value],
        "config": config,
    }
