"""A command on a terminal of so many columns: what it wrote, what stood on the screen, and how it ended."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODES = re.compile(r"\x1b\[[0-9;?]*([A-Za-z])")
CTRL_C = b"\x03"


@dataclass(frozen=True)
class Shown:
    """What a command showed."""

    text: str  # everything, as it was written
    screen: list[str]  # lines that are left, at the end
    drawn: list[str]  # every line that was there at some time, bars included
    status: int


def on_terminal(
    columns: int, *command: str, stop_at: str = "", timeout: float = 240, cwd: Path | None = None
) -> Shown:
    """Run `command` on a terminal; with `stop_at`, press Ctrl-C as soon as that was written."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        os.chdir(cwd or ROOT)
        os.execvpe(command[0], command, environment)
    written, stopped, end = b"", False, time.monotonic() + timeout
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                part = os.read(terminal, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            written += part
        if stop_at and not stopped and stop_at.encode() in written:
            os.write(terminal, CTRL_C)
            stopped = True
    else:
        os.kill(child, 9)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    text = written.decode(errors="replace")
    screen, drawn = _screen(text)
    return Shown(text, screen, drawn, status)


def python(columns: int, *arguments: str, **more: object) -> Shown:
    """The same of this Python."""
    return on_terminal(columns, sys.executable, *arguments, **more)  # type: ignore[arg-type]


def _screen(text: str) -> tuple[list[str], list[str]]:
    """Follow the cursor: carriage returns, lines up, and lines erased; no wrapping, which tests forbid."""
    lines, row, column, drawn = [""], 0, 0, list[str]()
    position = 0
    while position < len(text):
        code = CODES.match(text, position)
        if code:
            position = code.end()
            count = int(re.sub(r"\D", "", code[0]) or 1)
            if code[1] == "A":
                row = max(0, row - count)
            elif code[1] == "K":
                drawn.append(lines[row])
                lines[row] = "" if code[0] == "\x1b[2K" else lines[row][:column]
            continue
        letter, position = text[position], position + 1
        if letter == "\n":
            drawn.append(lines[row])
            row, column = row + 1, 0
            if row == len(lines):
                lines.append("")
        elif letter == "\r":
            column = 0
        else:
            padded = lines[row].ljust(column)
            lines[row] = padded[:column] + letter + padded[column + 1 :]
            column += 1
    return [line.rstrip() for line in lines], [line.rstrip() for line in drawn if line.strip()]


def check_fits(shown: Shown, columns: int) -> None:
    """No line is wider than the terminal, but for paths without a blank, and none is cut by an ellipsis."""
    for line in shown.drawn:
        words = line.split()
        assert len(line) <= columns or max(map(len, words)) > columns - 20, (len(line), line)
        assert "…" not in line, line
