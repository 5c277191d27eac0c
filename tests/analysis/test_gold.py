"""The right choice's probability: the note's two examples, columns, cells, sentences, and what cannot be recomputed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import wilcoxon

from c3po_bench.analysis import statistics
from c3po_bench.analysis.compare import compare
from c3po_bench.analysis.frames import records
from c3po_bench.analysis.gold import LOST, gold_probability
from c3po_bench.analysis.study import kept, publish
from c3po_bench.analysis.tables import console_table
from c3po_bench.analysis.verdict import verdict
from c3po_bench.report.tables import COLUMNS, comparison_rows, marks
from c3po_bench.store.reader import load_runs
from tests import store_factory as factory

BASE = [(-4.1, -3.9, -5.2, -6.0), (-2.0, -2.1, -2.2, -2.3), (-7.5, -7.0, -6.9, -8.0)]
ARM = [(-3.8, -4.0, -5.2, -6.0), (-2.4, -2.0, -2.2, -2.3), (-7.2, -7.0, -7.1, -8.0)]
CHANGES = (0.12, -0.03, 0.05, 0, 0.21, 0.08, -0.06, 0.02, 0.04, -0.01, 0.15, 0.07)


def test_probabilities_of_three_items():
    base = [gold_probability(scores, [gold]) for gold, scores in enumerate(BASE)]
    arm = [gold_probability(scores, [gold]) for gold, scores in enumerate(ARM)]
    assert base == pytest.approx([0.369844033, 0.261182592, 0.358870545], abs=1e-9)
    assert arm == pytest.approx([0.459531185, 0.309610078, 0.292690523], abs=1e-9)
    assert np.mean(np.subtract(arm, base)) == pytest.approx(0.023978205, abs=1e-9)
    right = [[int(np.argmax(s) == gold) for gold, s in enumerate(each)] for each in (BASE, ARM)]
    assert [sum(r) for r in right] == [1, 2] and statistics.fixed_broken(right[1], right[0]) == (2, 1)
    assert gold_probability([-1.0, -1.0, -1.0, -1.0], [0, 2, 2]) == pytest.approx(0.5)
    assert gold_probability([-900.0, -1.0], [0]) == pytest.approx(0.0, abs=1e-12)


def test_interval_and_tests_of_twelve_changes():
    mean, se, df = statistics.standard_error(CHANGES)
    assert (mean, se, df) == (pytest.approx(0.053333333), pytest.approx(0.022574232), 11)
    assert mean / se == pytest.approx(2.362575739) and np.std(CHANGES, ddof=1) == pytest.approx(0.078199434)
    assert statistics.t_test(CHANGES) == pytest.approx(0.037642274)
    assert statistics.t_interval(CHANGES)[1:] == pytest.approx((0.003647783, 0.103018883))
    assert statistics.sign_flip(CHANGES) == 160 / 4096
    test = wilcoxon(CHANGES, zero_method="wilcox", method="exact")
    assert (test.statistic, test.pvalue) == (10, pytest.approx(0.041992188))
    low, high = statistics.bootstrap(CHANGES)[1:]
    assert (low, high) == (pytest.approx(0.013333, abs=2e-3), pytest.approx(0.0975, abs=2e-3))
    # the trap: z in place of t, and n in place of n - 1
    narrower = math.sqrt(11 / 12) * statistics.Z / 2.200985160
    assert narrower == pytest.approx(0.852583, abs=1e-5)


def with_probabilities(root, changes, right=(0, 1) * 6, arm_right=None):
    """Base and NGD on twelve items, whose right choices' probabilities differ by `changes`."""
    base, arm = factory.store(root, base=list(right), ngd=list(right if arm_right is None else arm_right))
    factory.edit(base, lambda row: row.update(p_gold=0.4))
    factory.edit(arm, lambda row: row.update(p_gold=0.4 + changes[row["doc_id"] % len(changes)]))
    return [base, arm]


