"""Publishes a store to W&B: a run an arm, one analysis run with the cross-run tables, and the dashboard."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from c3po_bench.analysis.ablation import ablation_table, axes, settings_of
from c3po_bench.analysis.arms import BASE
from c3po_bench.analysis.compare import compare, compare_controls, known, records
from c3po_bench.analysis.pairing import Partners
from c3po_bench.analysis.verdict import summary_rows, verdict
from c3po_bench.errors import UserError
from c3po_bench.store.reader import load_experiments, load_runs
from c3po_bench.tracking import dashboard, tables
from c3po_bench.tracking.config import TrackingConfig
from c3po_bench.tracking.state import State, digest, run_digest, wandb_id

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run

log = logging.getLogger(__name__)
SUMMARY = ("accuracy", "low", "high", "difference", "diff_low", "diff_high", "p", "p_holm", "fixed", "broken")
FILES = ("result.json", "samples.jsonl", "provenance.json", "config.yaml")
INIT_SECONDS = 30.0
NOTHING = pd.DataFrame()


@dataclass
class Published:
    """What one call did."""

    runs: list[str] = field(
        default_factory=list
    )  # ids published now: new, or changed in result or comparison
    skipped: int = 0  # published before, unchanged
    analysis: str | None = None
    urls: list[str] = field(default_factory=list)


def publish_store(
    results_dir: str | Path, cfg: TrackingConfig, *, analysis: bool = True, save_dashboard: bool = True
) -> Published:
    """Publish what is new in a store, in `cfg.mode` (offline: files beside the store, for `wandb sync`).

    Idempotent: ids are the runs' own hashes, and a file beside the store remembers what was published. With
    `analysis` runs whose row of the comparison changed as the store grew, and the store's one run with the
    tables `comparison` and `ablation`, are brought up to date and the dashboard written to
    RESULTS_DIR/wandb/dashboard.json, and, online and with `save_dashboard`, saved. Raises UserError when
    another process is publishing this store.
    """
    from filelock import FileLock, Timeout

    results_dir = Path(results_dir)
    runs = load_runs(results_dir)
    folder = results_dir / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "publish.lock", timeout=0):
            return _Publisher(results_dir, runs, cfg).publish(analysis, save_dashboard)
    except Timeout as error:
        raise UserError(
            f"another process is publishing {results_dir}; run this again when it is done"
        ) from error


class _Publisher:
    def __init__(self, results_dir: Path, runs: list[Run], cfg: TrackingConfig) -> None:
        self.results_dir, self.runs, self.cfg = results_dir, runs, cfg
        self.experiments = load_experiments(results_dir)
        self.state = State(results_dir, cfg.mode, f"{cfg.entity or ''}/{cfg.project}")
        self.partners = Partners(runs)
        self.groups = {run_id: str(e["name"]) for e in self.experiments for run_id in e.get("runs") or []}
        self.name = next((str(e["name"]) for e in self.experiments), results_dir.resolve().name)
        self.entity = cfg.entity or ""
        self.done = Published()
        self.digests = {run.run_id: run_digest(run) for run in runs}
        self.rows: dict[str, dict[str, Any]] = {}  # of the comparison, by run id

    def publish(self, analysis: bool, save_dashboard: bool) -> Published:
        new = [
            run for run in self.runs if not str(self.state.get(wandb_id(run))).startswith(self._content(run))
        ]
        whole = digest(*sorted(self.digests.items()), self.name)
        analysis_id = self.state.analysis_id(self._first())
        due = analysis and bool(self.runs) and not self.state.has(analysis_id, whole)
        online = self.cfg.mode == "online" and save_dashboard
        show = due or (analysis and online and bool(self.runs) and not self.state.has("dashboard", whole))
        compared = (
            compare(self.runs if analysis else self._with_bases(new), refused={}) if new or show else NOTHING
        )
        self.rows = {row["run_id"]: row for row in summary_rows(records(compared))} if len(compared) else {}
        known = {run.run_id for run in self.runs if show} - {run.run_id for run in new}
        changed = [
            r for r in self.runs if r.run_id in known and not self.state.has(wandb_id(r), self._mark(r))
        ]
        self.done.skipped = len(self.runs) - len(new) - len(changed)
        for run in new:
            self._publish_run(run)
        if show:
            ablation = ablation_table(self.runs, compared, self.results_dir)
            said = verdict(compared, compare_controls(self.runs, refused={}))
        if due:
            self.state.put(analysis_id, "")  # its id, should this be cut short
            self._publish_analysis(analysis_id, compared, said, ablation)
            self.done.analysis = analysis_id
        for run in changed:  # in their row alone, and last: one more run changes Holm's p of many
            self._publish_run(run, only_row=self.cfg.mode == "online")
        if due:
            self.state.put(analysis_id, whole)
        if show and self._dashboard(said, axes(ablation), online):
            self.state.put("dashboard", whole)
        return self.done

    def _first(self) -> str:
        """What stays of a store however it grows: the name and the base of its first experiment."""
        recorded = (run_id for e in self.experiments for run_id in e.get("runs") or [])
        return digest(self.name, next(recorded, self.runs[0].run_id if self.runs else ""))

    def _bases(self, run: Run) -> list[Run]:
        return self.partners.by_key.get((str(run.result.get("comparison_key")), BASE), [])[:1]

    def _content(self, run: Run) -> str:
        """Changes when the run's result does, or that of the base that its samples stand beside."""
        return digest(*(self.digests[one.run_id] for one in (run, *self._bases(run))))

    def _mark(self, run: Run) -> str:
        """What is remembered of a published run: its content and its row of the comparison."""
        row = self.rows.get(run.run_id, {})
        return f"{self._content(run)}-{digest(*(row.get(name) for name in ('label', *SUMMARY)))}"

    def _with_bases(self, new: Sequence[Run]) -> list[Run]:
        keys = {run.result.get("comparison_key") for run in new}
        chosen = {run.run_id for run in new}
        bases = [
            r
            for r in self.partners.bases
            if r.result.get("comparison_key") in keys and r.run_id not in chosen
        ]
        return bases + list(new)

    def _start(self, run_id: str, **options: Any) -> Any:
        import wandb

        if self.cfg.mode == "offline":
            self._forget_offline(run_id)
        settings = wandb.Settings(
            init_timeout=INIT_SECONDS,
            console="off",
            disable_git=True,
            save_code=False,
            silent=True,
            x_disable_stats=True,
            # of this process, listed anew for each run: the run's own are in provenance.json
            x_save_requirements=False,
        )
        mode: Any = self.cfg.mode
        run = wandb.init(
            project=self.cfg.project,
            entity=self.cfg.entity,
            id=run_id,
            dir=str(self.results_dir),
            mode=mode,
            resume="allow",
            reinit="create_new",
            settings=settings,
            **options,
        )
        if self.cfg.mode == "online" and run.url:
            self.done.urls.append(run.url)
        return run

    def _forget_offline(self, run_id: str) -> None:
        """Remove an older offline copy of the same run that was never synced: one id, one folder."""
        for folder in (self.results_dir / "wandb").glob(f"offline-run-*-{run_id}"):
            if not list(folder.glob("*.synced")):
                shutil.rmtree(folder, ignore_errors=True)

    def _publish_run(self, run: Run, only_row: bool = False) -> None:
        """Publish all of a run; with `only_row` just its name and numbers.

        W&B has the rest, and would have it twice.
        """
        result, row = run.result, self.rows.get(run.run_id, {})
        named = settings_of(run) | {
            "model": result.get("model")
        }  # under the names of `axes`, as panels ask for them
        settings = {name: value for name, value in named.items() if known(value)}
        tags = [
            str(t)[:64]
            for t in dict.fromkeys([result.get("model"), run.arm, *(result.get("tasks") or [])])
            if t
        ]
        started = self._start(
            wandb_id(run),
            name=(row.get("label") or run.arm)[:128],
            group=self.groups.get(run.run_id, self.name)[:128],
            job_type="baseline" if run.arm == BASE else str(result.get("backend") or "run"),
            tags=tags[:20],
            notes="\n".join(map(str, result.get("notes") or [])),
            config={
                "settings": settings,
                "run_id": run.run_id,
                "config": run.config,
                "provenance": run.provenance,
            },
        )
        with started as target:
            self._log_numbers(target, run, row)
            if not only_row:
                self._log_curves(target, run)
                self._log_samples(target, run)
                self._log_files(target, run)
        self.state.put(wandb_id(run), self._mark(run))
        self.done.runs.append(wandb_id(run))

    def _log_numbers(self, target: Any, run: Run, row: dict[str, Any]) -> None:
        numbers = {name: row[name] for name in SUMMARY if _is_number(row.get(name))}
        for task, metrics in (run.result.get("metrics") or {}).items():
            numbers |= {f"{name}/{task}": value for name, value in metrics.items() if _is_number(value)}
        cost = run.result.get("cost") or {}
        numbers |= {"seconds": cost.get("seconds"), "peak_memory_bytes": cost.get("peak_memory_bytes")}
        for phase, spent in (cost.get("phases") or {}).items():
            numbers |= {f"seconds/{phase}": spent.get("seconds"), f"flops/{phase}": spent.get("flops")}
        if cost.get("items"):
            numbers["seconds_per_item"] = (cost.get("seconds") or 0.0) / cost["items"]
        target.summary.update({name: value for name, value in numbers.items() if _is_number(value)})

    def _log_curves(self, target: Any, run: Run) -> None:
        curves = {str(name): values for name, values in (run.result.get("curves") or {}).items() if values}
        if not curves:
            return
        target.define_metric("step")
        target.define_metric("curve/*", step_metric="step")
        for step in range(max(map(len, curves.values()))):
            values = {
                f"curve/{name}": v[step]
                for name, v in curves.items()
                if step < len(v) and _is_number(v[step])
            }
            target.log({"step": step} | values)

    def _log_samples(self, target: Any, run: Run) -> None:
        import wandb

        bases, rows = self._bases(run), run.samples()
        logged: dict[str, Any] = {
            "samples": _table(tables.samples_table(rows, bases[0].samples() if bases else []))
        }
        for name, values in tables.distributions(rows).items():
            logged[f"histogram/{name}"] = wandb.Histogram(values)
        target.log(logged)

    def _log_files(self, target: Any, run: Run) -> None:
        import wandb

        artifact = wandb.Artifact(name=f"run-{wandb_id(run)}", type="run", metadata={"run_id": run.run_id})
        for name in FILES:
            if (run.path / name).exists():
                artifact.add_file(str(run.path / name), name=name)
        target.log_artifact(artifact)

    def _publish_analysis(
        self, run_id: str, compared: pd.DataFrame, said: str, ablation: pd.DataFrame
    ) -> None:
        started = self._start(
            run_id,
            name=f"analysis of {self.name}"[:128],
            group=self.name[:128],
            job_type="analysis",
            config={"runs": [run.run_id for run in self.runs], "axes": axes(ablation)},
        )
        with started as target:
            target.log(
                {
                    "comparison": _table(tables.comparison_table(compared)),
                    "ablation": _table(tables.ablation_table(ablation)),
                }
            )
            target.summary["verdict"] = said
            self.entity = target.entity or self.entity

    def _dashboard(self, said: str, varied: list[str], save: bool) -> bool:
        """Write the dashboard as JSON beside the store; online, save it, and over itself the next time."""
        try:
            import wandb_workspaces  # noqa: F401
        except ImportError:
            log.info("no dashboard: pip install wandb-workspaces")
            return True
        sentences = [part.strip() for part in said.split(". ") if part.strip()]
        entity, saved = self.entity or "your-entity", True
        page = dashboard.report(entity, self.cfg.project, self.name, self.name, sentences, varied)
        view = dashboard.workspace(entity, self.cfg.project, self.name, varied)
        if save:
            try:
                self._save_dashboard(page, view)
            except (
                Exception
            ) as error:  # the runs are published; the dashboard can be saved by publishing again
                log.warning("the W&B dashboard was not saved (%s): %s", type(error).__name__, error)
                saved = False
        preview = {"report": dashboard.as_json(page), "workspace": dashboard.as_json(view)}
        path = self.results_dir / "wandb" / "dashboard.json"
        path.write_text(json.dumps(preview, indent=1, default=str), encoding="utf-8")
        return saved

    def _save_dashboard(self, page: Any, view: Any) -> None:
        page.id = self.state.get("dashboard_report") or page.id
        view._internal_name = self.state.get("dashboard_workspace") or view._internal_name
        self.state.put("dashboard_report", page.save().id)
        view.save()
        self.state.put("dashboard_workspace", view._internal_name)
        self.done.urls += [page.url, view.url]


def _table(table: tables.TypedTable) -> Any:
    """A strictly typed, immutable W&B table; a wrong cell raises here, not in the dashboard."""
    import wandb

    rows: list[Any] = table.rows
    return wandb.Table(
        columns=list(table.columns), data=rows, dtype=list(table.columns.values()), optional=True
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or value is None or value is pd.NA:
        return False
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")
