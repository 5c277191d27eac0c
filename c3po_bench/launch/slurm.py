"""Talking to Slurm: an array job that can be sent again, the queue, and requeueing.

Needs no accounting (`sacct`).
"""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from c3po_bench.errors import UserError
from c3po_bench.launch.sweep_folder import SweepFolder, job_id
from c3po_bench.store.files import write_text

SIGNAL_SECONDS = 120
ARRAY_LIMIT = 1000  # Slurm's default MaxArraySize
FLAGS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "exclude": "exclude",
    "gres": "gres",
    "comment": "comment",
    "nodes": "nodes",
    "cpus_per_task": "cpus-per-task",
    "gpus_per_node": "gpus-per-node",
    "gpus_per_task": "gpus-per-task",
    "cpus_per_gpu": "cpus-per-gpu",
    "mem_per_gpu": "mem-per-gpu",
    "mem_per_cpu": "mem-per-cpu",
    "tasks_per_node": "ntasks-per-node",
}


def require_cluster() -> None:
    """Raise `UserError` where Slurm's programs are missing or no cluster answers them."""
    missing = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
    if missing:
        raise UserError(
            f"no Slurm here: {' and '.join(missing)} not found. Run this on a cluster's login node, or leave "
            "hydra/launcher=slurm out to run on this machine (hydra/launcher=joblib for several processes)"
        )
    done = subprocess.run(["squeue", "--noheader", "--me"], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        why = last.removeprefix("squeue: ").removeprefix("fatal: ")
        raise UserError(f"Slurm is installed but no cluster answers ({why}): run this on a login node")


def script(folder: SweepFolder, launcher: dict[str, Any], groups: str, count: int) -> str:
    """The text of an array job whose task N runs the N-th of `count` groups of cells in the file `groups`."""
    most = launcher.get("array_parallelism") or count
    more = launcher.get("additional_parameters") or {}
    lines = [
        f"--job-name={folder.path.name}",
        f"--array=0-{count - 1}%{most}",
        f"--output={folder.path}/logs/%A_%a.log",
        "--open-mode=append",
        "--requeue",
        f"--signal=USR2@{launcher.get('signal_delay_s') or SIGNAL_SECONDS}",
        *(f"--{flag}={launcher[key]}" for key, flag in FLAGS.items() if launcher.get(key) is not None),
        *([f"--time={math.ceil(launcher['timeout_min'])}"] if launcher.get("timeout_min") else []),
        *([f"--mem={math.ceil(launcher['mem_gb'] * 1024)}M"] if launcher.get("mem_gb") else []),
        *(f"--{key.replace('_', '-')}={value}" for key, value in more.items()),
    ]
    srun = ["srun", *map(str, launcher.get("srun_args") or [])]
    work = [sys.executable, "-u", "-m", "c3po_bench.sweep", "work", str(folder.path), "--groups", groups]
    root = shlex.quote(str(Path(__file__).resolve().parents[2]))
    text = [
        "#!/bin/bash",
        *(f"#SBATCH {shlex.quote(line)}" for line in lines),
        f"# Cells of {folder.path}, grouped as in {groups}. "
        "Send again with sbatch; cells that are done are left out.",
        f"export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}}",
        *(str(line) for line in launcher.get("setup") or []),
        f"exec {shlex.join(srun)} {shlex.join(work)} --group $SLURM_ARRAY_TASK_ID",
    ]
    return "\n".join(text) + "\n"


def send(folder: SweepFolder, launcher: dict[str, Any], groups: Sequence[Sequence[int]]) -> str:
    """Send an array job that runs `groups` of cells, and return its id at once.

    Raises:
        UserError: when Slurm is missing or refuses.
    """
    path, groups_file = write_job(folder, launcher, groups)
    done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"sbatch refused {path}: {done.stderr.strip().removeprefix('sbatch: error: ')}")
    job = done.stdout.strip().split(";")[0]
    folder.note_job(job=job, script=path.name, groups=groups_file)
    return job


def write_job(
    folder: SweepFolder, launcher: dict[str, Any], groups: Sequence[Sequence[int]]
) -> tuple[Path, str]:
    """Write the script and its groups of cells, numbered by how often the sweep was sent."""
    number = len(folder.record["jobs"]) + 1
    groups_file = f"groups-{number}.json"
    write_text(folder.path / groups_file, json.dumps([list(group) for group in groups]) + "\n")
    path = folder.path / f"job-{number}.sh"
    write_text(path, script(folder, launcher, groups_file, len(groups)))
    return path, groups_file


def _answer(*command: str, seconds: float = 20) -> str | None:
    """What one of Slurm's programs writes; None where it is missing, silent for so long, or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def queue() -> dict[str, str] | None:
    """This user's jobs and array tasks in the queue, {"12_3": "RUNNING"}.

    None where Slurm gives no answer.
    """
    text = _answer("squeue", "--noheader", "--array", "--me", "--format=%i|%T")
    if text is None:
        return None
    return {name: state for name, _, state in (line.strip().partition("|") for line in text.splitlines())}


def requeue() -> bool:
    """Put this process's own job back into the queue; False outside of Slurm or if Slurm refuses."""
    job = job_id()
    if job is None or os.environ.get("SLURM_PROCID", "0") != "0":
        return False
    return _answer("scontrol", "requeue", job, seconds=60) is not None


def has_accounting() -> bool:
    """Whether `sacct` answers; many small clusters keep no accounts."""
    return _answer("sacct", "-X", "-n", "-j", "1") is not None


def let_submitit_ask_the_queue() -> None:
    """Make submitit learn a job's state from `squeue`: without `sacct` it would wait forever."""
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class QueueWatcher(SlurmInfoWatcher):
        """A job that is no longer in the queue is over."""

        def update(self) -> None:
            """Ask for all jobs at once."""
            self._num_calls += 1
            jobs = queue()
            if jobs is not None:
                for job in self._registered:
                    self._info_dict[job] = {"State": jobs.get(job, "COMPLETED")}
            self._last_status_check = time.time()

    SlurmJob.watcher = QueueWatcher(delay_s=20)
