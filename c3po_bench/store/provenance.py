"""Where numbers come from: code, libraries, hardware, command."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from c3po_bench.masking import masked

LIBRARIES = ("torch", "transformers", "lm_eval", "trl", "peft", "datasets", "hydra-core", "numpy", "wandb")


def now() -> str:
    """Time in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that can change numbers."""
    versions = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions | {"python": platform.python_version()}


def git_commit() -> str | None:
    """Commit of the source tree that runs, with `+` when it has uncommitted changes.

    None outside a checkout.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        head = git("rev-parse", "--verify", "--quiet", "HEAD")
        changes = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head + ("+" if changes else "") if head else None


def hardware() -> dict[str, Any]:
    """What the run ran on; threads and GPUs where torch is in use."""
    facts: dict[str, Any] = {"machine": platform.machine(), "cpus": os.cpu_count()}
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        facts["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            facts |= {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count()}
    return facts


def command() -> str:
    """The command that was typed, ready to be typed again."""
    module = "c3po_bench.sweep" if Path(sys.argv[0]).name == "sweep.py" else "c3po_bench"
    return masked(" ".join([f"python -m {module}", *map(shlex.quote, sys.argv[1:])]))
