"""A process with everything imported that answers each command in a fork, with a fault in it.

A fork counts what happens to files under the store and the cache, and calls of some functions: the *events* of a run,
each with a label that names what is done to what. A fault is an event (a label and which of its occurrences) and what
then happens: the process is killed, told to stop, or the operation fails as on a full or failing disk or without memory.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import signal
import sys
import traceback
from collections import Counter
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FUNCTIONS = {
    "journal": ("c3po_bench.store.files", "Journal", "append"),
    "states": ("c3po_bench.rewiring.states", "StateStore", "put"),
    "read": ("c3po_bench.rewiring.engines.suffix", "SuffixEngine", "read_new"),
    "rewire": ("c3po_bench.rewiring.rewirer", "Rewirer", "answer"),
    "respond": ("c3po_bench.feedback.responder", "Responder", "answer"),
    "step": ("transformers.trainer", "Trainer", "training_step"),
    "checkpoint": ("transformers.trainer", "Trainer", "_save_checkpoint"),
    "adapter": ("peft.peft_model", "PeftModel", "save_pretrained"),
    "batch": ("c3po_bench.feedback.synthesis", None, "answer_all"),
    "result": ("c3po_bench.evaluate.run", None, "make_result"),
    "fsync": ("os", None, "fsync"),
    "tensors": ("torch", None, "save"),
    "allocate": ("os", None, "posix_fallocate"),
}
ERRORS = {"full": errno.ENOSPC, "broken": errno.EIO}


class Events:
    """What happened so far, and what is to happen at one of them."""

    def __init__(self, roots: list[str], fault: dict[str, Any] | None, record: str | None) -> None:
        self.roots, self.fault, self.record = roots, fault, record
        self.seen: Counter[str] = Counter()
        self.busy = False

    def happen(self, label: str, path: str = "") -> None:
        if self.busy:
            return
        self.busy = True
        try:
            self.seen[label] += 1
            if self.record:
                with open(self.record, "a", encoding="utf-8") as file:
                    file.write(label + "\n")
            fault = self.fault
            if fault and fault["label"] == label and fault["nth"] == self.seen[label]:
                strike(fault["kind"], path)
        finally:
            self.busy = False

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "shutil.rmtree"):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        if isinstance(path, str | bytes | os.PathLike):
            name = os.fsdecode(path)
            if root := next((root for root in self.roots if name.startswith(root)), None):
                self.happen(f"{event} {plain(name.removeprefix(root))}", name)

    def wrap(self, name: str, function: Any) -> Any:
        @functools.wraps(function)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.happen(f"before {name}")
            result = function(*arguments, **options)
            self.happen(f"after {name}")
            return result

        return wrapped


def plain(name: str) -> str:
    """A path without what differs between runs: hashes, process numbers."""
    name = re.sub(r"\.[\w-]+-\d+\.tmp", ".tmp", name)
    return re.sub(r"[0-9a-f]{12,}", "*", name)


def strike(kind: str, path: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
    elif kind == "memory":
        raise MemoryError("a fault of the tests")
    else:
        raise OSError(ERRORS[kind], os.strerror(ERRORS[kind]), path or None)


def command(call: dict[str, Any]) -> int:
    from c3po_bench import __main__

    sys.argv = ["c3po_bench", *call["arguments"]]
    events = Events(call["roots"], call["fault"], call["record"])
    if call["fault"] or call["record"]:
        for name, (module, owner, attribute) in FUNCTIONS.items():
            holder = sys.modules[module]
            holder = getattr(holder, owner) if owner else holder
            setattr(holder, attribute, events.wrap(name, getattr(holder, attribute)))
        sys.addaudithook(events.audit)
    return __main__.main()


def serve() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print while they are imported
    import c3po_bench.analysis.tables
    import c3po_bench.evaluate.adapter
    import c3po_bench.evaluate.run
    import c3po_bench.feedback.backend
    import c3po_bench.feedback.training.trainers
    import c3po_bench.rewiring.backend
    import c3po_bench.rewiring.baselines.sft
    import c3po_bench.rewiring.engines.suffix  # noqa: F401

    for line in sys.stdin:
        call = json.loads(line)
        if not (child := os.fork()):
            for number, name in enumerate((os.devnull, call["output"], call["output"])):
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT if number else os.O_RDONLY
                os.dup2(os.open(name, flags, 0o644), number)
            signal.alarm(call["timeout"])  # a hang ends as one
            try:
                status = command(call)
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        replies.write(f"{os.waitstatus_to_exitcode(status)}\n")
        replies.flush()


if __name__ == "__main__":
    serve()
