"""Reading a store: everything downstream (analysis, report, W&B) starts here."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from c3po_bench.errors import UserError
from c3po_bench.store.files import parsed, read_jsonl
from c3po_bench.store.schema import SCHEMA_VERSION


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
        result = _json(self.path / "result.json")
        if (version := result.get("schema_version")) != SCHEMA_VERSION:
            raise UserError(
                f"{self.path}/result.json has schema version {version}, which this version of c3po_bench does not read "
                f"(it reads {SCHEMA_VERSION}): run again into another results_dir"
            )
        return result

    @cached_property
    def config(self) -> dict[str, Any]:
        """The composed config."""
        return yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """provenance.json; see `store.schema.Provenance`."""
        return _json(self.path / "provenance.json")

    @property
    def run_id(self) -> str:
        """Name of the run folder."""
        return self.path.name

    @property
    def arm(self) -> str:
        """Name of the arm."""
        return self.result["arm"]

    def samples(self) -> list[dict[str, Any]]:
        """Rows of samples.jsonl; see `store.schema.Sample`."""
        if not (self.path / "samples.jsonl").exists():
            raise UserError(
                f"{self.path} has a result but no samples.jsonl: "
                "put it back, or delete the folder and run again"
            )
        return list(read_jsonl(self.path / "samples.jsonl"))


def _json(path: Path) -> dict[str, Any]:
    return parsed(path.read_bytes(), str(path))


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
    return sorted(map(_json, files), key=lambda experiment: experiment["created"])
