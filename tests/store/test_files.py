"""Journals and whole files survive being cut short."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from c3po_bench.errors import UserError, disk_failure
from c3po_bench.store.files import HOST, Journal, read_groups, read_jsonl, replacing, write_json, writing
from c3po_bench.store.identity import content_hash, run_id
from c3po_bench.store.reader import Run, load_experiments


def test_a_journal_goes_on_after_a_torn_last_line(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).append([{"key": "a", "x": 1}, {"key": "é", "x": 2}])
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"key": "c", "x"')
    journal = Journal(path)
    assert set(journal.rows) == {"a", "é"}
    journal.append([{"key": "c", "x": 3}])
    assert [row["x"] for row in read_jsonl(path)] == [1, 2, 3]


def test_a_journal_goes_on_wherever_a_kill_cuts_it_also_within_a_character(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).append([{"key": "a"}])
    kept = path.read_bytes()
    Journal(path).append([{"key": "é", "answer": "naïve 🙂"}])
    whole = path.read_bytes()
    for end in range(len(kept), len(whole)):
        path.write_bytes(whole[:end])
        assert [row["key"] for row in read_groups(path)] == ["a"]
        assert set(Journal(path).rows) == {"a"}
        assert path.read_bytes() == kept


def test_what_was_appended_together_counts_together(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append([{"key": "a"}])
    journal.append([{"key": "b"}, {"key": "c"}, {"key": "d"}])
    text = path.read_text(encoding="utf-8")
    path.write_text("".join(text.splitlines(keepends=True)[:-1]), encoding="utf-8")
    assert set(Journal(path).rows) == {"a"}
    assert len(list(read_jsonl(path))) == 1


def test_several_processes_append_to_one_journal(tmp_path):
    """Each group stays whole, whoever else writes meanwhile."""
    path = tmp_path / "journal.jsonl"
    script = (
        "import sys; from pathlib import Path; from c3po_bench.store.files import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for i in range(30):\n"
        "    journal.append({'key': f'{sys.argv[2]}.{i}.{j}', 'text': 'x' * 5000} for j in range(3))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), str(who)]) for who in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    keys = [row["key"] for row in read_groups(path)]
    assert len(keys) == len(set(keys)) == 270
    assert all(keys[i + j] == keys[i][:-1] + str(j) for i in range(0, 270, 3) for j in range(3))


def test_a_journal_whose_rows_can_be_made_again_leaves_out_what_does_not_count(tmp_path):
    path = tmp_path / "calls.jsonl"
    path.write_bytes(
        b'{"key": "a", "n": 1}\n{"key": \n[]\n\xc3\n{"key": "b", "n": -1}\n{"n": 2}\n{"key": "c", "n'
    )
    journal = Journal(path, valid=lambda row: isinstance(row["key"], str) and row["n"] > 0)
    assert set(journal.rows) == {"a"}
    journal.append([{"key": "d", "n": 1}, {"key": "e", "n": 1}])
    assert set(Journal(path, valid=lambda row: row["n"] > 0 and "key" in row).rows) == {"a", "d", "e"}
    assert '"of"' not in path.read_text(errors="replace")


def test_whole_files_leave_nothing_beside_them(tmp_path):
    write_json(tmp_path / "sub" / "a.json", {"x": "é"})
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "sub" / "a.json").read_text(encoding="utf-8")) == {"x": "é"}


def test_a_run_is_named_by_content_not_by_order_of_keys():
    assert run_id("ngd", {"a": 1, "b": [2]}) == run_id("ngd", {"b": [2], "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})


def test_damage_is_said_in_one_line_with_its_place(tmp_path):
    journal, run = tmp_path / "journal.jsonl", Run(tmp_path / "run")
    journal.write_text('{"key": "a"}\n{"key": \n{"key": "c"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"journal\.jsonl, line 2 is damaged"):
        Journal(journal)
    journal.write_bytes(
        '{"key": "a"}\n{"key": "é"}\n{"key": "c"}\n'.encode().replace("é".encode(), "é".encode()[:1])
    )
    with pytest.raises(UserError, match=r"journal\.jsonl, line 2 is damaged"):
        Journal(journal)
    run.path.mkdir()
    (run.path / "result.json").write_text('{"arm": ', encoding="utf-8")
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        _ = run.result
    with pytest.raises(UserError, match=r"no samples\.jsonl"):
        run.samples()
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "e.json").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"e\.json is damaged"):
        load_experiments(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    with replacing(path) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("new")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_dead_processes_were_writing_goes_away(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, living = (
        tmp_path / f".a.{HOST}-{ended.pid}.tmp.json",
        tmp_path / f".b.{HOST}-{os.getppid()}.tmp.json",
    )
    elsewhere, old = tmp_path / ".c.another-1.tmp.json", tmp_path / ".d.another-2.tmp.json"
    for file in (dead, living, elsewhere, old):
        file.touch()
    os.utime(old, (0, 0))
    write_json(tmp_path / "x.json", {})
    assert {p.name for p in tmp_path.iterdir()} == {living.name, elsewhere.name, "x.json"}


def test_a_changed_byte_of_a_journal_is_noticed(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).append([{"key": "a", "answers": [-1.25, -3.5]}, {"key": "b", "text": "naïve"}])
    assert [row.get("line_crc") for row in read_jsonl(path)] == [None, None]
    data = path.read_bytes()
    path.write_bytes(data.replace(b"-1.25", b"-1.35"))
    with pytest.raises(UserError, match=r"journal\.jsonl, line 1 is damaged \(its checksum"):
        Journal(path)
    assert set(Journal(path, valid=lambda row: True).rows) == {"b"}
    for row in (b"{}\n", b"null\n", b'{"key": 1}\n', b'{"key": "a", "of": "b"}\n'):
        path.write_bytes(row)
        with pytest.raises(UserError, match=r"line 1 is damaged"):
            Journal(path)


def test_a_full_disk_leaves_no_part_of_a_group_and_is_said_with_the_file(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append([{"key": "a"}])
    kept = path.read_bytes()

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"journal\.jsonl"):
        journal.append([{"key": "b"}, {"key": "c"}])
    assert path.read_bytes() == kept
    with (
        pytest.raises(UserError, match=r"b\.json: No space left .*make room in .* \(results_dir\)"),
        writing(tmp_path, "results_dir"),
    ):
        write_json(tmp_path / "b.json", {})
    assert [p.name for p in tmp_path.iterdir()] == ["journal.jsonl"]


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.EDQUOT, "quota"), errno.EDQUOT),
        (
            RuntimeError(
                "[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file"
            ),
            errno.ENOSPC,
        ),
        (OSError("40000 requested and 12288 written"), errno.ENOSPC),
        (Exception("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (ValueError("Error while serializing: I/O error: Input/output error (os error 5)"), errno.EIO),
        (ValueError("another"), None),
        (FileNotFoundError(errno.ENOENT, "no such file"), None),
        (UserError("No space left"), None),
    ],
)
def test_a_full_or_failing_disk_is_known_whoever_says_so(error, number):
    failure = disk_failure(error)
    assert (failure and failure.errno) == number
    wrapped = RuntimeError("while saving")
    wrapped.__cause__ = error
    failure = disk_failure(wrapped)
    assert (failure and failure.errno) == number
