"""One run over several processes (torchrun, accelerate, srun).

Each scores its share of the chunks into a journal of its own in the run folder; rank 0 puts the run together.
They meet in the folder alone, so any shared file system will do.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from c3po_bench.errors import UserError
from c3po_bench.runtime import signals

POLL_SECONDS = 0.2


def rank() -> int:
    """This process's number, as torchrun and accelerate give it."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes share the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def from_srun() -> None:
    """Take rank and world size from srun, where it started several tasks and nothing else has said."""
    if (
        "WORLD_SIZE" in os.environ
        or int(os.environ.get("SLURM_NTASKS", "1")) < 2
        or "SLURM_PROCID" not in os.environ
    ):
        return
    os.environ["RANK"], os.environ["WORLD_SIZE"] = os.environ["SLURM_PROCID"], os.environ["SLURM_NTASKS"]
    os.environ["LOCAL_RANK"] = os.environ.get("SLURM_LOCALID", "0")


def journal_name() -> str:
    """The file that this process writes finished items to."""
    return "journal.jsonl" if rank() == 0 else f"journal-{rank()}.jsonl"


def finish_share(folder: Path) -> None:
    """Say that this process has scored its share."""
    _mark(folder, rank()).touch()


def await_shares(folder: Path) -> None:
    """Wait until the other processes have scored theirs."""
    for other in range(1, world()):
        wait_for(_mark(folder, other).exists)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait, open to being stopped."""
    while not condition():
        signals.check()
        time.sleep(POLL_SECONDS)


def _mark(folder: Path, number: int) -> Path:
    return folder / f".share-{number}-of-{world()}"


def parse_shard(shard: str) -> tuple[int, int]:
    """(i, n) of "i/n", i counted from 1."""
    try:
        share, of = (int(part) for part in shard.split("/"))
        assert 1 <= share <= of
    except (ValueError, AssertionError):
        raise UserError(f"shard={shard}: write i/n with i from 1 to n, like shard=1/4") from None
    return share, of
