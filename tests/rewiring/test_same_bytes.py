"""Every arm gives the same samples in one go, in shards, and killed at every batch."""

from __future__ import annotations

import pytest

from c3po_bench.evaluate.run import run
from c3po_bench.launch.merge import merge_shards
from c3po_bench.rewiring import arms
from c3po_bench.store.files import Journal
from c3po_bench.store.reader import load_runs

pytestmark = pytest.mark.slow
ARMS = [name for name in arms.ARMS if name not in ("planted_optimum", "right_expert", "ngd_permuted_options")]
BATCHES = 3


@pytest.fixture
def config(experiment, tmp_path):
    return lambda folder, **more: experiment(
        arms=ARMS, limit=10, batch_size=4, results_dir=str(tmp_path / folder), **more
    )


def samples(runs):
    return {r.arm: {row["doc_id"]: row for row in r.samples()} for r in runs}


@pytest.fixture
def whole(config):
    found = samples(run(config("whole")))
    assert sorted(found) == sorted(ARMS) and {len(rows) for rows in found.values()} == {10}
    return found


def test_in_shards(config, whole, tmp_path):
    for share in range(1, BATCHES + 1):
        run(config("shards", shard=f"{share}/{BATCHES}"))
    assert len(list(merge_shards(tmp_path / "shards", run))) == 1
    assert samples(load_runs(tmp_path / "shards")) == whole


def test_killed_at_every_batch(config, whole, monkeypatch):
    """Each start writes one batch of one arm and dies at the next."""
    write, written, deaths = Journal.append, [0], 0
    batches = BATCHES * (len(ARMS) - 1) + 10  # base_again has batches of one item

    def die_at_the_second(self, rows):
        if self.path.name == "journal.jsonl":  # of a run; the index of the states is one, too
            written[0] += 1
            if written[0] == 2:
                raise KeyboardInterrupt
        write(self, rows)

    monkeypatch.setattr(Journal, "append", die_at_the_second)
    while True:
        written[0] = 0
        try:
            found = samples(run(config("killed")))
            break
        except KeyboardInterrupt:
            deaths += 1
            assert deaths < batches, "no start got any further"
    assert deaths == batches - 1
    assert found == whole
