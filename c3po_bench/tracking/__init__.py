"""Weights & Biases as a view of the store: published at the end of a run, or at any later time."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from c3po_bench.tracking.config import TrackingConfig

__all__ = ["TrackingConfig", "publish"]

log = logging.getLogger(__name__)
MODES = ("disabled", "offline", "online")


def publish(results_dir: str | Path, cfg: TrackingConfig) -> bool:
    """Publish what a store has that W&B has not; True when all went well.

    Runs in a process of its own under `cfg.time_limit`, so that W&B being down, slow, broken or not installed
    costs at most that time and one line in the log, never the run.
    """
    if cfg.mode == "disabled":
        return True
    later = f"python -m c3po_bench.publish {results_dir}"
    if cfg.mode not in MODES:
        log.warning("tracking.mode=%s is none of %s: nothing is published", cfg.mode, ", ".join(MODES))
        return False
    if find_spec("wandb") is None:
        log.info("W&B is not installed; after pip install 'c3po-bench[wandb]' publish with: %s", later)
        return False
    try:
        reason = _bounded(_command(results_dir, cfg), Path(results_dir) / "wandb", cfg.time_limit)
    except OSError as error:
        reason = str(error)
    if reason:
        log.warning("W&B (%s): %s; the results are safe, publish them with: %s", cfg.mode, reason, later)
    return not reason


def _command(results_dir: str | Path, cfg: TrackingConfig) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "c3po_bench.publish",
        str(results_dir),
        "--mode",
        cfg.mode,
        "--at-end-of-run",
    ]
    command += ["--project", cfg.project]
    return command + (["--entity", cfg.entity] if cfg.entity else [])


def _bounded(command: list[str], folder: Path, seconds: float) -> str:
    """Run `command`, its output in publish.log in `folder`; what went wrong in one line, or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "publish.log"
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    }
    with path.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            _kill(process)
            return f"not done within {seconds:.0f} s"
        except BaseException:
            _kill(process)
            raise
    if status == 0:
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"publishing ended with status {status}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and W&B's service that it started, which share its process group."""
    import signal

    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()
