"""What of a store has been published, in a file beside it: publishing again does only what is new."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c3po_bench.store.files import write_json

if TYPE_CHECKING:
    from c3po_bench.store.reader import Run

ANALYSIS = "analysis-"


def digest(*parts: object) -> str:
    """Twelve hex digits that change when any of `parts` does."""
    return hashlib.sha256(json.dumps([str(p) for p in parts]).encode()).hexdigest()[:12]


def wandb_id(run: Run) -> str:
    """The id of the run in W&B.

    The hash in its folder's name, so that publishing twice means the same run.
    """
    return run.run_id.rpartition("-")[2]


class State:
    """RESULTS_DIR/wandb/published.json.

    By mode and project, the digest of what was published under each id.
    """

    def __init__(self, results_dir: Path, mode: str, target: str) -> None:
        """Read what was published to `target` (entity/project) in `mode`."""
        self.path = results_dir / "wandb" / "published.json"
        self.key = f"{mode}:{target}"
        self.all: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            self.all = json.loads(self.path.read_text(encoding="utf-8"))
        self.here = self.all.setdefault(self.key, {})

    def has(self, name: str, content: str) -> bool:
        """Whether `name` has been published with this very content."""
        return self.here.get(name) == content

    def get(self, name: str) -> Any:
        """What is remembered under `name`, None if nothing."""
        return self.here.get(name)

    def analysis_id(self, new: str) -> str:
        """The id of the store's analysis run.

        What it once was published under, in whatever mode and project, else `new`.
        """
        known = (
            name for here in (self.here, *self.all.values()) for name in here if name.startswith(ANALYSIS)
        )
        return next(known, ANALYSIS + new)

    def put(self, name: str, content: Any) -> None:
        """Remember it, at once and atomically."""
        self.here[name] = content
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.all)


def run_digest(run: Run) -> str:
    """Changes when the run's result does."""
    return hashlib.sha256((run.path / "result.json").read_bytes()).hexdigest()[:12]
