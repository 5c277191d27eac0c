"""Reads the records of an offline .wandb file: LevelDB's log format around wandb's own protocol buffers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER, WANDB_HEADER = 32768, 7, 7
FULL, FIRST, LAST = 1, 2, 4


def records(path: Path) -> Iterator[Any]:
    """Every record of the file, as wandb's `Record`."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, part = WANDB_HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        chunk = data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        part = chunk if kind in (FULL, FIRST) else part + chunk
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            yield record


class OfflineRun:
    """One offline run folder: its start record, its summary, its history rows, its tables and artifacts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (path,) = folder.glob("*.wandb")
        written = list(records(path))
        self.run = next(r.run for r in written if r.HasField("run"))
        self.history = [
            {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in r.history.item}
            for r in written
            if r.HasField("history")
        ]
        updates = [item for r in written if r.HasField("summary") for item in r.summary.update]
        self.summary = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in updates}
        self.artifacts = [r.artifact for r in written if r.HasField("artifact")]
        self.finished = any(r.HasField("exit") for r in written)

    def logged(self, name: str) -> list[Any]:
        """Every value logged under `name`, in order."""
        return [row[name] for row in self.history if name in row]

    def table(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """A logged table: what the log says of it, and its file's columns and data."""
        (entry,) = [
            {key.removeprefix(f"{name}/"): value for key, value in row.items() if key.startswith(f"{name}/")}
            for row in self.history
            if f"{name}/path" in row
        ]
        return entry, json.loads((self.folder / "files" / entry["path"]).read_text())


def offline_runs(results_dir: Path) -> dict[str, OfflineRun]:
    """The offline runs beside a store by id; fails where two folders carry one id."""
    runs: dict[str, OfflineRun] = {}
    for folder in sorted((results_dir / "wandb").glob("offline-run-*")):
        run = OfflineRun(folder)
        assert run.run.run_id not in runs, f"{run.run.run_id} was published twice"
        runs[run.run.run_id] = run
    return runs
