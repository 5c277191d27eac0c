"""Errors that the user can mend: one line, what is wrong, the nearest valid choice."""

import difflib
import errno
import math
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from c3po_bench.masking import masked

USER, OURS, INTERRUPTED = 2, 1, 130
"""Exit statuses: the user can mend it; our fault; stopped by Ctrl-C or a signal."""


class UserError(Exception):
    """Raised for anything the user can put right; the command line prints it in one line and exits with 2."""


class DamagedFile(UserError):
    """Raised for a file of a store that is missing, or not what was written: no view goes on without it."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BROKEN = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO)
IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
WITHOUT_NUMBER = {
    r"no space left|disk is full|PytorchStreamWriter failed|file write failed|requested and \d+ written": errno.ENOSPC,
    r"disk quota exceeded": errno.EDQUOT,
    r"input/output error": errno.EIO,
}
"""What libraries say of a full or failing disk that give no error number: safetensors, torch, numpy, tokenizers."""


def disk_failure(error: BaseException) -> OSError | None:
    """The full or failing disk behind an error, found anywhere in its chain of causes.

    None for any other error.
    """
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen and not isinstance(link, UserError):
        seen.append(link)
        number = link.errno if isinstance(link, OSError) else None
        if written := re.search(r"os error (\d+)", str(link)):  # of a library in Rust
            number = number or int(written[1])
        if number is None and isinstance(link, Exception):
            texts = (n for text, n in WITHOUT_NUMBER.items() if re.search(text, str(link), re.IGNORECASE))
            number = next(texts, None)
        if number in FULL + BROKEN:
            return OSError(number, os.strerror(number), getattr(link, "filename", None))
        link = link.__cause__ or link.__context__
    return None


def of_the_disk(error: BaseException, where: str = "") -> str | None:
    """The line for an error of the file system that the user can mend; None for any other.

    `where` names the folder that is full, and what sets it.
    """
    failure = disk_failure(error) or error
    if not isinstance(failure, OSError) or failure.errno not in FULL + BROKEN + IN_THE_WAY:
        return None
    what = ": ".join(str(part)[:300] for part in (failure.filename, failure.strerror) if part)
    then = "then run the same command again: it goes on where it stopped"
    if failure.errno in FULL:
        return f"{what}: make room{where and f' in {where}'}, {then}"
    if failure.errno in BROKEN:
        return f"{what}: the disk{where and f' of {where}'} fails; mend it or choose another, {then}"
    return f"{what}; results_dir and name say what is written where"


PACKAGE = str(Path(__file__).parent)
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
STOCK_TASK = re.compile(r"[/\\]lm_eval[/\\]tasks[/\\][^/\\]+[/\\]")
"""A file of one of lm-eval's own tasks: its functions are a task's, not the library's."""


def foreign_place(error: BaseException) -> str | None:
    """Where an error was raised that is not ours, as "FILE, line N": in a plugin or in a function of a task.

    None where our own code raised it, be it while a plugin used it. Libraries on the way do not count:
    whoever called one has to mend the call.
    """
    place, ours = None, False
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            place, ours = _called_wrongly(error), True
        elif ours and _is_foreign(file):
            place = f"{file}, line {line}"
    return place


def _is_foreign(file: str) -> bool:
    known = file.startswith((PACKAGE, *LIBRARIES)) and not STOCK_TASK.search(file)
    return not known and Path(file).is_file()


def _called_wrongly(error: BaseException) -> str | None:
    """Where a function stands that takes other arguments than it is given, if that is in a file that is not ours."""
    name = re.match(r"(\w+)\(\) (?:takes|missing|got)", str(error)) if isinstance(error, TypeError) else None
    for module in reversed(list(sys.modules.values()) if name else []):  # of one name, the last one loaded
        code = getattr(vars(module).get(name[1]) if name else None, "__code__", None)
        if (
            code is not None
            and code.co_filename == getattr(module, "__file__", None)
            and _is_foreign(code.co_filename)
        ):
            return f"{code.co_filename}, line {code.co_firstlineno}"
    return None


