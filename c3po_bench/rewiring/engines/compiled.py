"""A C file compiled once for this processor.

The library is kept in the cache folder, for every process that asks.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from c3po_bench.models.cache import build_once

log = logging.getLogger(__name__)

FLAGS = ("-O3", "-march=native", "-fPIC", "-shared")


def compiler() -> str | None:
    """`$CC`, else cc or gcc."""
    return next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc"))), None)


def load(source: Path) -> ctypes.CDLL | None:
    """The library made of `source`; None, and a line in the log that says why, where that can't be had.

    On Linux alone, with a C compiler and a cache folder that can be written. Symbols that `source` does not
    define are those of libraries loaded before, as torch's OpenMP.
    """
    if sys.platform != "linux":
        return None
    try:
        return _load(source)
    except (OSError, subprocess.SubprocessError) as error:
        why = f"{source.name} can't be compiled or loaded ({_told(error)})"
        log.info("rewiring takes up to twice as long on this processor: %s", why)
        return None


def _load(source: Path) -> ctypes.CDLL:
    found = compiler()
    if found is None:
        raise OSError("no C compiler: install gcc or set CC")
    recipe = {
        "source": hashlib.sha256(source.read_bytes()).hexdigest(),
        "compiler": subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout,
        "flags": " ".join(FLAGS),
        "processor": _processor(),
    }
    library = f"{source.stem}.so"

    def build(folder: Path) -> None:
        command = [found, *FLAGS, str(source), "-o", str(folder / library)]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)

    return ctypes.CDLL(str(build_once(source.stem, recipe, build) / library))


def _processor() -> str:
    """What `-march=native` looks at: machines that share a home folder may differ."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    told = {line for line in info if line.startswith(("flags", "Features", "model name", "CPU part"))}
    return " ".join([platform.machine(), *sorted(told)])


def _told(error: Exception) -> str:
    """Of a compiler that failed, the last line it wrote."""
    said = (getattr(error, "stderr", None) or "").strip()
    return said.splitlines()[-1] if said else str(error)
