"""A sweep's folder: what was asked for, frozen, and how far each cell is.

RESULTS_DIR/sweep/NAME-HASH/
  sweep.json      name, overrides, code version and commit, when; numbers of the jobs sent so far
  cells/0007.yaml the resolved config of a cell; cells.json the overrides of all
  state/0007.json the last that a worker said of the cell: running, done, failed or stopped
  job-1.sh        the array job, ready to be sent again; groups-1.json its cells; logs/ its output
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from c3po_bench.errors import UserError
from c3po_bench.store.files import parsed, write_json
from c3po_bench.store.provenance import git_commit, now

if TYPE_CHECKING:
    from c3po_bench.config import Config
    from c3po_bench.launch.grid import Grid

SCHEMA_VERSION = 1


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
        return self.read("sweep.json")

    @cached_property
    def cells(self) -> list[list[str]]:
        """Overrides of each cell, by number."""
        return self.read("cells.json")

    def read(self, name: str) -> Any:
        """A JSON file of the folder.

        Raises:
            UserError: where it is missing or damaged.
        """
        if not (self.path / name).is_file():
            raise UserError(f"{self.path} has no {name}: submit the sweep anew")
        return parsed((self.path / name).read_bytes(), str(self.path / name))

    @property
    def launcher(self) -> dict[str, Any]:
        """The launcher's settings that the sweep was last sent with."""
        return self.record.get("launcher", {})

    def keep_launcher(self, launcher: dict[str, Any]) -> None:
        """Remember the launcher's settings for `retry`."""
        write_json(self.path / "sweep.json", {**self.record, "launcher": launcher})

    def groups(self, cells: Sequence[int], size: int) -> list[list[int]]:
        """Cells in groups of at most `size` that share a model, so that one process loads it once."""
        by_model: dict[str, list[int]] = {}
        for cell in cells:
            model = "" if size == 1 else next((o for o in self.cells[cell] if o.startswith("model=")), "")
            by_model.setdefault(model, []).append(cell)
        return [same[i : i + size] for same in by_model.values() for i in range(0, len(same), size)]

    def note_job(self, job: dict[str, Any]) -> None:
        """Add a job (or a launch without one) to sweep.json."""
        record = self.record
        record["jobs"].append({"when": now(), **job})
        write_json(self.path / "sweep.json", record)

    def config(self, cell: int) -> Config:
        """The frozen config of a cell, typed and checked against the schema of the code at hand.

        Raises:
            UserError: when this code no longer knows what the frozen config says.
        """
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        from c3po_bench.config import Config

        path = self.path / "cells" / f"{cell:04d}.yaml"
        try:
            found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path)))
        except OmegaConfBaseException as error:
            line = str(error).splitlines()[0]
            raise UserError(
                f"{path} was frozen by another version of c3po_bench ({line}): submit the sweep anew"
            ) from error
        assert isinstance(found, Config)
        found.results_dir = str(self.results_dir)
        return found

    def state(self, cell: int) -> dict[str, Any] | None:
        """The last state written of a cell, with `age` in seconds since its last sign of life.

        None if there is none.
        """
        path = self.path / "state" / f"{cell:04d}.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            found["seen"] = path.stat().st_mtime
        except (OSError, json.JSONDecodeError):
            return None
        return found

    def set_state(self, cell: int, status: str, **more: Any) -> None:
        """Write a cell's state: running, done, failed or stopped."""
        state = {
            "status": status,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": job_id(),
            "when": now(),
            **more,
        }
        write_json(self.path / "state" / f"{cell:04d}.json", state)

    def beat(self, cell: int) -> None:
        """A sign of life."""
        os.utime(self.path / "state" / f"{cell:04d}.json")

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


def freeze(grid: Grid) -> SweepFolder:
    """Write a grid down; where it is there already (same name, same cells), it is left as it is.

    Raises:
        UserError: if the store can't be written to.
    """
    import c3po_bench

    path = (
        Path(grid.results_dir).resolve() / "sweep" / grid.folder_name
    )  # scripts are sent again from anywhere
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
        heading = " ".join(cell.overrides)
        (path / "cells" / f"{cell.number:04d}.yaml").write_text(f"# {heading}\n{text}", encoding="utf-8")
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
    found = [SweepFolder(path.parent.resolve()) for path in (where / "sweep").glob("*/sweep.json")]
    if not found:
        raise UserError(f"{where} holds no sweep: give the results_dir of one, or a folder in its sweep/")
    return sorted(found, key=lambda folder: folder.record["created"])
