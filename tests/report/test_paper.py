"""The LaTeX tables cell by cell, against `compare` and `arms_frame`; captions, figures and the order of benchmarks."""

from __future__ import annotations

import re

import pandas as pd
import pytest

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
from c3po_bench.analysis.compare import compare  # noqa: E402
from c3po_bench.analysis.measures import feedback_measures  # noqa: E402
from c3po_bench.analysis.overall import arms_frame  # noqa: E402
from c3po_bench.report.__main__ import main  # noqa: E402
from c3po_bench.report.paper import tex  # noqa: E402
from c3po_bench.store.reader import load_runs  # noqa: E402
from tests import store_factory as factory  # noqa: E402

TASKS = ("winogrande", "our_task", "arc_challenge", "hellaswag")


def cells_of(text):
    """A booktabs table as it is read: its head, and by arm its cells, numbers without markup."""
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0].replace(r"\midrule", "")
    body = re.sub(r"\\shortstack\[r\]\{(.*?)\\\\\{\\scriptsize (\[.*?\])\}\}", r"\1 \2", body)
    body = re.sub(r"\\textbf\{([^}]*)\}", r"**\1", body).replace("$-$", "-").replace("$^*$", "*")
    head, *rows = [[cell.strip() for cell in line.split(" & ")] for line in body.split(r"\\")[:-1]]
    assert {len(row) for row in rows} == {len(head)}
    return head, {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


@pytest.fixture(scope="module")
def rewiring(tmp_path_factory):
    root = tmp_path_factory.mktemp("paper")
    factory.rewiring_store(root, items=30, tasks=TASKS)
    assert main([str(root), "--paper"]) == 0
    return root, root / "paper"


def test_tables_hold_what_compare_says_in_the_papers_order(rewiring):
    root, folder = rewiring
    rows = compare(load_runs(root))
    head, accuracy = cells_of((folder / "accuracy.tex").read_text())
    assert head == ["arm", "HellaSwag", "ARC-C", "WinoGrande", r"our\_task", "mean", "all items"]
    _, difference = cells_of((folder / "difference.tex").read_text())
    names = dict(zip(head[1:], ["hellaswag", "arc_challenge", "winogrande", "our_task"], strict=False))
    names |= {"mean": "mean of tasks", "all items": "all items"}
    best = {}
    for title, task in names.items():
        own = rows[(rows["task"] == task) & (rows["role"] == "method")]
        best[title] = own["accuracy"].max()
    seen = 0
    for row in rows.to_dict("records"):
        for title in (t for t, task in names.items() if task == row["task"]):
            value, interval = accuracy[row["title"]][title].split(" ", 1)
            bold = int(row["role"] == "method" and row["accuracy"] == best[title])
            assert value == "**" * bold + f"{100 * row['accuracy']:.1f}"
            assert interval == f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
            seen += 1
            if row["arm"] == "base":
                assert "base" not in difference
                continue
            value, interval = difference[row["title"]][title].split(" ", 1)
            star = "*" * int(
                row["p_holm"] < 0.05 and row["p"] < 0.05 and row["diff_low"] * row["diff_high"] > 0
            )
            assert value == f"{100 * row['difference']:+.1f}{star}"
            assert interval == f"[{100 * row['diff_low']:.1f}, {100 * row['diff_high']:.1f}]"
    assert seen == 6 * 6


def test_captions_say_items_interval_test_correction_and_command(rewiring):
    _, folder = rewiring
    caption = (folder / "difference.tex").read_text().split("\\caption{")[1].split("\n")[0]
    for part in (
        "ARC-C 30",
        r"95\% intervals",
        "McNemar's mid-",
        "Holm",
        r"python -m c3po\_bench +experiment=quickstart",
    ):
        assert part in caption, part
    document = (folder / "paper.tex").read_text()
    figures = re.findall(r"\\includegraphics\[[^]]*\]\{([^}]*)\}\n\\caption\{(.*)\}\n", document)
    assert [name for name, _ in figures] == ["effects.pdf", "cost.pdf"]
    for name, caption in figures:
        assert (folder / name).read_bytes().startswith(b"%PDF")
        assert (folder / name).with_suffix(".svg").read_text().startswith("<svg")
        for part in ("$n$ = 120", r"95\% intervals", "McNemar", "Holm", "experiment=quickstart"):
            assert part in caption, (name, part)
    tables = re.findall(r"\\input\{([^}]*)\}", document)
    assert tables == ["accuracy.tex", "difference.tex"] and all((folder / name).exists() for name in tables)


def test_comparison_begins_with_what_is_over_all_benchmarks(rewiring):
    tasks = list(dict.fromkeys(pd.read_csv(rewiring[1] / "comparison.csv")["task"]))
    assert tasks == ["all items", "mean of tasks", "hellaswag", "arc_challenge", "winogrande", "our_task"]


def test_braces_of_all_that_is_written_are_balanced(rewiring):
    for path in rewiring[1].glob("*.tex"):
        text = re.sub(r"(?<!\\)\\[{}]", "", path.read_text())
        assert text.count("{") == text.count("}"), path.name


def test_names_are_escaped():
    assert tex("a_b & 5% {x} \\ ~") == r"a\_b \& 5\% \{x\} \textbackslash{} \textasciitilde{}"


def test_the_table_of_feedback_is_the_papers(tmp_path):
    factory.feedback_store(tmp_path)
    assert main([str(tmp_path), "--paper", "--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "feedback.tex").read_text()
    head, table = cells_of(text)
    names = ["follows", "leaks_near", "leaks_out", "s_overall", "drift"]
    assert len(head) == 6 and head[0] == "arm" and r"\mathrm{overall}" in head[4]
    runs = load_runs(tmp_path)
    arms = arms_frame(runs, feedback_measures(runs)).to_dict("records")
    assert list(table) == [row["title"] for row in arms]
    best = max(row["s_overall"] for row in arms if row["role"] in ("method", "baseline"))
    for row in arms:
        for title, name in zip(head[1:], names, strict=True):
            digits = 3 if name == "drift" else 2
            value, _, interval = table[row["title"]][title].partition(" ")
            bold = "**" * (name == "s_overall" and row["role"] != "base" and row[name] == best)
            assert value == bold + f"{row[name]:.{digits}f}"
            if interval:
                assert interval == f"[{row[name + '_low']:.{digits}f}, {row[name + '_high']:.{digits}f}]"
    assert "120 prompts" in text and "Holm" in text and "experiment=feedback" in text
    assert not (tmp_path / "out" / "difference.tex").exists()


def test_against_another_arm(tmp_path, capsys):
    factory.rewiring_store(tmp_path, items=30)
    assert main([str(tmp_path), "--paper", "--against", "ngd"]) == 0
    text = (tmp_path / "paper" / "difference.tex").read_text()
    _, table = cells_of(text)
    assert "difference to ngd" in text and "base" in table and "NGD" not in table
    capsys.readouterr()
    assert main([str(tmp_path), "--table", "--against", "ngd"]) == 0
    said = capsys.readouterr().out
    rows = compare(load_runs(tmp_path), against="ngd")
    row = rows[(rows["arm"] == "oracle") & (rows["task"] == "all items")].iloc[0]
    assert f"{100 * row['difference']:+.1f} [" in said and "differences are to ngd" in said
