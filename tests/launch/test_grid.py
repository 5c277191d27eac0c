"""From overrides to cells: what Hydra would run, frozen into a folder that is named by its content."""

from __future__ import annotations

import pytest

from c3po_bench.errors import UserError
from c3po_bench.launch.grid import compose_grid
from c3po_bench.launch.sweep_folder import find_sweeps
from tests.launch.conftest import GRID


def test_a_grid_is_what_hydra_would_run(tmp_path):
    grid = compose_grid([*GRID, f"results_dir={tmp_path}"])
    points = [(c.config["method"]["neighbors"]["k"], c.config["embedder"]["name"]) for c in grid.cells]
    assert points == [(1, "minilm"), (1, "hidden_states"), (2, "minilm"), (2, "hidden_states")]
    assert grid.cells[0].config["model"]["kind"] == "tiny"


def test_the_same_grid_has_the_same_folder_and_another_has_another(tmp_path):
    names = [
        compose_grid([*GRID, f"results_dir={tmp_path}", f"seed={seed}"]).folder_name for seed in (0, 0, 1)
    ]
    assert names[0] == names[1] != names[2]


def test_a_key_that_is_none_is_refused_before_cells_are_frozen(tmp_path):
    with pytest.raises(UserError, match=r"unknown key 'method.stps': did you mean 'method.steps'"):
        compose_grid([*GRID, "++method.stps=3", f"results_dir={tmp_path}"])


def test_a_frozen_cell_comes_back_typed(folder):
    config = folder.config(2)
    assert config.method.neighbors.k == 2 and config.results_dir == str(folder.results_dir)
    path = folder.path / "cells" / "0002.yaml"
    path.write_text(path.read_text() + "\nno_longer_known: 1\n")
    with pytest.raises(UserError, match="another version"):
        folder.config(2)


def test_no_sweep_is_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no sweep"):
        find_sweeps(tmp_path)