def cause(error: BaseException) -> str:
    """What an error says, in one line, with the file and line where that is not ours."""
    if isinstance(error, SystemExit):
        code = "" if error.code is None else repr(error.code)
        text = f"it calls sys.exit({code})"
    else:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
    place = foreign_place(error)
    return f"{text}, in {place}" if place else text


RUN_FOLDER = "run folder: "
"""Begins the note by which an error says in which run it happened."""


def our_fault(error: BaseException) -> str:
    """The line below the traceback of an error that is not the user's, with the run folder to attach where it names one."""
    folders = [
        note.removeprefix(RUN_FOLDER)
        for note in getattr(error, "__notes__", [])
        if note.startswith(RUN_FOLDER)
    ]
    return (
        "this is our fault: please report it with the traceback above"
        + "".join(f"; attach {f}" for f in folders)
        + "\n"
    )


def refuse(message: str) -> int:
    """Say in one line on standard error what the user can mend; returns the exit status."""
    sys.stderr.write("error: " + masked(" ".join(message.split())) + "\n")
    return USER


def exit_status(work: Callable[[], object]) -> int:
    """Run a command: 0, or 2 with one line on standard error where the user can mend it, the disk included."""
    try:
        work()
    except Exception as error:
        line = str(error) if isinstance(error, UserError) else of_the_disk(error)
        if line is None:
            raise
        return refuse(line)
    return 0


def finite(value: float, what: str, step: int | None = None) -> float:
    """`value`, where it is a number.

    Raises:
        UserError: for NaN and infinity, which would be ranked, averaged and kept: `what` it is, after which
            step.
    """
    if math.isfinite(value):
        return value
    when = "" if step is None else f" at step {step}"
    raise UserError(
        f"{what} is {value}{when}, no number, so nothing of it is kept: try a smaller learning rate, or model.dtype=float32"
    )


def check_name(what: str, name: str, hint: str = "", path: bool = False) -> None:
    """Refuse what is no name: it becomes a part of lines in logs and tables, of commands and, but for a `path`, of paths.

    Raises:
        UserError: for nothing, blanks around it, control characters, a dash at its beginning, 150 bytes and
            more, and for a path.
    """
    if not name.strip() or name != name.strip():
        why = "begins or ends with blanks" if name.strip() else "is empty"
    elif not name.isprintable():
        why = "holds control characters"
    elif not path and ("/" in name or "\\" in name or name in (".", "..")):
        why = "is a name, not a path"
    elif name.startswith("-"):
        why = "begins with a dash, as options do"
    elif len(name.encode("utf-8", "replace")) >= 150:
        why = "is too long: 150 bytes or more"
    else:
        return
    raise UserError(f"{what}={name[:60]!r} {why}{hint}")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the processor or of a GPU, does not suffice."""
    named = isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "ArrayMemoryError")
    words = r"out of memory|can't allocate memory|not enough memory|failed to allocate|ALLOC_FAILED|cannot allocate"
    return named or (
        isinstance(error, RuntimeError | OSError) and bool(re.search(words, str(error), re.IGNORECASE))
    )


def nearest(name: str, choices: Iterable[str], n: int = 3) -> list[str]:
    """The `n` choices that look most like `name`, best first (may be empty)."""
    pool = sorted(set(choices))
    close = difflib.get_close_matches(name, pool, n=n, cutoff=0.5)
    return close or [c for c in pool if name and (name in c or c in name)][:n]


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """A `UserError` for an unknown name, with the nearest valid choices (all of them if none is near)."""
    pool = sorted(set(choices))
    close = nearest(name, pool)
    if close:
        hint = f"did you mean {' or '.join(repr(c) for c in close)}?"
    else:
        hint = f"choose from: {', '.join(pool[:20])}" if pool else "there are none"
    return UserError(f"unknown {kind} {name!r}: {hint}")
