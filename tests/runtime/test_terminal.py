"""What a terminal shows: nothing wraps at 80 and 120 columns, nothing is cut, log lines stand above bars."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from c3po_bench.runtime.console import WHOLE, Whole, bar_line, duration, folded, rate_text, unit_of
from tests.runtime.terminal import check_fits, on_terminal, python

LONG = "kernel_regression_random_neighbors: tuning on held-out references"
BARS = """
import time
from c3po_bench.runtime.console import WHOLE, Progress, log, set_up_logging
set_up_logging("info")
WHOLE.cell, WHOLE.arm, WHOLE.left = "cell 2 of 6", "ngd", lambda own: (own or 0) + 4000
outer, inner = Progress(), Progress()
for done in range(4):
    outer("ngd: scoring", done, 4)
    for read in range(3):
        inner("reading references", read, 2)
        time.sleep(0.12)
    log.info("a line of the log, number %d, that is long enough to be folded at eighty columns, but not cut", done)
    time.sleep(0.12)
END
"""
TINY = [
    "-m",
    "c3po_bench",
    "+experiment=quickstart",
    "model=tiny",
    "embedder=hidden_states",
    "tasks=[facts_capitals]",
    "references.tasks=[facts_capitals]",
    "references.limit=24",
    "references.only_correct=false",
    "method.neighbors.max_similarity=1.01",
    "tracking=disabled",
    "limit=4",
    "batch_size=1",
]


SLOW_ROWS = """
import pathlib, time
from c3po_bench.store.files import Journal
append = Journal.append
def slow(self, rows):
    append(self, rows)
    time.sleep(0.3 * pathlib.Path("slow").exists())
