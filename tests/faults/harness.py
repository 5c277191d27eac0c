"""Faults at every stage of both backends: inject one, run the same command again, compare with what was undisturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from queue import Queue
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 300  # seconds of one command
ALL = 90  # faults of each backend, drawn once
REWIRING = (
    *(
        "model=tiny",
        "tasks=[facts_capitals]",
        "references.tasks=[facts_capitals]",
        "references.limit=20",
        "limit=4",
    ),
    *("embedder=hidden_states", "references.only_correct=false", "method.neighbors.max_similarity=1.01"),
    *("arms=[base,ngd,soft_prompt]", "arm_options.soft_prompt.steps=3", "method.steps=2", "batch_size=2"),
    *("tracking=disabled", "threads=1", "seed=0"),
)
FEEDBACK = (
    *("+experiment=feedback_quick", "model=hf", "model.name=tl", "feedback.n_in=8", "feedback.n_near=8"),
    *(
        "feedback.n_out=8",
        "feedback.n_categories=2",
        "feedback.answers.max_new_tokens=4",
        "feedback.train.steps=22",
    ),
    *("feedback.train.sft_steps=12", "feedback.lora.rank=4", "feedback.lora.alpha=8", "batch_size=2"),
    *(
        "feedback.train.batch_size=1",
        "feedback.train.constraint_batch_size=1",
        "feedback.answers.batch_size=4",
    ),
    *("tracking=disabled", "arms=[base,scd,c3po]"),
)
FILES = ("open", "os.", "shutil", "before fsync", "before tensors", "before allocate", "after tensors")
DAMAGES = ("flipped", "cut", "emptied", "deleted", "null")


@dataclass(frozen=True)
class Fault:
    """At the `nth` event of this label, or of a file that is there after a kill, this happens."""

    backend: str
    label: str
    nth: int
    kind: str

    def __str__(self) -> str:
        return f"{self.backend}: {self.kind} at {self.label} ({self.nth})"


@dataclass
class Outcome:
    """How a fault ended: what is wrong (nothing if it was survived), and items that are missing or differ."""

    fault: Fault
    wrong: str = ""
    lost: int = 0
    statuses: list[int] = field(default_factory=list)


class Server:
    """See `server`: a warm process that runs commands in forks."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"TQDM_DISABLE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "tests.faults.server"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)

    def run(
        self, home: Path, arguments: list[str], fault: Fault | None = None, record: Path | None = None
    ) -> tuple[int, str]:
        """Exit status and output of a command."""
        output = home / "output.txt"
        output.unlink(missing_ok=True)
        struck = {"label": fault.label, "nth": fault.nth, "kind": fault.kind} if fault else None
        call = {"arguments": arguments, "fault": struck, "record": str(record) if record else None}
        call |= {"roots": [f"{home}/store/", f"{home}/cache/"], "output": str(output), "timeout": TIMEOUT}
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        return status, output.read_text(errors="replace") if output.exists() else ""

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


