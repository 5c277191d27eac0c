"""Where numbers come from: the commit with its changes, threads, and a command that can be typed again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from c3po_bench.store import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A source tree of one commit, which provenance takes for its own."""
    source = tmp_path / "c3po_bench" / "store" / "provenance.py"
    source.parent.mkdir(parents=True)
    source.write_text("first\n")
    monkeypatch.setattr(provenance, "__file__", str(source))
    return source


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_and_a_plus_where_it_was_changed(checkout):
    root = checkout.parents[2]
    assert provenance.git_commit() is None, "no checkout"
    git(root, "init", "-q")
    assert provenance.git_commit() is None, "no commit"
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    (root / "outputs.txt").write_text("not tracked")
    head = git(root, "rev-parse", "HEAD")
    assert provenance.git_commit() == head
    checkout.write_text("second\n")
    assert provenance.git_commit() == head + "+"


def test_a_machine_without_git(checkout, monkeypatch):
    (checkout.parents[2] / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert provenance.git_commit() is None


def test_threads_are_those_torch_uses():
    import torch

    assert provenance.hardware()["threads"] == torch.get_num_threads()


@pytest.mark.parametrize(
    "program, typed",
    [
        ("/env/c3po_bench/__main__.py", "python -m c3po_bench +experiment=quickstart 'name=a b'"),
        ("/env/c3po_bench/sweep.py", "python -m c3po_bench.sweep +experiment=quickstart 'name=a b'"),
    ],
)
def test_the_command_can_be_typed_again(program, typed, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, "+experiment=quickstart", "name=a b"])
    assert provenance.command() == typed
