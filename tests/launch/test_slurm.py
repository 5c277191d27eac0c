"""What Slurm is given, and a machine that has none."""

from __future__ import annotations

import pytest

from c3po_bench.errors import UserError
from c3po_bench.launch import slurm


def test_the_array_script_can_be_sent_again(folder):
    launcher = {"partition": "gpu", "mem_gb": 8, "timeout_min": 30, "comment": "of two words"}
    launcher["additional_parameters"] = {"mail_type": "END"}
    path, groups = slurm.write_job(folder, launcher, folder.groups([0, 1, 2], 2))
    text = path.read_text()
    for line in (
        "--partition=gpu",
        "--mem=8192M",
        "--time=30",
        "--mail-type=END",
        "--array=0-1%2",
        "--requeue",
    ):
        assert f"#SBATCH {line}\n" in text
    assert "#SBATCH '--comment=of two words'\n" in text
    assert (folder.path / groups).read_text() == "[[0, 1], [2]]\n"


def test_no_cluster_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no Slurm here: sbatch and srun and squeue not found"):
        slurm.require_cluster()
    assert slurm.queue() is None and not slurm.has_accounting()


def test_the_queue_is_what_squeue_lists(queue):
    assert slurm.queue() is None
    queue({"12_3": "RUNNING", "13": "PENDING"})
    assert slurm.queue() == {"12_3": "RUNNING", "13": "PENDING"}
