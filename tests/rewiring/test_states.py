"""The store of reference states: what is read back is what was kept, within its bound, by any process."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager

import pytest
import torch

from c3po_bench.models.tiny import tiny_model
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.states import Prompt, State, StateStore

PROMPTS = [
    Prompt((5, 6, 7, 8), ((9, 10), (11,))),
    Prompt((12, 13), ((14, 15, 16),)),
    Prompt((17, 18, 19), ((20,),)),
]


@pytest.fixture(scope="module")
def model():
    return tiny_model("olmoe")


def engine_with(model, store):
    engine = load_engine("suffix", model, [2, 3])
    engine.store = store
    return engine


def test_states_come_back_from_disk_and_score_the_same(model, tmp_path):
    writer = engine_with(model, StateStore(tmp_path, 1 << 30))
    rows = [(i, c) for i, p in enumerate(PROMPTS) for c in range(len(p.continuations))]
    excluded: list[str] = []

    @contextmanager
    def noted():
        excluded.append("")
        yield

    expected = writer.batch(writer.read(PROMPTS, keep=True, exclude=noted), rows).score(None)[0]
    assert excluded, "having the model read references is no item's cost"
    excluded.clear()
    reader = engine_with(model, StateStore(tmp_path, 1 << 30))
    reader.read_new = None  # type: ignore[assignment, method-assign]  # reading anew would fail
    states = reader.read(PROMPTS, keep=True, exclude=noted)
    assert not excluded, "taking them from disk is"
    assert torch.equal(reader.batch(states, rows).score(None)[0], expected)
    assert [s.prompt for s in states] == PROMPTS


def test_nothing_is_written_twice_or_beyond_the_bound(model, tmp_path):
    store = StateStore(tmp_path, 1 << 30)
    engine = engine_with(model, store)
    engine.read(PROMPTS, keep=True)
    size = store.data.stat().st_size
    other = StateStore(tmp_path, 1 << 30)
    other.put(engine.read(PROMPTS))
    assert store.data.stat().st_size == size and PROMPTS[0] in other
    small = StateStore(tmp_path / "small", 10)
    small.put(engine.read(PROMPTS))
    assert small.data.stat().st_size == 0 and PROMPTS[0] not in small


def test_two_writers_share_one_file(model, tmp_path):
    left, right = StateStore(tmp_path, 1 << 30), StateStore(tmp_path, 1 << 30)
    engine = engine_with(model, None)
    states = engine.read(PROMPTS)
    left.put(states[:1])
    right.put(states)
    again = StateStore(tmp_path, 1 << 30)
    found = again.get(PROMPTS)
    assert list(found) == PROMPTS
    for prompt, state in zip(PROMPTS, states, strict=True):
        assert torch.equal(found[prompt].kept["entering"], state.kept["entering"])


def test_prompts_read_for_tests_are_not_stored(model, tmp_path):
    store = StateStore(tmp_path, 1 << 30)
    engine_with(model, store).read(PROMPTS)
    assert PROMPTS[0] not in store


def test_what_a_kill_cut_short_is_written_anew(model, tmp_path):
    """Lines appended to a torn one made the index unreadable for every later process."""
    engine = engine_with(model, StateStore(tmp_path, 1 << 30))
    engine.read(PROMPTS, keep=True)
    index = tmp_path / "index.jsonl"
    os.truncate(index, index.stat().st_size - 9)
    again = StateStore(tmp_path, 1 << 30)
    assert [p in again for p in PROMPTS].count(True) == 2
    again.put(engine.read(PROMPTS))
    assert len(StateStore(tmp_path, 1 << 30).get(PROMPTS)) == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damaged_states_count_as_not_kept(model, tmp_path, damage):
    expected = engine_with(model, StateStore(tmp_path, 1 << 30)).read(PROMPTS, keep=True)
    data = tmp_path / "states.bin"
    whole = data.read_bytes()
    if damage == "gone":
        data.unlink()
    else:
        data.write_bytes(whole[:-8] if damage == "cut" else whole[:-8] + bytes(b ^ 255 for b in whole[-8:]))
    found = engine_with(model, StateStore(tmp_path, 1 << 30)).read(PROMPTS, keep=True)
    for state, other in zip(found, expected, strict=True):
        torch.testing.assert_close((state.original, state.kept), (other.original, other.kept))
    assert len(StateStore(tmp_path, 1 << 30).get(PROMPTS)) == 3, "it is kept again"


def test_two_writers_write_a_state_once(model, tmp_path):
    left, right = StateStore(tmp_path, 1 << 30), StateStore(tmp_path, 1 << 30)
    states = engine_with(model, None).read(PROMPTS)
    left.put(states)
    size = left.data.stat().st_size
    right.put(states)  # opened before the first wrote
    assert right.data.stat().st_size == size
    left.put([*states, *states])
    assert left.index_file.read_text().count("\n") == len(PROMPTS)


def test_a_state_without_checksum_is_read_anew(model, tmp_path):
    store = StateStore(tmp_path, 1 << 30)
    store.put(engine_with(model, None).read(PROMPTS))
    lines = [json.loads(line) for line in store.index_file.read_text().splitlines()]
    for line in lines:
        del line["line_crc"]
    del lines[0]["crc"]
    store.index_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert set(StateStore(tmp_path, 1 << 30).get(PROMPTS)) == set(PROMPTS[1:])


def test_layers_come_back_in_order(tmp_path):
    prompt, layers = PROMPTS[0], [torch.full((2,), float(i)) for i in range(12)]
    store = StateStore(tmp_path, 1 << 30)
    store.put([State(prompt, torch.zeros(1), {"keys": layers, "entering": torch.ones(3)}, 0.0, 0)])
    kept = StateStore(tmp_path, 1 << 30).get([prompt])[prompt].kept
    assert torch.equal(torch.stack(kept["keys"]), torch.stack(layers)) and torch.equal(
        kept["entering"], torch.ones(3)
    )
