"""Records of headroom in a store: what re-routing could give at most on the items of its runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from c3po_bench.store.reader import Run
from c3po_bench.store.records import read_json

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
