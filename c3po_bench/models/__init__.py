"""Models: where they are kept, how they are loaded, and what the program must know of each family."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder for built checkpoints and downloads: `$C3PO_CACHE`, else `~/.cache/c3po_bench`."""
    chosen = os.environ.get("C3PO_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "c3po_bench"
