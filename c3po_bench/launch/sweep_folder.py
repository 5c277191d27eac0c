"""A sweep's folder: what was asked for, frozen, and how far each cell is.

RESULTS_DIR/sweep/NAME-HASH/
  sweep.json      name, overrides, code version and commit, when; numbers of the jobs sent so far
  cells/0007.yaml the resolved config of a cell; cells.json the overrides of all
  state/0007.json the last that a worker wrote of the cell: running, done, failed or stopped
  job-1.sh        the array job, ready to be sent again; groups-1.json its cells; logs/ its output
"""

import os
import shlex
import socket
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from more_itertools import chunked, map_reduce
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import c3po_bench
from c3po_bench.config import Config, check_secrets
from c3po_bench.errors import UserError
from c3po_bench.launch.grid import Grid
from c3po_bench.store.files import write_json, write_settings
from c3po_bench.store.provenance import git_commit, now
from c3po_bench.store.records import read_json, read_yaml
from c3po_bench.store.schema import SCHEMA_VERSION, CellState, SweepRecord


class SweepFolder:
    """Reads and writes one sweep's folder. Cells are named by their number."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def results_dir(self) -> Path:
        """The store that the sweep's runs go to."""
        return self.path.parent.parent

    @property
    def record(self) -> dict[str, Any]:
        """sweep.json."""
        return self.read("sweep.json", SweepRecord)

    @cached_property
    def cells(self) -> list[list[str]]:
        """Overrides of each cell, by number."""
        return self.read("cells.json", list[list[str]])

    def read(self, name: str, kind: Any) -> Any:
        """A JSON file of the folder, of its kind.

        Raises:
            UserError: where it is missing or damaged.
        """
        if not (self.path / name).is_file():
            raise UserError(f"{self.path} has no {name}: submit the sweep anew")
        return read_json(
            self.path / name, kind, "put it back, or delete the sweep's folder and submit it anew"
        )

    def update(self, **changes: Any) -> None:
        """Write `changes` into sweep.json."""
        write_json(self.path / "sweep.json", {**self.record, **changes})

    def note_job(self, **job: Any) -> None:
        """Add a job (or a launch without one) to sweep.json."""
        self.update(jobs=[*self.record["jobs"], {"when": now(), **job}])

    def groups(self, cells: Sequence[int], size: int) -> list[list[int]]:
        """Cells in groups of at most `size` that share a model, so that one process loads it once."""
        if size == 1:
            return [[cell] for cell in cells]
        by_model = map_reduce(
            cells, lambda cell: next((o for o in self.cells[cell] if o.startswith("model=")), "")
        )
        return [group for same in by_model.values() for group in chunked(same, size)]

    def config(self, cell: int) -> Config:
        """The frozen config of a cell, typed and checked against the schema of the code at hand.

        Raises:
            UserError: when this code no longer knows what the frozen config says.
        """
        path = self.path / "cells" / f"{cell:04d}.yaml"
        try:
            config = typed_config(read_yaml(path, dict, "submit the sweep anew"))
        except OmegaConfBaseException as error:
            line = str(error).splitlines()[0]
            raise UserError(
                f"{path} was frozen by another version of c3po_bench ({line}): submit the sweep anew"
            ) from error
        config.results_dir = str(self.results_dir)
        return config

    def state(self, cell: int) -> dict[str, Any] | None:
        """The last state written of a cell, with `seen`, the time of its last sign of life.

        None if there is none.

        Raises:
            UserError: where it is damaged.
        """
        path = self._state(cell)
        if not path.exists():
            return None
        state = read_json(
            path, CellState, "delete it: the cell then counts as missing, and retry runs it again"
        )
        return state | {"seen": path.stat().st_mtime}

    def set_state(self, cell: int, status: str, **more: Any) -> None:
        """Write a cell's state: running, done, failed or stopped."""
        where = {"host": socket.gethostname(), "pid": os.getpid(), "job": job_id()}
        write_json(self._state(cell), {"status": status, **where, "when": now(), **more})

    def beat(self, cell: int) -> None:
        """A sign of life."""
        os.utime(self._state(cell))

    def _state(self, cell: int) -> Path:
        return self.path / "state" / f"{cell:04d}.json"

    def clock(self) -> float:
        """Now, by the clock of the file system that the signs of life are stamped by.

        By ours where it can't be written.
        """
        mark = self.path / "state" / ".clock"
        try:
            mark.touch()
        except OSError:
            return time.time()
        return mark.stat().st_mtime


def job_id() -> str | None:
    """This process's Slurm job as `squeue` names it: 12 or 12_3 in an array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def typed_config(values: Any) -> Config:
    """The typed config of a mapping of composed values.

    Raises:
        OmegaConfBaseException: for what the schema refuses.
    """
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), values))
    assert isinstance(config, Config)
    return config


def freeze(grid: Grid) -> SweepFolder:
    """Write a grid down; where it is there already (same name, same cells), it is left as it is.

    Raises:
        UserError: if the store can't be written to.
    """
    for cell in grid.cells:
        check_secrets(cell.config)
    # scripts are sent again from anywhere
    path = Path(grid.results_dir).resolve() / "sweep" / grid.folder_name
    folder = SweepFolder(path)
    if (path / "sweep.json").exists():
        return folder
    try:
        for name in ("cells", "state", "logs"):
            (path / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"results_dir={grid.results_dir} can't be written to: {error.strerror}") from error
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    for cell in grid.cells:
        text = yaml.dump(cell.config, Dumper=dumper, sort_keys=False, allow_unicode=True)
        heading = f"# {' '.join(cell.overrides)}\n"
        write_settings(path / "cells" / f"{cell.number:04d}.yaml", heading + text)
    write_json(path / "cells.json", [list(cell.overrides) for cell in grid.cells])
    record = {
        "schema_version": SCHEMA_VERSION,
        "name": grid.name,
        "overrides": list(grid.overrides),
        "cells": len(grid.cells),
        "code_version": c3po_bench.__version__,
        "git_commit": git_commit(),
        "command": " ".join(["python -m c3po_bench -m", *map(shlex.quote, grid.overrides)]),
        "cwd": str(Path.cwd()),
        "created": now(),
        "jobs": [],
    }
    write_json(path / "sweep.json", record)
    return folder


def find_sweeps(where: str | Path) -> list[SweepFolder]:
    """The sweep folders that `where` means: one itself, or all in a results_dir, oldest first.

    Raises:
        UserError: if there is none.
    """
    where = Path(where)
    if (where / "sweep.json").exists():
        return [SweepFolder(where.resolve())]
    folders = [SweepFolder(path.parent.resolve()) for path in (where / "sweep").glob("*/sweep.json")]
    if not folders:
        raise UserError(f"{where} holds no sweep: give the results_dir of one, or a folder in its sweep/")
    return sorted(folders, key=lambda folder: folder.record["created"])
