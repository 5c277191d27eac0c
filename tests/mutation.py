"""`make mutation`: change one thing in the code of kernels, methods, losses or statistics, and see whether a test notices.

A small runner of our own: each of a seeded sample of changes is made in a copy of the package, and the tests of its file
run on it, in a fork of a process that has the libraries imported. `python -m tests.mutation 300` prints each survivor
with its line, and the share that was killed. A change that makes the tests hang counts as killed.
"""

from __future__ import annotations

import ast
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "c3po_bench/rewiring/kernels.py": ["tests/rewiring/test_kernels.py"],
    "c3po_bench/rewiring/losses.py": ["tests/rewiring/test_losses.py", "tests/rewiring/test_methods.py"],
    "c3po_bench/rewiring/neighbors.py": [
        "tests/rewiring/test_neighbors.py",
        "tests/rewiring/test_methods.py",
    ],
    "c3po_bench/rewiring/pathway.py": ["tests/rewiring/test_pathway.py", "tests/rewiring/test_hook.py"],
    "c3po_bench/rewiring/methods/*.py": ["tests/rewiring/test_methods.py", "tests/rewiring/test_controls.py"],
    "c3po_bench/feedback/training/losses.py": [
        "tests/feedback/training/test_losses.py",
        "tests/feedback/training/test_theory.py",
        "tests/feedback/training/test_trainers.py",
    ],
    "c3po_bench/analysis/statistics.py": [
        "tests/analysis/test_statistics.py",
        "tests/analysis/test_coverage.py",
    ],
    "c3po_bench/analysis/families.py": ["tests/analysis/test_families.py"],
    "c3po_bench/analysis/power.py": ["tests/analysis/test_power.py"],
    "c3po_bench/analysis/seeds.py": ["tests/analysis/test_seeds.py"],
    "c3po_bench/analysis/judging.py": ["tests/analysis/test_judging.py"],
}
"""Files that compute the numbers, and the tests that hold them."""
SWAPS: dict[type, list[type]] = {
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Div],
    ast.Div: [ast.Mult],
    ast.Pow: [ast.Mult],
    ast.FloorDiv: [ast.Mult],
    ast.Mod: [ast.Mult],
    ast.MatMult: [ast.Mult],
    ast.Lt: [ast.LtE, ast.Gt],
    ast.LtE: [ast.Lt, ast.GtE],
    ast.Gt: [ast.GtE, ast.Lt],
    ast.GtE: [ast.Gt, ast.LtE],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.And: [ast.Or],
    ast.Or: [ast.And],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.BitAnd: [ast.BitOr],
    ast.BitOr: [ast.BitAnd],
}
SECONDS = 240
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["pytest", "torch", "transformers", "scipy.stats", "pandas", "hydra", "lm_eval.api.task"]
)


@dataclass(frozen=True)
class Mutant:
    """One change: in a file, of its `nth` node that can be changed, in one of its ways."""

    file: str
    nth: int
    way: int
    line: int
    what: str
    tests: tuple[str, ...]


def changes(node: ast.AST) -> list[tuple[str, ast.AST]]:
    """What a node may become, with words for it."""
    ways: list[tuple[str, ast.AST]] = []
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp):
        for kind in SWAPS.get(type(node.op), []):
            changed = deepcopy(node)
            changed.op = kind()  # pyright: ignore
            ways.append((f"{type(node.op).__name__} to {kind.__name__}", changed))
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        for kind in SWAPS.get(type(node.ops[0]), []):
            changed = deepcopy(node)
            changed.ops = [kind()]
            ways.append((f"{type(node.ops[0]).__name__} to {kind.__name__}", changed))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        ways.append((f"without {type(node.op).__name__}", deepcopy(node.operand)))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        ways.append((f"{node.value} to {not node.value}", ast.Constant(not node.value)))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        ways.append((f"{node.value} to {node.value + 1}", ast.Constant(node.value + 1)))
    return ways


