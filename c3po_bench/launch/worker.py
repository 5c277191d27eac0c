"""Running frozen cells, one after another in one process, so that model, tasks and bank are loaded once."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from c3po_bench.errors import UserError
from c3po_bench.runtime import ranks

if TYPE_CHECKING:
    from c3po_bench.config import Config
    from c3po_bench.launch.folder import SweepFolder
    from c3po_bench.store.reader import Run

log = logging.getLogger("c3po_bench")
BEAT_SECONDS = 10.0


@contextmanager
def watched(folder: SweepFolder, cell: int) -> Iterator[list[Run]]:
    """Write down that a cell is running, give signs of life, and write down how it ended.

    Yields a list to put the cell's runs into. Of several ranks, the first writes.
    """
    runs: list[Run] = []
    if ranks.rank() > 0:
        yield runs
        return
    before = folder.state(cell) or {}
    attempt = int(before.get("attempt", 0)) + 1
    folder.set_state(cell, "running", attempt=attempt)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            folder.beat(cell)

    pulse = threading.Thread(target=beat, daemon=True)
    pulse.start()
    status: dict[str, Any] = {"status": "done"}
    try:
        yield runs
        status["runs"] = [str(run.path.resolve().relative_to(folder.results_dir)) for run in runs]
    except KeyboardInterrupt as stopped:
        status = {"status": "stopped", "error": f"stopped by {stopped.args[0] if stopped.args else 'SIGINT'}"}
        raise
    except BaseException as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        line = (str(error).strip().splitlines() or [""])[-1]
        status = {"status": "failed", "error": f"{kind}{line}"[:500]}
        if not isinstance(error, UserError):
            status["traceback"] = traceback.format_exc()
        raise
    finally:
        over.set()
        pulse.join()
        folder.set_state(cell, status.pop("status"), attempt=attempt, **status)


def run_cells(folder: SweepFolder, cells: Sequence[int], run: Callable[[Config], Any] | None = None) -> int:
    """Run cells that are not done, whatever happens to the others. Returns the number that failed.

    Raises:
        KeyboardInterrupt: after a signal (`launch.stop`); the cells left are as they were.
    """
    if run is None:
        from c3po_bench.evaluate.run import run
    failed = 0
    for cell in cells:
        state = folder.state(cell)
        if state and state["status"] == "done":
            continue
        try:
            with watched(folder, cell) as runs:
                log.info("cell %d: %s", cell, " ".join(folder.cells[cell]))
                sys.argv = [
                    "c3po_bench",
                    *folder.cells[cell],
                ]  # what the run's provenance gives as its command
                runs += run(folder.config(cell)) or []
        except Exception as error:
            failed += 1
            if isinstance(error, UserError):
                log.error("cell %d failed: %s", cell, error)
            else:
                log.exception("cell %d failed", cell)
    return failed
