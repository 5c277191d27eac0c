"""`python -m c3po_bench.headroom`: the planted testbed's numbers, and what the user can mend."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from c3po_bench import headroom
from c3po_bench.store.reader import load_headroom, load_runs
from tests.conftest import ROOT

KEYS = ("base", "h_true", "h_wrong", "s", "p_true", "p_wrong", "p_any", "route_average")
KEYS += ("h_true_when_wrong", "h_wrong_when_wrong")


@pytest.mark.slow
def test_every_option_of_the_planted_testbed_can_be_reached(warm, tmp_path):
    """As computed before the command was written: H_true = H_wrong = 1, and S near base."""
    words = ("+experiment=planted", "limit=40", f"results_dir={tmp_path}", "tracking=disabled", "threads=1")
    done = subprocess.run(
        [sys.executable, "-m", "c3po_bench.headroom", *words, "--routes", "32", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(name in found and f"{name}_interval" in found for name in KEYS)
    assert found["h_true"] == found["h_wrong"] == 1.0
    assert found["h_true_when_wrong"] == found["h_wrong_when_wrong"] == 1.0
    low, high = found["s_over_base_interval"]
    assert low <= 0 <= high and abs(found["s"] - found["base"]) <= 0.1
    assert found["p_true"] > found["base"] and found["p_any"] > 0.5, "drawn routes reach wrong options, too"
    assert found["known_ceiling_arm"] == "planted_optimum" and found["known_ceiling"] >= 0.98
    assert "the oracle's gap is no measure" in done.stdout and "must beat shuffled references" in done.stdout
    run = warm(*words, "arms=[base,oracle]")
    assert run.returncode == 0, run.stderr
    assert "The oracle's gap is no measure of a method" in " ".join(run.stdout.split())
    runs = load_runs(tmp_path)
    record = load_headroom(tmp_path, runs)
    assert record is not None and record["summary"] == found
    assert {r.arm: r.result["metrics"]["planted"]["acc"] for r in runs} == {
        "base": found["base"],
        "oracle": found["h_true"],
    }


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["+experiment=plantd"], "did you mean 'planted'"),
        (["+experiment=planted", "method.step=2"], "did you mean 'method.steps'"),
        (["+experiment=feedback_quick"], "headroom is about routing"),
        (["+experiment=quickstart", "budget=10min"], "budget=10min is for experiments"),
        (["+experiment=planted", "--routes", "0"], "at least 1 route"),
        (["+experiment=planted", "limit=-1"], "limit"),
    ],
)
def test_what_the_user_can_mend_is_one_line(words, line, capsys):
    assert headroom.main(words) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1
