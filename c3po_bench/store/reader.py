"""Reading a store: everything downstream (analysis, report, W&B) starts here."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from c3po_bench.errors import DamagedFile, UserError
from c3po_bench.store.files import damaged, parsed
from c3po_bench.store.records import bytes_checksum, read_json, read_yaml
from c3po_bench.store.schema import SCHEMA_VERSION, Experiment, Provenance, Result

AGAIN = "put it back, or delete its folder's result.json and run again: finished items are not answered anew"


@dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path

    @cached_property
    def result(self) -> dict[str, Any]:
        """result.json; see `store.schema.Result`.

        Raises:
            UserError: if it is damaged, or another version wrote it.
        """
        result = read_json(self.path / "result.json", dict, AGAIN)
        if (version := result.get("schema_version")) != SCHEMA_VERSION:
            raise UserError(
                f"{self.path}/result.json has schema version {version}, which this version of c3po_bench does not read "
                f"(it reads {SCHEMA_VERSION}): run again into another results_dir"
            )
        return read_json(self.path / "result.json", Result, AGAIN)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The composed config."""
        return read_yaml(self.path / "config.yaml", dict, AGAIN)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """provenance.json; see `store.schema.Provenance`."""
        return read_json(self.path / "provenance.json", Provenance, AGAIN)

    @property
    def run_id(self) -> str:
        """Name of the run folder."""
        return self.path.name

    @property
    def arm(self) -> str:
        """Name of the arm."""
        return self.result["arm"]

    @property
    def stored_samples(self) -> bytes:
        """samples.jsonl as it is.

        Raises:
            UserError: where it is missing, empty, cut short, or not what was written with the result.
        """
        path = self.path / "samples.jsonl"
        if not path.exists():
            raise DamagedFile(f"{self.path} has a result but no samples.jsonl: {AGAIN}")
        data = path.read_bytes()
        known = self.provenance.get("checksums", {}).get(path.name)
        if (known and bytes_checksum(data) != known) or not data.endswith(b"\n"):
            raise damaged(str(path), "it is not what was written: cut short, or changed", AGAIN)
        return data

    def samples(self) -> list[dict[str, Any]]:
        """Rows of samples.jsonl; see `store.schema.Sample`.

        Raises:
            UserError: where the file is damaged.
        """
        path, rows = self.path / "samples.jsonl", []
        for number, line in enumerate(self.stored_samples.splitlines(), start=1):
            rows.append(row := parsed(line, f"{path}, line {number}"))
            if not (
                isinstance(row, dict) and all(isinstance(row.get(name), of) for name, of in KEYS.items())
            ):
                raise damaged(f"{path}, line {number}", f"it lacks one of {', '.join(KEYS)}", AGAIN)
        return rows


KEYS = {"task": str, "doc_id": int, "doc_hash": str, "prompt_hash": str}
"""What every row of samples.jsonl has."""


def load_runs(results_dir: str | Path) -> list[Run]:
    """All finished runs of a store, by folder name.

    Raises:
        UserError: if there is no store.
    """
    folder = Path(results_dir) / "runs"
    if not folder.is_dir():
        raise UserError(
            f"{results_dir} holds no results: run an experiment with results_dir={results_dir} first"
        )
    return [Run(path.parent) for path in sorted(folder.glob("*/result.json"))]


def load_experiments(results_dir: str | Path) -> list[dict[str, Any]]:
    """The experiments recorded in a store, oldest first: name, config, command and run ids (base first)."""
    files = sorted((Path(results_dir) / "experiments").glob("*.json"))
    found = [read_json(path, Experiment, "put it back, or delete it: its runs stay") for path in files]
    return sorted(found, key=lambda experiment: experiment["created"])


HEADROOM_FOLDER = "headroom"
"""Of a store: NAME-HASH.json, and beside it NAME-HASH.jsonl with a row an item."""


def read_headroom(path: Path) -> dict[str, Any]:
    """A record: `summary` (`analysis.headroom.summarize`), `sentences`, `comparison_key`, and its own `path`.

    Raises:
        UserError: if the file is damaged.
    """
    record = read_json(path, dict, "delete it, and run the same command again")
    return record | {"path": str(path)}


def load_headroom(results_dir: str | Path, runs: Iterable[Run]) -> dict[str, Any] | None:
    """The newest record of a store that is about the very items of all `runs`; None where there is none."""
    keys = {run.result["comparison_key"] for run in runs}
    files = sorted((Path(results_dir) / HEADROOM_FOLDER).glob("*.json"))
    records = [record for record in map(read_headroom, files) if keys == {record["comparison_key"]}]
    return max(records, key=lambda record: record["created"], default=None)
