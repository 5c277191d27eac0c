"""The W&B dashboard as code.

A workspace and a report of a store, savable online, readable as JSON anywhere.
"""

from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

TASK_METRIC = "accuracy"


def report(entity: str, project: str, name: str, group: str, verdict: list[str], axes: list[str]) -> Any:
    """A `wandb_workspaces` report: verdict, arms, cost, curves, ablation, flips."""
    # run sets without a project take the report's own, which needs no look-up and so works offline
    arms = wr.Runset(name="arms", filters=f"Metric('group') == {group!r} and Metric('jobType') != 'analysis'")
    analysis = wr.Runset(
        name="analysis", filters=f"Metric('group') == {group!r} and Metric('jobType') == 'analysis'"
    )
    blocks = [
        wr.H1(text=name),
        *[wr.P(text=sentence) for sentence in verdict],
        wr.H2(text="Arms"),
        wr.PanelGrid(runsets=[arms], panels=arm_panels()),
        wr.H2(text="Comparison"),
        wr.PanelGrid(runsets=[analysis], panels=[wr.WeavePanelSummaryTable(table_name="comparison")]),
        wr.H2(text="Ablation"),
        wr.PanelGrid(runsets=[analysis, arms], panels=ablation_panels(axes)),
        wr.H2(text="Which items changed"),
        wr.PanelGrid(runsets=[arms], panels=[wr.WeavePanelSummaryTable(table_name="samples")]),
    ]
    return wr.Report(
        entity=entity,
        project=project,
        title=name,
        description="Made by c3po_bench from its store.",
        blocks=blocks,
    )


def workspace(entity: str, project: str, name: str, axes: list[str]) -> Any:
    """A `wandb_workspaces` workspace with the same panels in sections."""
    tables: list[Any] = [
        wr.WeavePanelSummaryTable(table_name=table) for table in ("comparison", "ablation", "samples")
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(name="Arms", panels=arm_panels(), is_open=True),
            ws.Section(name="Ablation", panels=ablation_panels(axes)),
            ws.Section(name="Tables", panels=tables),
        ],
    )


def arm_panels() -> list[Any]:
    """Accuracy and difference by arm, cost against gain, loss by step, how far pathways moved."""
    return [
        wr.BarPlot(title="Accuracy", metrics=[TASK_METRIC], title_x="share correct"),
        wr.BarPlot(title="Difference to base", metrics=["difference"]),
        wr.ScatterPlot(title="Cost against gain", x="seconds_per_item", y="difference", log_x=True),
        wr.LinePlot(title="Loss by step", x="step", y=["curve/surrogate_loss", "curve/train_loss"]),
        wr.BarPlot(title="Fixed and broken items", metrics=["fixed", "broken"]),
    ]


def ablation_panels(axes: list[str]) -> list[Any]:
    """The ablation table, the difference over each varied setting, and all settings at once."""
    settings = {axis: f"c::settings.{axis}" for axis in axes}
    panels: list[Any] = [
        wr.WeavePanelSummaryTable(table_name="ablation"),
        *(
            wr.ScatterPlot(title=f"Difference over {axis}", x=setting, y="difference")
            for axis, setting in settings.items()
        ),
    ]
    if len(axes) >= 2:
        metrics = [*settings.values(), "difference"]
        columns = [wr.ParallelCoordinatesPlotColumn(metric=metric) for metric in metrics]
        panels.append(wr.ParallelCoordinatesPlot(title="Settings", columns=columns))
    return panels


def as_json(view: Any) -> dict[str, Any]:
    """What `view.save()` would send, as plain data: the dashboard's preview without a network."""
    return view._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
