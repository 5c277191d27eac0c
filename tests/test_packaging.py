"""What is installed and shipped: pins for every requirement, and a source archive of the package alone."""

from __future__ import annotations

import re
import tomllib

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
