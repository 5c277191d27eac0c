"""Every file of a store is read by one reader: what is wrong with it is said in one line with its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import wandb

from c3po_bench.errors import USER, UserError
from c3po_bench.publish import main as publish
from c3po_bench.report.__main__ import main as report
from c3po_bench.store.reader import load_experiments, load_runs
from c3po_bench.store.records import (
    file_checksums,
    lost_file,
    mismatch,
    read_json,
    read_sealed,
    read_yaml,
    write_sealed,
)
from c3po_bench.store.schema import Experiment, Phase, Result
from tests.store_factory import store

CONTENTS = {
    "emptied": b"",
    "null": b"null",
    "cut": b'{"a": [1, 2',
    "of another type": b"[1, 2]",
    "not UTF-8": b'{"a": "\xff"}',
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=list(CONTENTS))
@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_what_is_no_record_is_refused_in_one_line(tmp_path, content: bytes, read: Callable[..., object]):
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=r"a\.json is missing: put it back"):
        read(path, dict)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is damaged \(.+\): delete it") as caught:
        read(path, dict, "delete it")
    assert "\n" not in str(caught.value)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"a\.json can't be read"):
        read(path)


@pytest.mark.parametrize(
    ("value", "kind", "why"),
    [
        ({"seconds": 1, "flops": None}, Phase, ""),
        ({"seconds": 1.5, "flops": 1e12}, Phase, ""),
        ({"seconds": True, "flops": 1}, Phase, "seconds is a yes or no, not a number"),
        ({"flops": 1}, Phase, "seconds is missing"),
        ([], Experiment, "it is a list, not an object"),
        ({"a": [1, "2"]}, dict[str, list[int]], "a[1] is a text, not a whole number"),
        ({}, Result, "schema_version is missing"),
        (None, list[str], "it is null, not a list"),
    ],
)
def test_a_mismatch_is_said_with_its_place(value: object, kind: object, why: str):
    assert mismatch(value, kind) == why


def test_a_sealed_record_that_is_not_what_was_written_is_not_there(tmp_path, caplog):
    path = tmp_path / "record.json"
    assert read_sealed(path) is None and not caplog.text
    write_sealed(path, {"losses": [0.25, 1e-9], "é": None})
    assert read_sealed(path) == {"losses": [0.25, 1e-9], "é": None}
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert read_sealed(path) in (None, {"losses": [0.25, 1e-9], "é": None})
    path.write_bytes(data.replace(b"0.25", b"0.35"))
    assert read_sealed(path) is None and "record.json is damaged" in caplog.text


def test_a_file_that_is_lost_or_damaged_is_found(tmp_path):
    (tmp_path / "a").write_bytes(b"aaaa")
    (tmp_path / "b").write_bytes(b"")
    known = file_checksums(tmp_path)
    assert lost_file(tmp_path, known) is None
    (tmp_path / "a").write_bytes(b"aaba")
    assert lost_file(tmp_path, known) == "a"
    (tmp_path / "a").unlink()
    assert lost_file(tmp_path, known) == "a"


HARM: dict[str, bytes | None] = {"missing": None, **CONTENTS, "another object": b"{}"}
FILES = ("result.json", "provenance.json", "config.yaml", "samples.jsonl", "experiments", "published.json")


@pytest.mark.parametrize("name", FILES)
def test_views_name_the_file_that_is_damaged(tmp_path, capsys, name: str):
    """`report` and `publish` end with 2 and one line, or do without the file."""
    store(tmp_path, base=[1.0, 0.0, 1.0], ngd=[1.0, 1.0, 1.0])
    run = load_runs(tmp_path)[0].path
    path = {"published.json": tmp_path / "wandb" / name}.get(name, run / name)
    if (
        name == "published.json"
    ):  # a run of the same name, which another test of this process left open, is in its way
        wandb.teardown()
    if name == "experiments":
        path = (
            sorted((tmp_path / name).glob("*.json"))[0]
            if (tmp_path / name).is_dir()
            else tmp_path / name / "e.json"
        )
    path.parent.mkdir(exist_ok=True)
    kept = path.read_bytes() if path.exists() else None
    for harm, content in HARM.items():
        if content is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(content)
        commands = [lambda: publish([str(tmp_path), "--mode", "offline"])] if name == "published.json" else []
        commands += [] if name in ("published.json",) else [lambda: report([str(tmp_path)])]
        for command in commands:
            status = command()
            error = capsys.readouterr().err
            fine = harm == "missing" and name in (
                "result.json",
                "config.yaml",
                "experiments",
                "published.json",
            )
            fine |= name == "config.yaml" and harm == "another object"
            fine |= name == "published.json" and harm == "another object"
            if fine:
                assert status == 0, (harm, error)
            else:
                assert status == USER and path.name in error and error.count("\n") == 1, (harm, error)
    if kept is not None:
        path.write_bytes(kept)


def test_rows_that_are_not_those_that_were_written_are_refused(tmp_path):
    store(tmp_path, base=[1.0, 0.0])
    run = load_runs(tmp_path)[0]
    path, provenance = run.path / "samples.jsonl", run.path / "provenance.json"
    record = json.loads(provenance.read_text())
    provenance.write_text(json.dumps(record | {"checksums": file_checksums(run.path)}))
    assert len(load_runs(tmp_path)[0].samples()) == 2
    path.write_bytes(path.read_bytes().replace(b'"correct": 1', b'"correct": 0'))
    with pytest.raises(UserError, match=r"samples\.jsonl is damaged .*changed"):
        load_runs(tmp_path)[0].samples()
    with pytest.raises(UserError, match="no results"):
        load_runs(tmp_path / "nowhere")
    assert load_experiments(tmp_path / "nowhere") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of a megabyte, which root may")
def test_a_full_disk_keeps_the_old_report(tmp_path):
    store(tmp_path / "store", base=[1.0, 0.0] * 8, ngd=[1.0, 1.0] * 8)
    output = tmp_path / "disk"
    output.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(output)], capture_output=True
    ).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        (output / "report.html").write_text("the old report")
        command = [
            sys.executable,
            "-m",
            "c3po_bench.report",
            str(tmp_path / "store"),
            "--output",
            str(output),
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert done.returncode == USER, done.stderr
        assert (
            "No space left" in done.stderr and str(output) in done.stderr and "Traceback" not in done.stderr
        )
        assert (output / "report.html").read_text() == "the old report"
        assert not list(output.rglob(".*.tmp*"))
    finally:
        subprocess.run(["umount", str(output)])
