"""One training over the ranks of a run (torchrun, accelerate, srun).

They enter, decide and leave together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

from c3po_bench.errors import UserError
from c3po_bench.runtime import locks, ranks

PATIENCE = timedelta(days=2)
"""How long ranks wait for each other: as long as another process may hold the adapter's folder."""


class Together:
    """The ranks of this run, or this process alone. `first` is the one that writes files."""

    def __init__(self, device: str) -> None:
        self.first, self._state = ranks.rank() == 0, None
        if ranks.world() > 1:
            from accelerate import PartialState

            self._state: Any = PartialState(cpu=device == "cpu", timeout=PATIENCE)

    def exclusive_lock(self, folder: Path) -> AbstractContextManager[object]:
        """Hold `folder` against other runs; the first rank does so for all."""
        return locks.exclusive_lock(folder) if self.first else contextlib.nullcontext()

    def agree(self, decide: Callable[[], bool]) -> bool:
        """What the first rank decides."""
        if self._state is None:
            return decide()
        from accelerate.utils import broadcast_object_list

        (decision,) = broadcast_object_list([decide() if self.first else None])
        return bool(decision)

    def dataset(self, rows: list[dict[str, Any]], folder: Path) -> Any:
        """Rows as a `Dataset`; of several ranks, one kept in `folder`, since TRL's caches lie beside the data."""
        from datasets import Dataset, load_from_disk

        made = Dataset.from_list(rows)
        if self._state is None:
            return made
        if self.first:
            made.save_to_disk(str(folder))
        self.wait()
        return load_from_disk(str(folder))

    def wait(self) -> None:
        """Until every rank is here."""
        if self._state is not None:
            self._state.wait_for_everyone()


def share_of(rows: int, option: str) -> int:
    """This rank's part of `rows` rows of a batch.

    The batch of a plan is the same however many ranks share it.

    Raises:
        UserError: if the ranks can't share it evenly.
    """
    mine, rest = divmod(rows, ranks.world())
    if rest:
        raise UserError(
            f"{option}={rows} can't be shared evenly by {ranks.world()} processes: make it a multiple of them"
        )
    return mine
