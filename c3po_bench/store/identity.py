"""Content addresses: a run is named by the part of the config that can change its numbers."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any


def content_hash(data: Any, length: int = 12) -> str:
    """Hex digits over canonical JSON."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def run_id(arm: str, identity: dict[str, Any]) -> str:
    """Name of a run folder."""
    return f"{arm}-{content_hash(identity)}"


def source_hash(module: str) -> str:
    """Hex digits over the source of an imported module; of a package, over all modules in it."""
    imported = sys.modules[module]
    files = sorted(
        path for folder in getattr(imported, "__path__", []) for path in Path(folder).rglob("*.py")
    )
    if not files and imported.__file__:
        files = [Path(imported.__file__)]
    return content_hash([[path.name, path.read_text(encoding="utf-8")] for path in files], 16)