Journal.append = slow
"""
"""A plugin under which every item takes a third of a second while there is a file `slow`."""


@pytest.mark.parametrize("columns", [80, 120])
def test_bars_and_log_lines_do_not_meet(columns: int):
    shown = python(columns, "-c", BARS.replace("END", 'outer("ngd: scoring", 4, 4)'))
    assert shown.status == 0, shown.text
    check_fits(shown, columns)
    bars = [line for line in shown.drawn if "ngd: scoring" in line or "ngd: reading references" in line]
    assert bars and all(line.startswith("cell 2 of 6 ngd: ") for line in bars)
    assert any("s left" in line and "to the end" in line for line in bars)
    logged = [line for line in shown.screen if line]
    assert all(re.match(r"\d\d:\d\d:\d\d a line|         ", line) for line in logged), logged
    assert sum("a line of the log" in line for line in logged) == 4
    assert shown.text.rstrip().endswith("\x1b[2K") and shown.text.count("\x1b[?25h") >= 1


def test_an_interrupt_takes_the_bar_away():
    ends = "import atexit\nfrom c3po_bench.runtime.console import close_bar\natexit.register(close_bar)\n"
    ends += 'outer("ngd: scoring", 0, 9)\n'
    shown = python(80, "-c", BARS.split("for done")[0] + ends + "time.sleep(0.3)\nraise SystemExit(130)")
    assert shown.status == 130 and not any(shown.screen), shown.screen


@pytest.mark.parametrize("width", [40, 79, 119])
@pytest.mark.parametrize("cell", ["", "cell 12 of 16 "])
def test_a_bar_fits_its_line(width: int, cell: str):
    extras = ("about 34 min left", "2.5 h to the end", "40 s/step")
    for what in ("base: scoring", LONG):
        line = bar_line(cell + what, 123, 14042, extras, width)
        assert len(line) <= width and "123/14042" in line and "…" not in line
    wide = bar_line(f"{cell}base: scoring", 123, 14042, extras, 119)
    assert all(extra in wide for extra in extras) and "──" in wide
    narrow = bar_line("base: scoring", 123, 14042, extras, 50)
    assert "34 min left" in narrow and "to the end" not in narrow


@pytest.mark.parametrize(
    ("rate", "what", "text", "words"),
    [
        (2.0, "base: scoring", "2.0/s", "2.0 a second"),
        (0.025, "training c3po", "40 s/step", "40 s per step"),
        (0.5, "reading references", "2.0 s/reference", "2.0 s per reference"),
        (0.001, "ngd: scoring", "17 min/item", "17 min per item"),
        (0.5, "ngd: tuning on held-out references", "2.0 s/setting", "2.0 s per setting"),
        (0.0, "ngd: scoring", "", ""),
    ],
)
def test_rates_have_a_unit_that_makes_sense(rate: float, what: str, text: str, words: str):
    assert rate_text(rate, unit_of(what)) == text and rate_text(rate, unit_of(what), words=True) == words


def test_times_have_one_too():
    said = [duration(s) for s in (0.2, 40, 78, 200, 3 * 3600, 200000)]
    assert said == ["1 s", "40 s", "78 s", "3 min", "3.0 h", "2 days"]


def test_a_label_names_cell_arm_and_phase():
    assert Whole("cell 2 of 6", "ngd").label("reading references") == "cell 2 of 6 ngd: reading references"
    assert Whole("", "c3po").label("training c3po") == "training c3po"
    assert Whole().label("base: scoring") == "base: scoring"
    assert Whole(WHOLE.cell, WHOLE.arm, WHOLE.left) == WHOLE


def test_long_lines_are_folded_between_words_and_paths_stay_whole():
    line = "12:00:00 ngd: starting, in " + "/a/long/path" * 9
    assert folded(line, 80).split("\n") == [line[:26].rstrip(), " " * 9 + line[27:]]
    assert folded("short", 80) == "short"


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
def test_an_experiment_on_a_terminal(columns: int, tmp_path: Path):
    shown = python(columns, *TINY, f"results_dir={tmp_path}/r")
    assert shown.status == 0, shown.text
    log = [line for line in shown.drawn if re.match(r"\d\d:\d\d:\d\d ", line)]
    assert "quickstart: 10 arms, 4 items of facts_capitals, model tiny" in log[0]
    for line in [*log, *(line for line in shown.drawn if "scoring" in line)]:
        assert len(line) <= columns and "…" not in line, line


@pytest.mark.slow
def test_a_sweep_on_a_terminal_names_its_cells(tmp_path: Path):
    words = ["-m", "c3po_bench", "-m", "+sweep=steps", *TINY[3:], "method.steps=1,2", "arms=[base,ngd]"]
    shown = python(80, *words, f"results_dir={tmp_path}/r")
    assert shown.status == 0, shown.text
    assert any(line.startswith("cell 2 of 2 ngd: ") for line in shown.drawn), shown.drawn
    for line in (line for line in shown.drawn if re.match(r"\d\d:\d\d:\d\d |cell ", line)):
        assert len(line) <= 80 and "…" not in line, line


@pytest.mark.slow
def test_an_interrupted_experiment_leaves_a_clean_screen_and_goes_on(tmp_path: Path):
    (tmp_path / "slow_rows.py").write_text(SLOW_ROWS)
    (tmp_path / "slow").touch()
    command = [*TINY, f"results_dir={tmp_path}/r", "limit=20", "arms=[base,ngd]", "plugins=[slow_rows]"]
    shown = python(80, *command, stop_at="ngd: scoring", cwd=tmp_path)
    assert shown.status == 130, shown.text
    assert not any("scoring" in line for line in shown.screen), shown.screen
    assert shown.text.rfind("\x1b[?25h") > shown.text.rfind("\x1b[?25l")
    assert [line for line in shown.screen if line][-1].startswith("interrupted: run the same command again")
    (tmp_path / "slow").unlink()
    again = python(80, *command, cwd=tmp_path)
    assert again.status == 0 and "base: done before" in " ".join(again.drawn)


def test_the_terminal_of_these_tests_follows_the_cursor():
    shown = on_terminal(80, "printf", "one\\ntwo\\r\\033[2Kthree\\n\\033[1A\\033[2Kfour")
    assert shown.screen == ["one", "four", ""] and "two" in shown.drawn
