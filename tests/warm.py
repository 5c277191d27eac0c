"""A process that has imported everything and answers each command in a fork: what starting Python costs is paid once.

The command line is tested in processes of their own as well; what it may import, when, has tests that start one.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVER = """
import json, os, sys, traceback
from c3po_bench import __main__, cli
import c3po_bench.analysis.tables, c3po_bench.evaluate.adapter, c3po_bench.rewiring.backend
for line in sys.stdin:
    call = json.loads(line)
    if not (child := os.fork()):
        for number, name in enumerate((os.devnull, call["stdout"], call["stderr"])):
            os.dup2(os.open(name, os.O_WRONLY if number else os.O_RDONLY), number)
        os.environ.clear()
        os.environ.update(call["environment"])
        sys.argv = ["c3po_bench", *call["arguments"]]
        try:
            status = __main__.main()
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@contextmanager
def warm_process() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """A function that runs `python -m c3po_bench ARGUMENTS` in a fork of a warm process, started by the first call."""
    server: subprocess.Popen[str] | None = None
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        nonlocal server
        if server is None:
            command = [sys.executable, "-c", SERVER]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            server = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)
        assert server.stdin and server.stdout
        with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
            call = {"arguments": arguments, "stdout": stdout.name, "stderr": stderr.name}
            server.stdin.write(json.dumps({**call, "environment": {**environment, **os.environ}}) + "\n")
            server.stdin.flush()
            ready, _, _ = select.select([server.stdout], [], [], timeout)
            status = server.stdout.readline() if ready else ""
            if not status:
                raise TimeoutError(f"{arguments}: no end in {timeout} s, or none to tell of\n{stderr.read()}")
            return subprocess.CompletedProcess(arguments, int(status), stdout.read(), stderr.read())

    try:
        yield run
    finally:
        if server is not None:
            server.kill()
            server.communicate()
