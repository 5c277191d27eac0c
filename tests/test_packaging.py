"""What is installed and shipped: pins for every requirement, and a source archive of the package alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_requirement_is_pinned_within_its_range():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {
        canonicalize_name(pin.name): pin
        for pin in map(Requirement, filter(None, (re.sub("#.*", "", x) for x in lines)))
    }
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [
        Requirement(text)
        for group in (PROJECT["project"]["dependencies"], *extras.values())
        for text in group
    ]
    for one in wanted:
        (pin,) = pins[canonicalize_name(one.name)].specifier
        assert one.specifier.contains(pin.version), f"{one} is pinned to {pin.version}"


def test_the_source_archive_takes_files_of_the_root_alone():
    """A pattern without a slash takes every README.md of the repository."""
    patterns = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert all(pattern.startswith("/") and (ROOT / pattern[1:]).exists() for pattern in patterns)


@pytest.mark.slow
def test_a_wheel_runs_the_quickstart_in_an_empty_environment(tmp_path: Path):
    """With what the package itself requires, no extra, from a folder that knows nothing of the source."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-1500:]}{done.stderr[-1500:]}"
        return done.stdout

    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    printed = run(
        tmp_path / "venv" / "bin" / "c3po-bench", "experiment=quickstart", "limit=3", "results_dir=out"
    )
    assert "ngd" in printed.lower() and (tmp_path / "out" / "experiments").is_dir()


def test_the_version_is_the_same_wherever_it_stands():
    """Package, citation and the changelog's first heading; with a date once it is released."""
    from c3po_bench import __version__

    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+) \((\S+)\)$", changes, re.MULTILINE)
    assert newest is not None and newest[1] == __version__
    if newest[2] != "unreleased":
        assert f"version: {newest[1]}\n" in citation and f'date-released: "{newest[2]}"\n' in citation
