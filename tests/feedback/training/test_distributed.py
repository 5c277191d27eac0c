"""Training over several processes: the same adapter as one process makes, each trained once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from c3po_bench.errors import UserError
from c3po_bench.feedback.training.distributed import share_of

ROOT = Path(__file__).resolve().parents[3]


def run(tiny: Path, folder: Path, processes: int) -> None:
    """`feedback_quick` on the random model; with one constraint row a scope, the second process has none."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    command = [
        sys.executable,
        *(torchrun if processes > 1 else []),
        "-m",
        "c3po_bench",
        "+experiment=feedback_quick",
        "model=hf",
        f"model.path={tiny}",
        "model.device=cpu",
        "arms=[scd_negatives,dpo,c3po,c3po_kl]",
        f"results_dir={folder}/out",
        f"feedback.cache_dir={folder}/cache",
        "tracking.mode=disabled",
        "batch_size=4",
        "feedback.n_in=16",
        "feedback.n_near=16",
        "feedback.n_out=16",
        "feedback.train.steps=4",
        "feedback.train.sft_steps=4",
        "feedback.train.precision=float32",
        "feedback.train.constraint_batch_size=1",
        "feedback.answers.batch_size=4",
        "feedback.train.lr=1e-3",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def adapters(folder: Path) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """Weights and training record of each adapter, by arm."""
    return {
        path.parent.name.split("-")[0]: (
            load_file(path),
            json.loads((path.parent / "training.json").read_text(encoding="utf-8")),
        )
        for path in folder.glob("cache/adapters/*/adapter_model.safetensors")
    }


@pytest.mark.slow
def test_two_processes_train_the_adapter_of_one(tiny: Path, tmp_path: Path):
    for processes in (1, 2):
        run(tiny, tmp_path / str(processes), processes)
    one, two = adapters(tmp_path / "1"), adapters(tmp_path / "2")
    assert set(one) == set(two) == {"scd_negatives", "dpo", "c3po", "c3po_kl"}
    for arm, (weights, record) in one.items():
        others, again = two[arm]
        assert again["loss"] == pytest.approx(record["loss"], abs=2e-5), arm
        for term, values in record["terms"].items():
            if term in ("loss/pairs", "near/nll", "out/nll", "near/kl", "out/kl"):
                assert again["terms"][term] == pytest.approx(values, abs=2e-5), (arm, term)
        for name, weight in weights.items():
            torch.testing.assert_close(others[name], weight, atol=2e-5, rtol=1e-3, msg=f"{arm} {name}")
    answers = (
        next((tmp_path / "2").glob("cache/ledgers/answers-*.jsonl")).read_text(encoding="utf-8").splitlines()
    )
    # one rank asked, the other looked up
    assert len(answers) == len({json.loads(line)["key"] for line in answers})


def test_a_batch_that_ranks_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch):
    assert share_of(4, "feedback.train.batch_size") == 4
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="multiple"):
        share_of(4, "feedback.train.batch_size")
