"""Weights & Biases as a view of the store: published at the end of a run, or at any later time."""

import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from c3po_bench.config import TrackingConfig
from c3po_bench.masking import masked

log = logging.getLogger(__name__)


def publish(results_dir: str | Path, cfg: TrackingConfig) -> bool:
    """Publish what a store has that W&B has not; True when all went well.

    Runs in a process of its own under `cfg.time_limit`, so that W&B being down, slow, broken or not installed
    costs at most that time and one line in the log, never the run.
    """
    if cfg.mode == "disabled":
        return True
    later = f"python -m c3po_bench.publish {results_dir}"
    if find_spec("wandb") is None:
        log.info("W&B is not installed; after pip install 'c3po-bench[wandb]' publish with: %s", later)
        return False
    command = [
        sys.executable,
        "-m",
        "c3po_bench.publish",
        str(results_dir),
        "--at-end-of-run",
        f"--mode={cfg.mode}",
        f"--project={cfg.project}",
        *([f"--entity={cfg.entity}"] if cfg.entity else []),
    ]
    try:
        reason = _bounded(command, Path(results_dir) / "wandb", cfg.time_limit)
    except OSError as error:
        reason = str(error)
    if reason:
        log.warning("W&B (%s): %s; the results are safe, publish them with: %s", cfg.mode, reason, later)
    return not reason


def _bounded(command: list[str], folder: Path, seconds: float) -> str:
    """Run `command`, its output in publish.log in `folder`; what went wrong in one line, or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "publish.log"
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
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
            return f"not done within {seconds:.0f} s"
        finally:
            if process.poll() is None:  # with W&B's service, which it started in its process group
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.wait()
    if status == 0:
        return ""
    path.write_text(text := masked(path.read_text(encoding="utf-8", errors="replace")), encoding="utf-8")
    lines = text.strip().splitlines()
    return lines[-1] if lines else f"publishing ended with status {status}"
