"""A sweep's files, each emptied or made another: every view ends with 0, or with 2 and one line."""

from __future__ import annotations

import pytest

from c3po_bench import sweep
from c3po_bench.launch.sweep_folder import SweepFolder

DAMAGES = {
    "emptied": b"",
    "null": b"null\n",
    "a list": b"[]\n",
    "an object": b"{}\n",
    "a number": b"3\n",
    "not UTF-8": b"\xff\xfe{",
}


@pytest.mark.parametrize("damage", [*DAMAGES, "cut"])
def test_a_damaged_file_of_a_sweep_is_one_line(folder: SweepFolder, damage: str, capsys, monkeypatch):
    folder.set_state(0, "done", runs=["runs/ngd-1"], attempt=1)
    folder.note_job(job="7", groups="groups-1.json", script="job-1.sh")
    (folder.path / "groups-1.json").write_text("[[0, 1], [2, 3]]\n")
    for path in [p for p in sorted(folder.path.rglob("*")) if p.is_file()]:
        whole = path.read_bytes()
        path.write_bytes(DAMAGES.get(damage, whole[: len(whole) // 2]))
        for words in (["status"], ["table"], ["retry", "--dry-run"]):
            status = sweep.main([words[0], str(folder.results_dir), *words[1:]])
            error = capsys.readouterr().err
            assert status in (0, 2), (path.name, words)
            if status == 2 and words != ["table"]:
                assert error.startswith("error: ") and error.count("\n") == 1, (path.name, error)
            elif error:
                assert "Traceback" not in error and "our fault" not in error
        path.write_bytes(whole)


def test_a_state_that_names_a_path_elsewhere_is_not_followed(folder: SweepFolder, capsys):
    folder.set_state(0, "done", runs=["../../elsewhere/run"], attempt=1)
    assert sweep.main(["table", str(folder.results_dir)]) == 2
    assert "is no run of this store" in capsys.readouterr().err
