"""Reading a store: everything downstream (analysis, report, W&B) starts here."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from c3po_bench.errors import DamagedFile, UserError
from c3po_bench.store.files import damaged, parsed
from c3po_bench.store.records import bytes_checksum, checksum, read_json, read_yaml
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
        path = self.path / "result.json"
        result = read_json(path, dict, AGAIN)
        if (version := result.get("schema_version")) != SCHEMA_VERSION:
            raise UserError(
                f"{path} has schema version {version}, which this version of c3po_bench does not read "
                f"(it reads {SCHEMA_VERSION}): run again into another results_dir"
            )
        result = read_json(path, Result, AGAIN)
        known = result.pop("crc", None)  # one that lost its name is another field
        if known != checksum(result) if known else result.keys() - Result.__annotations__.keys():
            raise damaged(str(path), "it is not what was written: its checksum does not hold", AGAIN)
        return result

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


def problems(results_dir: str | Path) -> list[str]:
    """A line for each file of a store that is missing, damaged or another version's: of runs, experiments and W&B.

    Raises:
        UserError: if there is no store.
    """
    found = []
    for run in load_runs(results_dir):
        for part in ("result", "provenance", "config", "stored_samples"):
            try:
                getattr(run, part)
            except UserError as error:
                found.append(str(error))
    for read in (lambda: load_experiments(results_dir), lambda: published(results_dir)):
        try:
            read()
        except UserError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def published(results_dir: str | Path) -> dict[str, dict[str, Any]]:
    """RESULTS_DIR/wandb/published.json: by mode and project, the digest of what W&B has.

    Empty where there is none.
    """
    path = Path(results_dir) / "wandb" / "published.json"
    remedy = "put it back, or delete it: everything is then published again"
    return read_json(path, dict[str, dict[str, Any]], remedy) if path.exists() else {}


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
    remedy = "put it back, or delete it: its runs stay"
    found = [read_json(path, Experiment, remedy) for path in files]
    for path, experiment in zip(files, found, strict=True):
        for name in experiment["runs"]:  # a record is data: it leads out of no store
            if "/" in name or "\\" in name or name.startswith("."):
                raise damaged(str(path), f"it names the run {name[:80]!r}, which is no folder's name", remedy)
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