class Experiment:
    """One backend's command, what it gives undisturbed, and its events."""

    def __init__(self, backend: str, arguments: tuple[str, ...], folder: Path, server: Server) -> None:
        self.backend, self.arguments, self.folder = backend, arguments, folder
        home, record = folder / "undisturbed", folder / "events.txt"
        home.mkdir(parents=True)
        status, output = server.run(home, self.command(home), record=record)
        assert status == 0, output
        self.expected = results(home)
        labels = record.read_text().splitlines()
        self.events = {label: labels.count(label) for label in dict.fromkeys(labels)}

    def command(self, home: Path) -> list[str]:
        """The command's words for a store and a cache in `home`."""
        return [*self.arguments, f"results_dir={home}/store", f"feedback.cache_dir={home}/cache"]

    def faults(self) -> Iterator[Fault]:
        """Kills, stops and failing disks at the first and the last event of each label; memory where work is done."""
        for label, count in self.events.items():
            kinds = ["kill"]
            if label.startswith(FILES):
                kinds += ["full", "broken"]
            if label in ("before read", "before rewire", "before respond", "before batch", "before step"):
                kinds += ["memory", "stop"]
            for nth in sorted({1, count}):
                yield from (Fault(self.backend, label, nth, kind) for kind in kinds)
        for name in self.files():
            yield from (Fault(self.backend, name, 0, damage) for damage in DAMAGES)

    def files(self) -> list[str]:
        """Files that a run leaves, but logs, locks and others that nobody reads."""
        home = self.folder / "undisturbed"
        names = (
            str(p.relative_to(home)) for p in sorted(home.rglob("*")) if p.is_file() and p.stat().st_size
        )
        return [name for name in names if not name.endswith((".lock", "log.txt", "output.txt", ".md"))]

    def attempt(self, fault: Fault, server: Server) -> Outcome:
        """Inject, run again, compare."""
        outcome, home = Outcome(fault), self.folder / f"trial-{abs(hash(fault))}"
        shutil.rmtree(home, ignore_errors=True)
        try:
            if fault.kind in DAMAGES:
                shutil.copytree(self.folder / "undisturbed", home)
                self._damage(fault, home)
            else:
                home.mkdir()
                status, output = server.run(home, self.command(home), fault)
                outcome.statuses.append(status)
                allowed = {"kill": (-9,), "stop": (130,), "memory": (0, 2)}.get(fault.kind, (0, 2))
                if status not in allowed or "our fault" in output:
                    outcome.wrong = f"exit status {status}: {last(output)}"
                elif (
                    status == 2
                    and fault.kind != "memory"
                    and "[Errno" not in output
                    and str(home) not in last(output)
                ):
                    outcome.wrong = f"no file is named: {last(output)}"
            status, output = server.run(home, self.command(home))
            outcome.statuses.append(status)
            if status == 2 and fault.kind in DAMAGES and Path(fault.label).name.split(".")[0] in last(output):
                (home / fault.label).unlink(missing_ok=True)  # as the line says
                (home / fault.label).with_name("result.json").unlink(missing_ok=True)
                status, output = server.run(home, self.command(home))
                outcome.statuses.append(status)
            if status != 0:
                outcome.wrong = outcome.wrong or f"again: exit status {status}: {last(output)}"
            self._compare(outcome, home)
            left = [p for p in home.rglob(".*.tmp*")]
            if left and not outcome.wrong:
                outcome.wrong = f"left behind: {left[0].name}"
        finally:
            if not outcome.wrong:
                shutil.rmtree(home, ignore_errors=True)
        return outcome

    def _damage(self, fault: Fault, home: Path) -> None:
        """Harm a file of a finished store, whose arms but the base then have to be made again."""
        for path in (home / "store" / "runs").glob("*/result.json"):
            if not path.parent.name.startswith("base-") and str(path.relative_to(home)) != fault.label:
                path.unlink()
        path = home / fault.label
        data = bytearray(path.read_bytes())
        if fault.kind == "flipped":
            data[random.Random(fault.label).randrange(len(data))] ^= 4
            path.write_bytes(data)
        elif fault.kind == "cut":
            path.write_bytes(data[: len(data) // 2])
        elif fault.kind == "deleted":
            path.unlink()
        else:
            path.write_bytes(b"" if fault.kind == "emptied" else b"null\n")

    def _compare(self, outcome: Outcome, home: Path) -> None:
        try:
            found = results(home)
        except (OSError, ValueError, KeyError) as error:
            found, outcome.wrong = {}, outcome.wrong or f"no results: {error}"
        near = outcome.fault.kind == "memory"  # another batch moves the last digits
        for run, expected in self.expected.items():
            rows = found.get(run, {"rows": []})["rows"]
            same = [
                ours for ours, theirs in zip(rows, expected["rows"], strict=False) if near or ours == theirs
            ]
            outcome.lost += len(expected["rows"]) - len(same)
            for name, value in expected.items():
                if name != "rows" and not near and found.get(run, {}).get(name) != value:
                    outcome.wrong = (
                        outcome.wrong or f"{run}: {name} is {found.get(run, {}).get(name)}, not {value}"
                    )
            if rows != expected["rows"] and not near:
                outcome.wrong = outcome.wrong or f"{run}: other rows"


def results(home: Path) -> dict[str, dict[str, Any]]:
    """What a store's runs say, without times and memory."""
    found = {}
    for path in sorted((home / "store" / "runs").glob("*/result.json")):
        result = json.loads(path.read_text())
        found[path.parent.name] = {
            "rows": (path.parent / "samples.jsonl").read_text().splitlines(),
            "phases": sorted(result["cost"]["phases"]),
            **{
                name: result[name]
                for name in ("metrics", "counts", "curves", "notes", "settings", "comparison_key")
            },
        }
    return found


def last(output: str) -> str:
    """The last line that says something."""
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line]
    return (errors or lines or [""])[-1][:400]


@contextmanager
def servers(count: int) -> Iterator[Queue[Server]]:
    """Warm processes, to be taken and put back."""
    with ExitStack() as stack:
        queue: Queue[Server] = Queue()
        for _ in range(count):
            server = Server()
            stack.callback(server.close)
            queue.put(server)
        yield queue


def drawn_faults(experiment: Experiment, most: int | None, only: str) -> list[Fault]:
    """The faults of an experiment in an order drawn once for all; as many as are tried."""
    faults = [fault for fault in experiment.faults() if only in str(fault)]
    random.Random(0).shuffle(faults)
    return faults if most is None else faults[: max(ALL, most)]


def run_faults(
    folder: Path, model: Path, most: int | None = 2 * ALL, jobs: int = 2, only: str = ""
) -> list[Outcome]:
    """Try `most` faults, of both backends in turn; None for all."""
    with servers(jobs) as pool:

        def with_server(work: Any, *arguments: Any) -> Any:
            server = pool.get()
            try:
                return work(*arguments, server)
            finally:
                pool.put(server)

        commands = {"rewiring": REWIRING, "feedback": (*FEEDBACK, f"model.path={model}")}
        with ThreadPoolExecutor(jobs) as threads:
            made = [
                threads.submit(with_server, Experiment, name, arguments, folder / name)
                for name, arguments in commands.items()
            ]
            experiments = {name: each.result() for name, each in zip(commands, made, strict=True)}
            drawn = [drawn_faults(experiment, most, only) for experiment in experiments.values()]
            faults = [fault for both in zip_longest(*drawn) for fault in both if fault][:most]
            tried = [threads.submit(with_server, experiments[f.backend].attempt, f) for f in faults]
            return [each.result() for each in tried]


def summary(outcomes: list[Outcome]) -> str:
    """The line that is printed last."""
    survived = sum(not outcome.wrong for outcome in outcomes)
    return f"{len(outcomes)} faults tried, {survived} survived, {sum(o.lost for o in outcomes)} items lost"
