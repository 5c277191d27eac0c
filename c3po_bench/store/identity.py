"""Content addresses: a run is named by the part of the config that can change its numbers."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def content_hash(data: Any, length: int = 12) -> str:
    """Hex digits over canonical JSON."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def run_id(arm: str, identity: dict[str, Any]) -> str:
    """Name of a run folder."""
    return f"{arm}-{content_hash(identity)}"
