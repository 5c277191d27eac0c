"""The console: progress with rate and remaining time, quiet lines where there is no terminal."""

import logging
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c3po_bench.errors import RUN_FOLDER, UserError
from c3po_bench.masking import masked
from c3po_bench.runtime import signals

log = logging.getLogger("c3po_bench")
QUIET_SECONDS = 15.0
INDENT = 9
"""Where the text of a log line begins, behind the clock."""
UNITS = {"training": "step", "tuning": "setting", "references": "reference", "answering": "prompt"}
"""What is counted, by a word of what is done; else items."""
BAR = range(8, 41)
"""Characters that a bar may have."""


@dataclass
class Whole:
    """What every progress says besides its own: the cell of a sweep, the arm, and the time left of all.

    `left` is given the seconds left of what is shown, where they are known, and says those of the whole, or
    None.
    """

    cell: str = ""
    arm: str = ""
    left: Callable[[float | None], float | None] = lambda _: None

    def label(self, what: str) -> str:
        """Cell, arm and phase."""
        arm = f"{self.arm}: " if self.arm and self.arm not in what else ""
        return f"{self.cell}{' ' * bool(self.cell)}{arm}{what}"


WHOLE = Whole()
"""Of the experiment that this process runs."""


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 78 s, 3 min, 2.5 h, 4 days."""
    if seconds < 99.5:
        return f"{max(1, seconds):.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


class Progress:
    """One bar at a time: `progress(what, done, total)`. Without a terminal, a log line now and then.

    What another progress shows meanwhile (references read for the first items scored) does not count in the
    rate, and takes the place of this one's bar.
    """

    shown = 0.0  # seconds that any progress showed something, others inside it left out
    visible: "Progress | None" = None  # whose bar is on the screen

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
            words = [
                rate_text(self._rate(done), unit_of(what), words=True),
                self._left(work),
                self._of_all(work),
            ]
            log.info("%s: %d of %d (%s)", WHOLE.label(what), done, total, ", ".join(filter(None, words)))
            self._spoken = now
        if done >= total:
            self.close()

    def _draw(self, what: str, done: int, total: int, work: float) -> None:
        if self._bar is None:
            if Progress.visible is not None:
                Progress.visible.hide()
            Progress.visible = self
            self._bar = new_bar()
            self._task = self._bar.add_task(
                WHOLE.label(what), total=total, completed=done, rate="", left="", whole=""
            )
            self._bar.start()
        self._bar.update(
            self._task,
            description=WHOLE.label(what),
            completed=done,
            total=total,
            rate=rate_text(self._rate(done), unit_of(what)),
            left=self._left(work),
            whole=self._of_all(work),
        )

    def _seconds(self) -> float:
        return time.monotonic() - self._started - (Progress.shown - self._shown)

    def _rate(self, done: int) -> float:
        return (done - self._first) / max(1e-9, self._seconds())

    def _seconds_left(self, work: float) -> float | None:
        rate = (work - self._first_work) / max(1e-9, self._seconds())
        return (1 - work) / rate if rate > 0 else None

    def _left(self, work: float) -> str:
        seconds = self._seconds_left(work)
        return "" if seconds is None else f"about {duration(seconds)} left"

    def _of_all(self, work: float) -> str:
        """The time left of the whole experiment, where that is known and longer."""
        own = self._seconds_left(work)
        # what the arm does before it scores says nothing of how long scoring takes
        whole = WHOLE.left(own if "scoring" in self._what else None)
        if whole is None or whole <= 1.1 * (own or 0.0):
            return ""
        return f"{duration(whole)} to the end"

    def hide(self) -> None:
        """Take the bar off the screen; the next call draws it anew."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = None
        if Progress.visible is self:
            Progress.visible = None

    def close(self) -> None:
        """Remove the bar."""
        if self._what:
            Progress.shown += self._seconds()
        self.hide()
        self._what = ""


def unit_of(what: str) -> str:
    """What is counted."""
    return next((unit for word, unit in UNITS.items() if word in what), "item")


def rate_text(rate: float, unit: str, words: bool = False) -> str:
    """A rate in the unit that makes sense: 2.0/s, or 40 s/step; in words, 2.0 a second, or 40 s per step."""
    if rate <= 0:
        return ""
    if rate >= 1:
        return f"{rate:.1f} a second" if words else f"{rate:.1f}/s"
    each = f"{1 / rate:.1f} s" if rate > 0.1 else duration(1 / rate)
    return f"{each} per {unit}" if words else f"{each}/{unit}"


def new_bar() -> Any:
    """A bar on standard error that vanishes when it is done: one line, as wide as the terminal, never cut."""
    from rich import progress as rich_progress
    from rich.console import Console
    from rich.table import Column
    from rich.text import Text

    console = Console(stderr=True)

    class Line(rich_progress.ProgressColumn):
        max_refresh = None

        def render(self, task: Any) -> Any:
            fields = task.fields
            extras = (fields["left"], fields["whole"], fields["rate"])
            return Text(bar_line(task.description, task.completed, task.total, extras, console.width - 1))

    return rich_progress.Progress(Line(Column(no_wrap=True)), console=console, transient=True)


def bar_line(what: str, done: float, total: float, extras: Sequence[str], width: int) -> str:
    """One line of at most `width` characters: what, a bar, counts, and as many `extras`, in order, as fit."""
    counts, kept = f"{done:.0f}/{total:.0f}", []
    if len(what) + len(counts) + 1 > width:  # without the cell, or the phase: what is left out is in the log
        what = what[max(0, len(what) + len(counts) + 1 - width) :].partition(" ")[2]
    room = width - len(what) - len(counts) - 1
    for extra in extras:
        if extra and len(extra) + 2 <= room:
            kept.append(extra)
            room -= len(extra) + 2
    bar = ""
    if room > BAR.start:
        length = min(BAR.stop, room) - 1
        full = round(length * done / max(1, total))
        bar = "━" * full + "─" * (length - full) + " "
    return f"{what} {bar}{', '.join([counts, *kept])}"


def close_bar() -> None:
    """Take the bar that is on the screen off it: for whoever ends early."""
    if Progress.visible is not None:
        Progress.visible.close()


class Lines(logging.StreamHandler[Any]):
    """Log lines on standard error: above a bar, and on a terminal folded between words."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line."""
        try:
            text = self.format(record)
            if sys.stderr.isatty():
                text = folded(text, terminal_width())
            bar = Progress.visible._bar if Progress.visible is not None else None
            if bar is not None:
                bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                self.stream.write(text + self.terminator)
                self.flush()
        except Exception:
            self.handleError(record)


def folded(text: str, width: int) -> str:
    """Each line of `text` folded between words at `width`; what has no blank, such as a path, stays whole."""
    options: Any = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": " " * INDENT}
    return "\n".join(
        textwrap.fill(line, width, **options) if len(line) > width else line for line in text.split("\n")
    )


def terminal_width() -> int:
    """Characters of a line of the terminal on standard error."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


class Masked(logging.Formatter):
    """Lines of a log, tracebacks included, without keys and passwords."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return masked(super().format(record))


def quiet_libraries() -> None:
    """Hold back the libraries' own bars and warnings of forks.

    Before the first of them is imported, which reads this.
    """
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
        handler = Lines(sys.stderr)
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
