"""Publishes a store to W&B: a run an arm, one analysis run with the cross-run tables, and the dashboard."""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import wandb
from filelock import FileLock, Timeout

from c3po_bench.analysis.ablation import ablation_table, axes, settings_of
from c3po_bench.analysis.arms import BASE, arm_of
from c3po_bench.analysis.compare import compare, compare_controls, options_of
from c3po_bench.analysis.frames import known, records
from c3po_bench.analysis.overall import WORDS, conclusion
from c3po_bench.analysis.pairing import Partners
from c3po_bench.analysis.verdict import direction, summary_rows
from c3po_bench.errors import UserError
from c3po_bench.masking import clean
from c3po_bench.store.files import write_json, write_text
from c3po_bench.store.reader import Run, load_experiments, load_runs, published
from c3po_bench.tracking import TrackingConfig, tables, views
from c3po_bench.tracking.views import Contents

log = logging.getLogger(__name__)
SUMMARY = ("accuracy", "low", "high", "difference", "diff_low", "diff_high", "p", "p_holm", "fixed", "broken")
SUMMARY += ("p_gold", "gold_difference", "gold_low", "gold_high", "gold_p", "gold_p_holm", "leaks")
SUMMARY += tuple(
    f"{name}{end}" for name in (*WORDS.values(), "drift") for end in ("", "_low", "_high", "_p_holm")
)
TOLD = {1: "beats base", 0: "not told from base", -1: "loses to base"}
FILES = ("result.json", "samples.jsonl", "provenance.json", "config.yaml")
INIT_SECONDS = 30.0
ANALYSIS = "analysis-"


@dataclass
class Published:
    """What one call did."""

    # ids published now: new, or with another result or comparison
    runs: list[str] = field(default_factory=list)
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


def digest(*parts: object) -> str:
    """Twelve hex digits that change when any of `parts` does."""
    return hashlib.sha256(json.dumps([str(p) for p in parts]).encode()).hexdigest()[:12]


def wandb_id(run: Run) -> str:
    """The id of the run in W&B.

    The hash in its folder's name, so that publishing twice means the same run.
    """
    return run.run_id.rpartition("-")[2]


class State:
    """RESULTS_DIR/wandb/published.json.

    By mode and project, the digest of what was published under each id.
    """

    def __init__(self, results_dir: Path, mode: str, target: str) -> None:
        """Read what was published to `target` (entity/project) in `mode`."""
        self.path = results_dir / "wandb" / "published.json"
        self.all = published(results_dir)
        self.here = self.all.setdefault(f"{mode}:{target}", {})

    def analysis_id(self, new: str) -> str:
        """The id of the store's analysis run.

        What it once was published under, in whatever mode and project, else `new`.
        """
        names = (name for here in (self.here, *self.all.values()) for name in here)
        return next((name for name in names if name.startswith(ANALYSIS)), ANALYSIS + new)

    def put(self, name: str, content: Any) -> None:
        """Remember what was published under `name`, at once and atomically."""
        self.here[name] = content
        write_json(self.path, self.all)