def test_a_comparison_has_the_change_of_the_right_choices_probability(tmp_path):
    frame = compare(with_probabilities(tmp_path, CHANGES))
    base, row = records(frame)
    assert base["p_gold"] == pytest.approx(0.4) and math.isnan(base["gold_difference"])
    assert (row["gold_difference"], row["gold_low"], row["gold_high"]) == pytest.approx(
        (0.053333333, 0.003647783, 0.103018883)
    )
    assert row["gold_p"] == row["gold_p_holm"] == 160 / 4096 and row["gold_note"] == ""
    table = console_table(frame)
    names = [str(column.header) for column in table.columns]
    cells = [str(cell) for cell in list(table.columns)[names.index("p(right)")].cells]
    assert cells == ["", "+5.3 [0.4, 10.3]*"] and "p(right): change" in str(table.caption)
    place = [column.title for column in COLUMNS].index("p(right)")
    cell = comparison_rows(frame, compare([])[:0])[1].cells[place]
    assert (cell.text, cell.tone) == ("45.3%", "up") and cell.detail.startswith("+5.3 [0.4, 10.3]")
    assert "p(right)" in marks(frame)


def test_a_verdict_names_both_where_they_disagree(tmp_path):
    said = verdict(compare(with_probabilities(tmp_path / "a", CHANGES)))
    assert said == (
        "NGD scores every item as base does; with 12 items, only gains above about 41.7 points are detectable; but the "
        "right choice's probability rises: +5.3 points [0.4, 10.3] (Holm p 0.039)."
    )
    fixed = compare(with_probabilities(tmp_path / "b", [0.1, -0.1], arm_right=[1] * 12))
    assert "beats base by 50.0 points" in verdict(fixed)
    assert "; the right choice's probability does not show it (+0.0 points [" in verdict(fixed)
    both = compare(with_probabilities(tmp_path / "c", [0.1, 0.2], arm_right=[1] * 12))
    assert "beats base" in verdict(both) and "probability" not in verdict(both)
    falls = compare(with_probabilities(tmp_path / "d", [-0.1, -0.2]))
    assert "probability falls: −15.0 points [" in verdict(falls)


def test_records_without_it_are_marked_and_written_answers_are_not(tmp_path):
    base, arm = with_probabilities(tmp_path / "a", CHANGES)
    factory.edit(arm, lambda row: row.pop("p_gold"))
    frame = compare([base, arm])
    assert [row["gold_note"] for row in records(frame)] == ["", LOST]
    assert LOST in str(console_table(frame).caption) and LOST in marks(frame)
    publish(tmp_path / "a", tmp_path / "study")
    for path in (tmp_path / "study").glob("runs/*/samples.jsonl"):  # as older studies kept them
        old = [line.split(', "gold"')[0] + "}\n" for line in path.read_text().splitlines()]
        path.write_text("".join(old))
        provenance = json.loads(path.with_name("provenance.json").read_text())
        path.with_name("provenance.json").write_text(json.dumps(provenance | {"checksums": {}}))
    assert {row["gold_note"] for row in records(compare(load_runs(tmp_path / "study")))} == {LOST}
    for run in (base, arm):
        factory.edit(run, lambda row: row.update(loglikelihoods=None, prediction="18", choices=None))
    assert {row["gold_note"] for row in records(compare([base, arm]))} == {""}


def test_a_study_keeps_what_claims_are_checked_by_and_no_text():
    neighbor = {"id": "openbookqa/3", "similarity": 0.7, "question": "Which?", "answer": "copper"}
    row = {"arm": "ngd", "task": "arc", "question": "Which?", "choices": ["a", "b"], "gold": 1, "p_gold": 0.6}
    row |= {"loglikelihoods": [-2.0, -1.0], "neighbors": [neighbor], "losses": [2.0, 1.0]}
    row |= {"pathway_change": 0.2, "votes": [0.3, 0.7], "pathway_after": [[1.0]]}
    assert kept(row) == {
        "arm": "ngd",
        "task": "arc",
        "gold": 1,
        "loglikelihoods": [-2.0, -1.0],
        "p_gold": 0.6,
        "neighbors": [{"id": "openbookqa/3", "similarity": 0.7}],
        "losses": [2.0, 1.0],
        "pathway_change": 0.2,
        "votes": [0.3, 0.7],
    }
    assert "gold" not in kept({"task": "sums", "gold": "18"})
