"""Records for other tools: what is written reads back as the same numbers."""

from __future__ import annotations

import hashlib
import json

import pytest

from c3po_bench.analysis.export import export
from c3po_bench.analysis.matching import compare_runs
from c3po_bench.errors import UserError
from c3po_bench.report.__main__ import main
from tests import store_factory as factory
from tests.results.test_results import STUDIES


@pytest.mark.parametrize("form", ["lm-eval", "every-eval-ever"])
@pytest.mark.parametrize("kind", [factory.rewiring_store, factory.feedback_store])
def test_what_is_exported_reads_back_as_the_same_comparison(form, kind, tmp_path):
    runs = kind(tmp_path / "store", items=20)
    paths = export(tmp_path / "store", form, tmp_path / "out")
    folders = {run.arm: {path.parent for path in paths if run.arm in str(path.parent)} for run in runs}
    arm = next(run for run in runs if run.arm in ("ngd", "c3po"))
    (own,) = [f for f in folders[arm.arm] if f.name.endswith((arm.arm, arm.run_id))]
    (base,) = {path.parent for path in paths if path.parent.name in (runs[0].run_id, "smolmoe")}
    ours, theirs = compare_runs(arm, runs[0]), compare_runs(own, base)
    for name in ("task", "n", "difference", "interval", "p_value", "fixed", "broken"):
        assert sorted(map(repr, (row[name] for row in ours))) == sorted(
            map(repr, (row[name] for row in theirs))
        )
    assert all(row["comparable"] != "refused" for row in theirs)


def test_a_record_names_its_rows_and_their_number(tmp_path):
    factory.rewiring_store(tmp_path, items=5)
    for path in export(tmp_path, "every-eval-ever", tmp_path / "out"):
        if path.suffix == ".json":
            record = json.loads(path.read_text())
            link = record["detailed_evaluation_results"]
            rows = (tmp_path / "out" / link["file_path"]).read_bytes()
            assert hashlib.sha256(rows).hexdigest() == link["checksum"]
            assert rows.count(b"\n") == link["total_rows"] == 10
            first = json.loads(rows.splitlines()[0])
            assert first["evaluation_id"] == record["evaluation_id"] and first["schema_version"] == "0.3.0"
            assert record["evaluation_results"][0]["metric_config"]["lower_is_better"] is False


def test_the_command_writes_beside_the_store(tmp_path, capsys):
    factory.store(tmp_path, base=[0, 1], ngd=[1, 1])
    assert main([str(tmp_path), "--to", "lm-eval"]) == 0
    assert "4 files" in capsys.readouterr().out and list(
        (tmp_path / "exports" / "lm-eval").glob("*/samples_arc_*")
    )
    assert main([str(tmp_path), "--to", "lmeval"]) == 2
    assert "did you mean 'lm-eval'" in capsys.readouterr().err


def test_a_study_without_questions_is_not_exported(tmp_path):
    with pytest.raises(UserError, match="hold no questions"):
        export(STUDIES[0], "lm-eval", tmp_path)
