"""The notebook for people who start there: its cells run from top to bottom, in a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs" / "notebooks" / "quickstart.ipynb"


@pytest.mark.slow
def test_every_cell_runs_and_the_notebook_is_stored_without_outputs(tmp_path):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    script = "\n\n".join("".join(cell["source"]) for cell in code)
    script += "\n\nassert done.returncode == 0\nprint(comparison['verdict'], len(changed))\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    last = done.stdout.strip().splitlines()[-1]
    assert "ngd" in last.lower() and not last.endswith(" 0"), last
