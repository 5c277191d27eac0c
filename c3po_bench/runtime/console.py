"""The console: progress with rate and remaining time, quiet lines where there is no terminal."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from c3po_bench.errors import RUN_FOLDER, UserError
from c3po_bench.masking import masked
from c3po_bench.runtime import signals

log = logging.getLogger("c3po_bench")
QUIET_SECONDS = 15.0


class Progress:
    """One bar at a time: `progress(what, done, total)`. Without a terminal, a log line now and then.

    What another progress shows meanwhile (references read for the first items scored) does not count in the
    rate.
    """

    shown = 0.0  # seconds that any progress showed something, others inside it left out

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._what = ""
        self._started = self._spoken = self._first = self._shown = self._first_work = 0.0

    def __call__(self, what: str, done: int, total: int, work: float | None = None) -> None:
        """Show that `done` of `total` items of `what` are finished, and on disk.

        The place to stop if asked to.

        `work` is the share of all work that is done, where items differ much: what is left is told from it.
        """
        signals.check()
        now = time.monotonic()
        work = done / max(1, total) if work is None else work
        if what != self._what:
            self.close()
            self._what, self._started, self._spoken, self._first, self._shown = (
                what,
                now,
                now,
                done,
                Progress.shown,
            )
            self._first_work = work
        if sys.stderr.isatty():
            self._draw(what, done, total, work)
        elif now - self._spoken >= QUIET_SECONDS and done < total:
            left = self._left(work)
            log.info(
                "%s: %d of %d (%.1f a second%s)", what, done, total, self._rate(done), left and f", {left}"
            )
            self._spoken = now
        if done >= total:
            self.close()

    def _draw(self, what: str, done: int, total: int, work: float) -> None:
        from rich import progress as rich_progress
        from rich.console import Console

        if self._bar is None:
            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}"),
                rich_progress.BarColumn(),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TextColumn("{task.fields[rate]}"),
                rich_progress.TextColumn("{task.fields[left]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, completed=done, rate="", left="")
        self._bar.update(
            self._task, completed=done, total=total, rate=f"{self._rate(done):.1f}/s", left=self._left(work)
        )

    def _seconds(self) -> float:
        return time.monotonic() - self._started - (Progress.shown - self._shown)

    def _rate(self, done: int) -> float:
        return (done - self._first) / max(1e-9, self._seconds())

    def _left(self, work: float) -> str:
        rate = (work - self._first_work) / max(1e-9, self._seconds())
        return f"about {(1 - work) / rate:.0f} s left" if rate > 0 else ""

    def close(self) -> None:
        """Remove the bar."""
        if self._what:
            Progress.shown += self._seconds()
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._what = None, ""


class Masked(logging.Formatter):
    """Lines of a log, tracebacks included, without keys and passwords."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return masked(super().format(record))


def quiet_libraries() -> None:
    """Hold back the libraries' own bars and warnings of forks; before the first of them is imported, which reads this."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def set_up_logging(level: str) -> None:
    """Our own log lines on standard error; the libraries only from warnings up."""
    from c3po_bench.errors import unknown

    levels = ("debug", "info", "warning", "error")
    if level not in levels:
        raise unknown("log_level", level, levels)
    quiet_libraries()
    log.setLevel(level.upper())
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(Masked("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.propagate = False
    for noisy in (
        "lm_eval",
        "lm-eval",
        "transformers",
        "datasets",
        "httpx",
        "sentence_transformers",
        "filelock",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING if level != "debug" else logging.INFO)
    logging.getLogger("lm_eval.models.huggingface").addFilter(_says_news)
    logging.setLogRecordFactory(_masked_record)


def _masked_record(*arguments: Any, **more: Any) -> logging.LogRecord:
    """A line of any logger, a library's too, without keys and passwords."""
    record = logging.LogRecord(*arguments, **more)
    if record.levelno >= logging.WARNING:
        with suppress(TypeError, ValueError):  # arguments that do not fit: logging itself says so
            record.msg, record.args = masked(record.getMessage()), ()
    return record


def _says_news(record: logging.LogRecord) -> bool:
    """False for lm-eval's two warnings that it was given a loaded model, as it always is here."""
    return "`pretrained`" not in str(record.msg)


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Also write our log lines to `path`, the log of a run.

    An error that is not the user's too, which then names the run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(Masked("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        error.add_note(f"{RUN_FOLDER}{path.parent}")
        with suppress(OSError), open(path, "a", encoding="utf-8") as file:  # the disk may be full
            file.write(masked(traceback.format_exc()))
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