class _Publisher:
    def __init__(self, results_dir: Path, runs: list[Run], cfg: TrackingConfig) -> None:
        self.results_dir, self.runs, self.cfg = results_dir, runs, cfg
        self.online = cfg.mode == "online"
        self.experiments = load_experiments(results_dir)
        self.state = State(results_dir, cfg.mode, f"{cfg.entity or ''}/{cfg.project}")
        self.partners = Partners(runs)
        self.groups = {run_id: e["name"] for e in self.experiments for run_id in e["runs"]}
        self.name = next((e["name"] for e in self.experiments), results_dir.resolve().name)
        self.entity = cfg.entity or ""
        self.done = Published()
        self.digests = {
            run.run_id: hashlib.sha256((run.path / "result.json").read_bytes()).hexdigest()[:12]
            for run in runs
        }
        self.rows: dict[str, dict[str, Any]] = {}  # of the comparison and of feedback's arms, by run id
        self.arms = pd.DataFrame()
        self.scopes: dict[str, str] = {}  # of feedback's tasks

    def publish(self, analysis: bool, save_dashboard: bool) -> Published:
        published = self.state.here
        new = [r for r in self.runs if not str(published.get(wandb_id(r))).startswith(self._content(r))]
        whole = digest(*sorted(self.digests.items()), self.name)
        analysis_id = self.state.analysis_id(self._first())
        analysis = analysis and bool(self.runs)
        due = analysis and published.get(analysis_id) != whole
        save = self.online and save_dashboard
        show = due or (analysis and save and published.get("dashboard") != whole)
        compared = pd.DataFrame()
        if new or show:
            compared = compare(
                self.runs if analysis else self._with_bases(new), **options_of(self.results_dir), refused={}
            )
        if len(compared):
            self.rows = {row["run_id"]: row for row in summary_rows(records(compared))}
            self.scopes = {row["task"]: row["scope"] for row in records(compared) if row["scope"]}
            self.arms = views.feedback_arms(self.runs, compared)
            for row in records(self.arms):
                self.rows[row["run_id"]] = row | self.rows.get(row["run_id"], {})
        before = set(self.runs) - set(new) if show else set()
        changed = [r for r in self.runs if r in before and published.get(wandb_id(r)) != self._mark(r)]
        self.done.skipped = len(self.runs) - len(new) - len(changed)
        for run in new:
            self._publish_run(run)
        if due:
            self.state.put(analysis_id, "")  # its id, should this be cut short
        if show:
            ablation = ablation_table(self.runs, compared, self.results_dir)
            controls = compare_controls(self.runs, refused={})
            sentences = conclusion(self.results_dir, self.runs, compared, controls)
            contents = self._contents(axes(ablation))
            if due:
                self._publish_analysis(analysis_id, compared, ablation, sentences, contents)
                self.done.analysis = analysis_id
            for run in changed:  # in their row alone, and last: one more run changes Holm's p of many
                self._publish_run(run, only_row=self.online)
            if due:
                self.state.put(analysis_id, whole)
            if self._dashboard(sentences, contents, save):
                self.state.put("dashboard", whole)
        return self.done

    def _contents(self, varied: list[str]) -> Contents:
        """What the published runs have for panels to show."""
        curves = {name for run in self.runs for name, values in run.result["curves"].items() if values}
        alike = any(known(row.get("accuracy")) for row in self.rows.values())
        moved = any(row["arm"] != BASE for row in self.rows.values())
        return Contents(varied, sorted(curves), alike, len(self.arms) > 0, moved)

    def _first(self) -> str:
        """What stays of a store however it grows: the name and the base of its first experiment."""
        recorded = (run_id for e in self.experiments for run_id in e["runs"])
        return digest(self.name, next(recorded, self.runs[0].run_id if self.runs else ""))

    def _bases(self, run: Run) -> list[Run]:
        return self.partners.by_key.get((run.result["comparison_key"], BASE), [])[:1]

    def _content(self, run: Run) -> str:
        """Changes when the run's result does, or that of the base that its samples stand beside."""
        return digest(*(self.digests[one.run_id] for one in (run, *self._bases(run))))

    def _mark(self, run: Run) -> str:
        """What is remembered of a published run: its content and its row of the comparison."""
        row = self.rows.get(run.run_id, {})
        return f"{self._content(run)}-{digest(*(row.get(name) for name in ('label', *SUMMARY)))}"

    def _with_bases(self, new: Sequence[Run]) -> list[Run]:
        keys = {run.result["comparison_key"] for run in new}
        bases = [run for run in self.partners.bases if run.result["comparison_key"] in keys]
        return [*(base for base in bases if base not in new), *new]

    def _start(self, run_id: str, **options: Any) -> Any:
        if not self.online:  # an older offline copy of the run that was never synced: one id, one folder
            for folder in (self.results_dir / "wandb").glob(f"offline-run-*-{run_id}"):
                if not list(folder.glob("*.synced")):
                    shutil.rmtree(folder, ignore_errors=True)
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
            **clean(options),
        )
        if self.online and run.url:
            self.done.urls.append(run.url)
        return run

    def _publish_run(self, run: Run, only_row: bool = False) -> None:
        """Publish all of a run; with `only_row` just its name and numbers.

        W&B has the rest, and would have it twice.
        """
        result, row = run.result, self.rows.get(run.run_id, {})
        named = settings_of(run) | {
            "model": result["model"]
        }  # under the names of `axes`, as panels ask for them
        settings = {tables.setting_key(name): value for name, value in named.items() if known(value)}
        tags = [tag[:64] for tag in dict.fromkeys([*self._words(run, row), *result["tasks"]])]
        started = self._start(
            wandb_id(run),
            name=row.get("label", run.arm)[:128],
            group=self.groups.get(run.run_id, self.name)[:128],
            job_type="baseline" if run.arm == BASE else result["backend"],
            tags=tags[:20],
            notes="\n".join(result["notes"]),
            config={
                "settings": settings,
                "run_id": run.run_id,
                "config": run.config,
                "provenance": run.provenance,
            },
        )
        with started as target:
            target.summary.update(_numbers(run, row, self.scopes))
            if not only_row:
                _log_curves(target, run)
                self._log_samples(target, run)
                artifact = wandb.Artifact(f"run-{wandb_id(run)}", type="run", metadata={"run_id": run.run_id})
                for name in FILES:
                    if (run.path / name).exists():
                        artifact.add_file(str(run.path / name), name=name)
                target.log_artifact(artifact)
        self.state.put(wandb_id(run), self._mark(run))
        self.done.runs.append(wandb_id(run))

    def _words(self, run: Run, row: dict[str, Any]) -> list[str]:
        """Tags by which one looks for runs: model, arm, its role, and what was found.

        Tasks come after them.
        """
        words = [run.result["model"], run.arm, arm_of(run).role]
        if known(row.get("difference")):
            words.append(TOLD[direction(row)])
        if known(row.get("follows")) and run.arm != BASE:
            words += ["follows"] * (row["follows_sign"] == 1)
            words += [
                name.replace("_", " ") for name in ("leaks_near", "leaks_out") if row[f"{name}_sign"] == 1
            ]
        return words

    def _log_samples(self, target: Any, run: Run) -> None:
        bases, rows = self._bases(run), run.samples()
        samples = tables.samples_table(rows, bases[0].samples() if bases else [])
        histograms = {
            f"histogram/{name}": wandb.Histogram(values)
            for name, values in tables.distributions(rows).items()
        }
        target.log({"samples": _table(samples)} | histograms)

    def _publish_analysis(
        self,
        run_id: str,
        compared: pd.DataFrame,
        ablation: pd.DataFrame,
        sentences: list[str],
        contents: Contents,
    ) -> None:
        started = self._start(
            run_id,
            name=f"analysis of {self.name}"[:128],
            group=self.name[:128],
            job_type="analysis",
            tags=["analysis"],
            config={"runs": [run.run_id for run in self.runs], "axes": contents.axes},
        )
        frames = views.analysis_tables(compared, self.arms, ablation)
        shown = {name: _table(tables.frame_table(frame)) for name, frame in frames.items()}
        for name, picture in views.pictures(compared, self.arms).items():
            shown[name] = wandb.Html(picture, inject=False)
        with started as target:
            target.log(shown)
            target.summary["verdict"] = " ".join(sentences)
            self.entity = target.entity or self.entity

    def _dashboard(self, sentences: list[str], contents: Contents, save: bool) -> bool:
        """Write the dashboard as JSON beside the store; with `save`, save it to W&B, over an earlier one."""
        try:  # wandb-workspaces may be lacking where wandb is not
            from c3po_bench.tracking import dashboard
        except ImportError:
            log.info("no dashboard: pip install wandb-workspaces")
            return True
        entity, saved = self.entity or "your-entity", True
        page = dashboard.report(entity, self.cfg.project, self.name, self.name, sentences, contents)
        view = dashboard.workspace(entity, self.cfg.project, self.name, contents)
        if save:
            try:
                self._save_dashboard(page, view)
            except Exception as error:  # the runs are published; the dashboard can be by publishing again
                log.warning("the W&B dashboard was not saved (%s): %s", type(error).__name__, error)
                saved = False
        preview = {"report": dashboard.as_json(page), "workspace": dashboard.as_json(view)}
        text = json.dumps(preview, indent=1, default=str)
        write_text(self.results_dir / "wandb" / "dashboard.json", text)
        return saved

    def _save_dashboard(self, page: Any, view: Any) -> None:
        page.id = self.state.here.get("dashboard_report") or page.id
        view._internal_name = self.state.here.get("dashboard_workspace") or view._internal_name
        self.state.put("dashboard_report", page.save().id)
        view.save()
        self.state.put("dashboard_workspace", view._internal_name)
        self.done.urls += [page.url, view.url]


