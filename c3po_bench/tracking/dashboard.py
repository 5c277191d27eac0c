"""The W&B dashboard as code.

A workspace and a report of a store, savable online, readable as JSON anywhere. A panel asks only for what the
published runs have: numbers in their summaries, settings in their configs, curves in their histories.
"""

from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from c3po_bench.tracking.tables import setting_key
from c3po_bench.tracking.views import DIFFERENCES, OVERALL, Contents


def report(entity: str, project: str, name: str, group: str, verdict: list[str], contents: Contents) -> Any:
    """A `wandb_workspaces` report: verdict, intervals, arms, tables, ablation, flips."""
    # run sets without a project take the report's own, which needs no look-up and so works offline
    arms = wr.Runset(name="arms", filters=f"Metric('group') == {group!r} and Metric('jobType') != 'analysis'")
    analysis = wr.Runset(
        name="analysis", filters=f"Metric('group') == {group!r} and Metric('jobType') == 'analysis'"
    )
    tables: list[Any] = [wr.WeavePanelSummaryTable(table_name=table) for table in contents.tables()]
    blocks = [
        wr.H1(text=name),
        *[wr.P(text=sentence) for sentence in verdict],
        *([wr.PanelGrid(runsets=[analysis], panels=figure_panels(contents))] if contents.moved else []),
        wr.H2(text="Arms"),
        wr.PanelGrid(runsets=[arms], panels=arm_panels(contents)),
        wr.H2(text="Tables"),
        wr.PanelGrid(runsets=[analysis], panels=tables),
        *(
            [wr.H2(text="Settings"), wr.PanelGrid(runsets=[arms], panels=setting_panels(contents))]
            * bool(contents.axes)
        ),
        wr.H2(text="Items"),
        wr.PanelGrid(runsets=[arms], panels=[wr.WeavePanelSummaryTable(table_name="samples")]),
    ]
    return wr.Report(
        entity=entity,
        project=project,
        title=name,
        description="Made by c3po_bench from its store.",
        blocks=blocks,
    )


def workspace(entity: str, project: str, name: str, contents: Contents) -> Any:
    """A `wandb_workspaces` workspace with the same panels in sections."""
    tables: list[Any] = [
        wr.WeavePanelSummaryTable(table_name=table) for table in (*contents.tables(), "samples")
    ]
    panels = (figure_panels(contents) if contents.moved else []) + arm_panels(contents)
    sections = [ws.Section(name="Arms", panels=panels, is_open=True)]
    if contents.axes:
        sections.append(ws.Section(name="Settings", panels=setting_panels(contents)))
    sections.append(ws.Section(name="Tables", panels=tables))
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections)


def figure_panels(contents: Contents) -> list[Any]:
    """The charts with intervals that the analysis run holds."""
    keys = [DIFFERENCES] * contents.alike + [OVERALL] * contents.feedback
    return [wr.MediaBrowser(title="With 95% intervals", media_keys=[key], num_columns=1) for key in keys]


def arm_panels(contents: Contents) -> list[Any]:
    """By arm: accuracy, difference, cost, flips; of feedback what it follows and where it leaks; curves by step."""
    panels: list[Any] = []
    if contents.feedback:
        panels += [
            wr.BarPlot(title="S overall (0.5: as base)", metrics=["s_overall"]),
            wr.BarPlot(title="Follows, in scope", metrics=["follows"]),
            wr.BarPlot(title="Leaks, near and out of scope", metrics=["leaks_near", "leaks_out"]),
            wr.ScatterPlot(title="Follows against leaks: up and left is better", x="leaks", y="follows"),
        ]
    if contents.alike:
        panels.append(wr.BarPlot(title="Accuracy", metrics=["accuracy"], title_x="share correct"))
    if contents.alike and contents.moved:
        panels += [
            wr.BarPlot(title="Difference to base", metrics=["difference"]),
            wr.ScatterPlot(title="Cost against gain", x="seconds_per_item", y="difference", log_x=True),
            wr.BarPlot(title="Fixed and broken items", metrics=["fixed", "broken"]),
        ]
    if contents.curves:
        names: Any = [f"curve/{name}" for name in contents.curves]
        panels.append(wr.LinePlot(title="Loss and other curves by step", x="step", y=names))
    return panels


def setting_panels(contents: Contents) -> list[Any]:
    """What is measured over each varied setting, and over all at once."""
    measured = ["difference"] * (contents.alike and contents.moved) + ["s_overall"] * contents.feedback
    settings = {axis: wr.Config(f"settings.{setting_key(axis)}") for axis in contents.axes}
    panels: list[Any] = [
        wr.ScatterPlot(title=f"{measure.replace('_', ' ')} over {axis}", x=setting, y=measure)
        for measure in measured
        for axis, setting in settings.items()
    ]
    if len(settings) >= 2:
        metrics = [*settings.values(), *measured]
        columns = [wr.ParallelCoordinatesPlotColumn(metric=metric) for metric in metrics]
        panels.append(wr.ParallelCoordinatesPlot(title="Settings", columns=columns))
    return panels


def as_json(view: Any) -> dict[str, Any]:
    """What `view.save()` would send, as plain data: the dashboard's preview without a network."""
    return view._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
