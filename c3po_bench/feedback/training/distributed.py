"""One training over the ranks of a run (torchrun, accelerate, srun): they enter, decide, leave together."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from c3po_bench.errors import UserError
from c3po_bench.runtime import locks, ranks

LONGEST_WAIT = timedelta(days=2)  # of ranks for each other: as long as another process may hold the folder


class RankGroup:
    """The ranks of this run, or this process alone. The main process is the one that writes files."""

    def __init__(self, device: str) -> None:
        self.is_main_process, self.several = ranks.rank() == 0, ranks.world() > 1
        if self.several:
            from accelerate import PartialState  # slow to import, and needed by several ranks alone
            from accelerate.utils import broadcast_object_list, gather_object

            self._state: Any = PartialState(cpu=device == "cpu", timeout=LONGEST_WAIT)
            self._broadcast, self._gather = broadcast_object_list, gather_object

    def exclusive_lock(self, folder: Path) -> AbstractContextManager[object]:
        """Hold `folder` against other runs; the main process does so for all."""
        return locks.exclusive_lock(folder) if self.is_main_process else nullcontext()

    def broadcast(self, decide: Callable[[], bool]) -> bool:
        """What the main process decides."""
        if not self.several:
            return decide()
        (decision,) = self._broadcast([decide() if self.is_main_process else None])
        return bool(decision)

    def total(self, value: float) -> float:
        """The sum of what each rank gives."""
        return sum(self._gather([value])) if self.several else value

    def wait(self) -> None:
        """Until every rank is here."""
        if self.several:
            self._state.wait_for_everyone()


def share_of(rows: int, option: str) -> int:
    """This rank's part of `rows` rows of a batch.

    The batch of a plan is the same however many ranks share it.

    Raises:
        UserError: if the ranks can't share it evenly.
    """
    share, rest = divmod(rows, ranks.world())
    if rest:
        raise UserError(
            f"{option}={rows} can't be shared evenly by {ranks.world()} processes: make it a multiple of them"
        )
    return share