def _numbers(run: Run, row: dict[str, Any], scopes: dict[str, str]) -> dict[str, Any]:
    """The numbers that stand in a W&B run's summary: its row of the comparison, its metrics and its cost.

    `scopes` are those of feedback's tasks, where a score is no accuracy.
    """
    cost = run.result["cost"]
    numbers: dict[str, Any] = {name: row.get(name) for name in SUMMARY}
    for task, metrics in run.result["metrics"].items():
        word = WORDS.get(scopes.get(task, ""), "acc")
        numbers |= {f"{word if name == 'acc' else name}/{task}": value for name, value in metrics.items()}
    for phase, spent in cost["phases"].items():
        numbers |= {f"seconds/{phase}": spent["seconds"], f"flops/{phase}": spent["flops"]}
    numbers |= {name: cost[name] for name in ("seconds", "peak_memory_bytes")}
    if cost["items"]:
        numbers["seconds_per_item"] = cost["seconds"] / cost["items"]
    return {name: value for name, value in numbers.items() if _is_number(value)}


def _log_curves(target: Any, run: Run) -> None:
    curves = {name: values for name, values in run.result["curves"].items() if values}
    if not curves:
        return
    target.define_metric("step")
    target.define_metric("curve/*", step_metric="step")
    for step in range(max(map(len, curves.values()))):
        reached = {name: values[step] for name, values in curves.items() if step < len(values)}
        numbers = {f"curve/{name}": value for name, value in reached.items() if _is_number(value)}
        target.log({"step": step} | numbers)


def _table(table: tables.TypedTable) -> Any:
    """A strictly typed, immutable W&B table; a wrong cell raises here, not in the dashboard."""
    rows: list[Any] = table.rows
    return wandb.Table(
        columns=list(table.columns), data=rows, dtype=list(table.columns.values()), optional=True
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
