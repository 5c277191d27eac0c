"""What analysis knows of an arm is what its run says, whoever made the arm."""

from __future__ import annotations

import numpy as np

from c3po_bench.analysis.arms import arm_of, display_name
from c3po_bench.analysis.compare import compare, compare_controls
from c3po_bench.analysis.frames import records
from c3po_bench.analysis.verdict import verdict
from tests import store_factory as factory

PLUGIN = {"name": "nearest", "title": "nearest pathway", "role": "method"}
CONTROL = {"name": "farthest", "title": "farthest pathway", "role": "control", "control_of": "nearest"}
CONTROL |= {"change": "the farthest neighbor", "not_due_to": "nearness"}


def test_an_arm_of_a_plugin_has_title_and_control_like_our_own(tmp_path):
    scores = {"base": np.zeros(40), "nearest": np.ones(40), "farthest": np.ones(40)}
    rows = {"base": factory.arm_row("base"), "nearest": PLUGIN, "farthest": CONTROL}
    runs = [
        factory.write_run(
            tmp_path, arm, factory.sample_rows(arm, "arc", own, details=False), arm_row=rows[arm]
        )
        for arm, own in scores.items()
    ]
    for run in runs:  # written answers: guessing has no chance of being right
        factory.edit(run, lambda row: row.update(choices=None, loglikelihoods=None, prediction="18"))
    assert arm_of(runs[2]).control_of == "nearest" and arm_of(runs[2]).losses_over == "steps"
    frame, controls = compare(runs, draws=100), compare_controls(runs, draws=100)
    assert [(row["title"], row["role"]) for row in records(frame)][1:] == [
        ("nearest pathway", "method"),
        ("farthest pathway", "control"),
    ]
    assert (controls["arm"].item(), controls["control"].item()) == ("nearest", "farthest")
    words = verdict(frame, controls)
    assert words.startswith("Nearest pathway beats base by 100.0 points")
    assert "with the farthest neighbor it gains, too" in words and "Farthest" not in words


def test_a_row_is_called_by_its_title_and_its_settings():
    row = {"arm": "ngd", "title": "NGD", "label": "ngd (k=1) [e8d54f]"}
    assert display_name(row) == "NGD (k=1) [e8d54f]"
    assert display_name(row | {"label": "ngd"}) == "NGD"
