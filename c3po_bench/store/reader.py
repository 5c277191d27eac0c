"""Reading a store: everything downstream (analysis, report, W&B) starts here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from c3po_bench.errors import UserError
from c3po_bench.store.files import read_jsonl


@dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path

    @cached_property
    def result(self) -> dict[str, Any]:
        """result.json; see `store.schema.Result`."""
        return json.loads((self.path / "result.json").read_text(encoding="utf-8"))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The composed config."""
        import yaml

        return yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """provenance.json; see `store.schema.Provenance`."""
        return json.loads((self.path / "provenance.json").read_text(encoding="utf-8"))

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
        return list(read_jsonl(self.path / "samples.jsonl"))


def load_runs(results_dir: str | Path) -> list[Run]:
    """All finished runs of a store, by folder name.

    Raises:
        UserError: if there is no store.
    """
    folder = Path(results_dir) / "runs"
    if not folder.is_dir():
        raise UserError(f"{results_dir} holds no results: run an experiment with results_dir={results_dir} first")
    return [Run(path.parent) for path in sorted(folder.glob("*/result.json"))]


def load_experiments(results_dir: str | Path) -> list[dict[str, Any]]:
    """The experiments recorded in a store, oldest first: name, config, command and run ids (base first)."""
    files = sorted((Path(results_dir) / "experiments").glob("*.json"))
    found = [json.loads(f.read_text(encoding="utf-8")) for f in files]
    return sorted(found, key=lambda e: e.get("created", ""))
