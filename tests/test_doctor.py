"""The doctor looks, tells and never fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from c3po_bench import doctor
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("no_proxy", "*")


def by_name(findings):
    return {finding.what: finding for finding in findings}


def test_what_is_missing_comes_with_a_way_to_get_it(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: None if name == "trl" else "1.0")
    findings = by_name(doctor.examine())
    assert findings["extra feedback"].state == "missing"
    assert "trl" in findings["extra feedback"].detail
    assert findings["extra feedback"].remedy == "pip install 'c3po-bench[feedback]'"
    assert findings["extra report"].state == "ok"
    assert all(f.remedy for f in findings.values() if f.state == "missing")


def test_core_is_named_first(monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    assert doctor.advice(doctor.examine()) == "First mend: core."


def test_a_folder_without_data_is_told_from_one_with(tmp_path):
    assert by_name(doctor.data(str(tmp_path)))["local copies"].state == "missing"
    (tmp_path / "arc_easy").mkdir()
    assert "arc_easy" in by_name(doctor.data(str(tmp_path)))["local copies"].detail


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("C3PO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert by_name(doctor.machine())["cache"].state == "missing"


def test_a_check_that_fails_is_a_finding(monkeypatch):
    def broken():
        raise RuntimeError("no such thing")
        yield

    monkeypatch.setattr(doctor, "models", broken)
    assert any("no such thing" in finding.detail for finding in doctor.examine())


def test_json_and_exit_status(capsys):
    assert doctor.main(["--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"libraries", "machine", "models", "data", "services"} <= {row["section"] for row in rows}
    assert {row["state"] for row in rows} <= {"ok", "missing", "note"}


def test_importing_it_loads_nothing_heavy():
    code = "import sys, c3po_bench.doctor; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'wandb')))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_get_builds_the_embedded_model_or_says_why_not(monkeypatch, capsys):
    from c3po_bench.errors import UserError
    from c3po_bench.models.embedded import smolmoe

    built = []
    monkeypatch.setattr(smolmoe, "checkpoint", lambda: built.append("smolmoe"))
    assert doctor.main(["--get"]) == 0 and built == ["smolmoe"]

    def unreachable():
        raise UserError("cannot get the embedded model's weights (no index)")

    monkeypatch.setattr(smolmoe, "checkpoint", unreachable)
    assert doctor.main(["--get"]) == 2
    assert capsys.readouterr() == ("", "error: cannot get the embedded model's weights (no index)\n")


BILLIONS = {  # as their makers say, rounded
    "olmoe": 6.92,
    "granite_moe_1b": 1.33,
    "qwen3_30b_a3b": 30.5,
    "gpt_oss_20b": 20.9,
    "deepseek_v2_lite": 15.7,
    "moonlight": 16.0,
    "ernie_21b": 21.8,
}


@pytest.mark.parametrize("name", BILLIONS)
def test_a_model_is_judged_by_its_config_alone(name):
    """Offline, from the shipped summary: the sum of the weights is what is published."""
    findings = by_name(doctor.examine(name=name))
    assert findings["family"].detail.endswith("engines suffix and naive")
    assert float(findings["weights"].detail.split()[0]) == pytest.approx(BILLIONS[name], rel=0.01)
    assert "the experts staying in 16 bits" in findings["bnb4"].detail
    assert float(findings["bfloat16"].detail.split()[0]) == pytest.approx(2 * BILLIONS[name], rel=0.02)


def test_every_summarized_config_is_a_preset():
    from c3po_bench.models.needs import PRESETS

    presets = {path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")}
    assert set(json.loads(PRESETS.read_text())) <= presets


def test_a_folder_is_judged_too_and_what_cannot_be_covered_says_why(tmp_path, capsys):
    size = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
    for kind, message in (
        ("lfm2_moe", "engine=naive only: some layers keep a recurrent state"),
        ("phimoe", "can't be rewired"),
        ("llama", "is dense"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **size}))
        assert doctor.main([f"model={tmp_path}"]) == 0
        assert message in capsys.readouterr().out
    with pytest.raises(SystemExit):
        doctor.main(["engine=naive"])
    assert (
        "no config of model nobody/nothing" in by_name(doctor.examine(name="nobody/nothing"))["model"].detail
    )