class Changer(ast.NodeTransformer):
    """Finds the nodes that can be changed, in order, and makes one change."""

    def __init__(self, nth: int = -1, way: int = 0) -> None:
        self.nth, self.way, self.seen = nth, way, 0
        self.places: list[tuple[int, int, str]] = []

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module
        ) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.Raise | ast.Assert | ast.arg | ast.AnnAssign) and not (
            isinstance(node, ast.AnnAssign) and node.value
        ):
            return node  # what is said, and types
        if isinstance(node, ast.AnnAssign) and node.value:
            node.value = self.visit(node.value)  # pyright: ignore
            return node
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if ways := changes(node):
            self.places += [(self.seen, getattr(node, "lineno", 0), what) for what, _ in ways]
            if self.seen == self.nth:
                self.seen += 1
                return ast.copy_location(ways[self.way][1], node)
            self.seen += 1
        return self.generic_visit(node)


def mutants() -> Iterator[Mutant]:
    """All of them."""
    for pattern, tests in TESTS.items():
        for path in sorted(ROOT.glob(pattern)):
            if path.name == "__init__.py":
                continue
            changer = Changer()
            changer.visit(ast.parse(path.read_text(encoding="utf-8")))
            ways: dict[int, int] = {}
            for nth, line, what in changer.places:
                way = ways[nth] = ways.get(nth, -1) + 1
                yield Mutant(str(path.relative_to(ROOT)), nth, way, line, what, tuple(tests))


def is_killed(mutant: Mutant | None, tests: tuple[str, ...]) -> bool:
    """Whether a test fails on a copy of the package with the change in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("c3po_bench", "tests"):
            shutil.copytree(
                ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors")
            )
        for name in ("conf", "pyproject.toml", "docs", "results", "experiments", "README.md"):
            if (ROOT / name).exists():
                (copy / name).symlink_to(ROOT / name)
        for weights in (ROOT / "c3po_bench").rglob("*.safetensors"):
            (copy / weights.relative_to(ROOT)).symlink_to(weights)
        if mutant is not None:
            tree = ast.parse((ROOT / mutant.file).read_text(encoding="utf-8"))
            changed = ast.fix_missing_locations(Changer(mutant.nth, mutant.way).visit(tree))
            (copy / mutant.file).write_text(ast.unparse(changed), encoding="utf-8")
        child = FORKS.Process(target=run_tests, args=(folder, tests))
        child.start()
        child.join(SECONDS)
        if child.exitcode is None:
            child.kill()
            child.join()
            return True
        return child.exitcode not in (0, 5)  # 5: no test was found; others than 1: it can't even be imported


def run_tests(folder: str, tests: tuple[str, ...]) -> None:
    """In a process that has only the libraries imported: pytest on the copy in `folder`, until a test fails."""
    import pytest  # of the process, not of the runner

    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "c3po_bench")]:
        del sys.modules[name]
    os.chdir(folder)
    sys.path[:] = [folder, *(place for place in sys.path if place not in ("", str(ROOT)))]
    os.environ |= {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
    sys.dont_write_bytecode = True
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    sys.exit(int(pytest.main(["-n", "0", "-x", "-q", "-p", "no:cacheprovider", *tests])))


def main(number: int, jobs: int = 2) -> int:
    """Try a seeded sample; print survivors and the share that was killed."""
    every = list(mutants())
    chosen = random.Random(0).sample(every, min(number, len(every)))
    whole = sorted({mutant.tests for mutant in chosen})
    with ThreadPoolExecutor(jobs) as threads:
        for tests, fails in zip(whole, threads.map(lambda tests: is_killed(None, tests), whole), strict=True):
            if fails:
                sys.stdout.write(f"{' '.join(tests)} fail on the code as it is\n")
                return 1
        killed = 0
        for place, (mutant, dead) in enumerate(
            zip(chosen, threads.map(lambda mutant: is_killed(mutant, mutant.tests), chosen), strict=True),
            start=1,
        ):
            killed += dead
            if not dead:
                sys.stdout.write(f"survives: {mutant.file}, line {mutant.line}: {mutant.what}\n")
            if place % 25 == 0:
                sys.stdout.write(f"{place} of {len(chosen)}: {killed} killed\n")
            sys.stdout.flush()
    sys.stdout.write(
        f"{len(chosen)} of {len(every)} changes tried, {killed} killed ({killed / max(1, len(chosen)):.0%})\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 300, int(os.environ.get("C3PO_JOBS", "2"))))
