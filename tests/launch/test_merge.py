"""Shards and ranks: the same bytes as one process, however the work is cut."""

from __future__ import annotations

import json
import os
import socket

import pytest

from c3po_bench.errors import UserError
from c3po_bench.launch.merge import merge_shards, sets_of_shards
from c3po_bench.store.files import write_json
from tests.launch.conftest import CELL


def samples(store):
    return {p.parent.name: p.read_bytes() for p in store.glob("runs/*/samples.jsonl")}


def metrics(store):
    return {p.parent.name: json.loads(p.read_text())["metrics"] for p in store.glob("runs/*/result.json")}


@pytest.mark.parametrize("of", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_merged_shards_are_the_unsharded_run(bench, warm, whole, tmp_path, of):
    store = tmp_path / "store"
    shards = ",".join(f"{i}/{of}" for i in range(1, of + 1))
    done = warm("-m", *CELL, f"shard={shards}", f"results_dir={store}")
    assert done.returncode == 0, done.stderr
    assert f"sweep merge {store}" in " ".join(done.stdout.split())
    assert not (store / "runs").exists()
    bench("-m", "c3po_bench.sweep", "merge", str(store))
    assert samples(store) == samples(whole)
    assert metrics(store) == metrics(whole)
    for path in store.glob("runs/*/provenance.json"):
        assert json.loads(path.read_text())["command"] == f"python -m c3po_bench.sweep merge {store}"


def test_a_lacking_shard_is_named(bench, warm, tmp_path):
    arguments = [*CELL, "arms=[base]", "shard=2/3", f"results_dir={tmp_path / 'store'}"]
    assert warm(*arguments).returncode == 0
    done = bench("-m", "c3po_bench.sweep", "merge", str(tmp_path / "store"), expect=2)
    assert "shard=1/3, shard=3/3" in done.stderr


def test_shards_belong_together_whatever_their_machine_and_logging(tmp_path):
    def write(share: int, **more) -> None:
        path = tmp_path / "shards" / f"{share}-of-2" / "experiments" / "x-1.json"
        config = {"shard": f"{share}/2", "results_dir": str(tmp_path), "seed": 0, **more}
        write_json(path, {"name": "x", "config": config, "runs": [], "command": "c3po", "created": ""})

    write(1, threads=4, log_level="info", reference_cache_gb=8.0, tracking={"mode": "offline"})
    write(
        2,
        threads=8,
        log_level="debug",
        reference_cache_gb=1.0,
        tracking={"mode": "disabled"},
        results_dir="elsewhere",
    )
    (shards,) = sets_of_shards(tmp_path)
    assert sorted(shards) == [1, 2]
    write(2, seed=1)
    with pytest.raises(UserError, match="not done yet: shard=2/2"):
        list(merge_shards(tmp_path, lambda config: []))


def test_a_stray_shard_keeps_no_complete_set_from_being_merged(tmp_path):
    for share, limit in ((1, 12), (2, 12), (1, 3)):
        path = tmp_path / "shards" / f"{share}-of-2" / "experiments" / f"x-{limit}.json"
        config = {"name": "x", "shard": f"{share}/2", "limit": limit}
        record = {"name": "x", "config": config, "runs": [], "created": ""}
        write_json(path, {**record, "command": f"c3po limit={limit}"})
    merged: list[int | None] = []

    def run(config):
        merged.append(config.limit)
        return []

    with pytest.raises(UserError, match=r"not done yet: shard=2/2 of c3po limit=3"):
        list(merge_shards(tmp_path, run))
    assert merged == [12]


@pytest.mark.slow
def test_torchrun_gives_the_same_bytes(bench, whole, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = tmp_path / "store"
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    bench(
        *torchrun,
        "-m",
        "c3po_bench",
        *CELL,
        f"results_dir={store}",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert samples(store) == samples(whole)
    assert list(store.glob("runs/*/journal-1.jsonl"))
