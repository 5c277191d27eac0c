"""The reference bank: what it keeps and leaves out, and that an interrupted build goes on."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from rewiring_world import reference

from c3po_bench.contract import Item
from c3po_bench.errors import UserError
from c3po_bench.models.tiny import tiny_tokenizer
from c3po_bench.rewiring.bank import build_bank
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.store.records import write_sealed
from c3po_bench.tasks.duplicates import question_hash


class Embedder:
    """Letter counts as unit vectors; counts how many texts it was given."""

    identity = "letters"

    def __init__(self):
        self.seen = 0

    def __call__(self, texts):
        self.seen += len(texts)
        rows = np.array([[1.0 + t.count(c) for c in "abcdefgh"] for t in texts], dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_items(count: int) -> list[Item]:
    items = []
    for i in range(count):
        question = f"what is the number {i} called{'?' * (i % 5)}"
        pairs = tuple((question, f" {word}") for word in ("one", "seven", "a hundred"))
        items.append(reference(i, question, pairs, i % 3))
    return items


class Build:
    def __init__(self, models, tokenizer, folder):
        self.engine = load_engine("suffix", models("olmoe"), [3, 4])
        self.tokenizer, self.folder, self.embedder = tokenizer, folder, Embedder()
        self.read = 0
        original = self.engine.read_new

        def counted(prompts):
            self.read += len(prompts)
            return original(prompts)

        self.engine.read_new = counted

    def __call__(self, items, **changes):
        options = {
            "test_hashes": set(),
            "only_correct": False,
            "model_hash": "m",
            "progress": lambda *_: None,
        } | changes
        return build_bank(
            items,
            engine=self.engine,
            tokenizer=self.tokenizer,
            embedder=self.embedder,
            folder=self.folder,
            **options,
        )


@pytest.fixture
def build(models, tokenizer, tmp_path):
    return Build(models, tokenizer, tmp_path / "bank")


def test_pathways_are_those_of_the_items(build, models):
    items = make_items(7)
    bank = build(items)
    assert len(bank) == 7 and bank.pathways.shape == (7, 5, 8) and bank.embeddings.shape == (7, 8)
    for i in (0, 6):
        (state,) = load_engine("naive", models("olmoe"), [4]).read([bank.items[i].prompts[0]])
        np.testing.assert_allclose(bank.pathways[i], state.original.numpy(), atol=1e-5)


def test_correct_is_what_the_scoring_rule_calls_so(build):
    """Under `length_normalized` a reference is right where the log-likelihood over the length says so."""
    plain = make_items(12)
    normalized = [
        replace(item, lengths=tuple(float(len(word)) for _, word in item.requests)) for item in plain
    ]
    kept = [build(items, only_correct=True).items for items in (plain, normalized)]
    assert [i.item.id for i in kept[0]] != [i.item.id for i in kept[1]]
    for item in normalized:
        scores = [
            build.tokenizer.lm.loglikelihood([request(*pair)], disable_tqdm=True)[0][0]
            for pair in item.requests
        ]
        right = max(range(3), key=lambda c: scores[c] / item.lengths[c]) == item.gold
        assert right == (item in [entry.item for entry in kept[1]])


def test_only_correct_keeps_what_the_model_answers(build, tokenizer, models):
    items = make_items(12)
    bank = build(items, only_correct=True)
    expected = []
    for i, item in enumerate(items):
        scores = [
            tokenizer.lm.loglikelihood([request(*pair)], disable_tqdm=True)[0][0] for pair in item.requests
        ]
        if int(np.argmax(scores)) == item.gold:
            expected.append(i)
    assert 0 < len(expected) < 12, "the case should show something"
    assert [entry.item.id[1] for entry in bank.items] == expected
    assert bank.counts == {
        "references": len(expected),
        "references_read": 12,
        "references_leaked": 0,
        "references_wrong": 12 - len(expected),
    }


def request(context, continuation):
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, (context, continuation), 0)


def test_test_items_are_left_out_and_counted(build):
    items = make_items(6)
    bank = build(
        items, test_hashes={question_hash("What is the NUMBER 2 called!"), question_hash("something else")}
    )
    assert [i.item.id[1] for i in bank.items] == [0, 1, 3, 4, 5] and bank.counts["references_leaked"] == 1


def test_no_reference_left_is_one_line(build):
    items = make_items(2)
    with pytest.raises(UserError, match="no usable reference"):
        build(items, test_hashes={question_hash(i.question) for i in items})


def test_second_time_nothing_is_read(build):
    items = make_items(5)
    first = build(items)
    read, seen = build.read, build.embedder.seen
    second = build(items)
    assert (build.read, build.embedder.seen) == (read, seen) and seen == 5
    np.testing.assert_array_equal(first.pathways, second.pathways)
    build(items, model_hash="another")
    assert build.read == 2 * read, "another model has another bank"


def test_an_interrupted_build_goes_on(build):
    build.engine.sizes = replace(build.engine.sizes, references=4)
    items = make_items(14)
    whole = build(items, model_hash="whole")
    build.read = 0
    stop_at = iter(range(3))

    def stopping(what, done, total, work):
        if next(stop_at) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(items, progress=stopping)
    assert build.read == 8
    records = [json.loads(p.read_text()) for p in build.folder.glob("*/progress.json")]
    (half,) = [record for record in records if sum(record["sizes"]) == 8]
    assert half["embeddings"] is None, "not done"
    resumed = build(items)
    assert build.read == 14, "what was read before the interruption is not read again"
    np.testing.assert_array_equal(resumed.pathways, whole.pathways)
    np.testing.assert_array_equal(resumed.embeddings, whole.embeddings)


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("name", ["pathways.npy", "correct.npy", "embeddings.npy", "progress.json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "flipped"])
def test_a_damaged_bank_is_built_anew(build, name, damage, done):
    """Not loaded, and not gone on with: numpy fills up with zeros what lacks."""
    items = make_items(4)
    bank = build(items)
    (home,) = [p.parent for p in build.folder.glob("*/progress.json")]
    if not done:
        record = json.loads((home / "progress.json").read_text())
        del record["crc"]
        write_sealed(home / "progress.json", record | {"embeddings": None})
    if damage == "gone":
        (home / name).unlink()
    elif damage == "flipped":
        data = bytearray((home / name).read_bytes())
        data[-2] ^= 1
        (home / name).write_bytes(data)
    else:
        os.truncate(home / name, 0 if damage == "empty" else (home / name).stat().st_size - 2)
    again = build(items)
    np.testing.assert_array_equal(again.pathways, bank.pathways)
    np.testing.assert_array_equal(again.embeddings, bank.embeddings)
    assert again.counts == bank.counts


def test_a_bank_has_its_room_on_disk_before_it_is_written(build, monkeypatch):
    """A mapped file without it ends the process where the disk is full."""

    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        build(make_items(4))
    assert build.read == 0
    monkeypatch.undo()
    assert len(build(make_items(4))) == 4


def test_embeddings_that_are_no_numbers_are_refused(build):
    build.embedder.__class__ = type(
        "Nan", (Embedder,), {"__call__": lambda self, texts: np.full((len(texts), 3), np.nan)}
    )
    with pytest.raises(UserError, match="embedding of question 0 of 4 holds NaN"):
        build(make_items(4))


def test_tokenizer_renders_as_lm_eval_does(tokenizer):
    lm = tokenizer.lm
    for context, continuation in [("a b", " c d"), ("a b ", "c d"), ("", "c d"), ("x" * 5000, " y")]:
        ((before, after),), _ = tokenizer.pairs(reference(0, "q", ((context, continuation),), 0))
        if context:
            c, a = lm._encode_pair(context, continuation)
            assert list(after) == a and list(before) == c[-(lm.max_length + 1 - len(a)) :]
        else:
            assert (
                list(before) == [lm.prefix_token_id]
                and list(after) == tiny_tokenizer()(continuation)["input_ids"]
            )
        assert len(before) + len(after) - 1 <= lm.max_length


def test_choices_in_the_context_are_several_prompts(tokenizer):
    pairs = (("Ann was late because Ann", " slept"), ("Ann was late because Bob", " slept"))
    item = tokenizer(reference(0, "q", pairs, 1))
    assert len(item.prompts) == 2 and item.rows == ((0, 0), (1, 0)) and item.gold_row == (1, 0)


def test_what_is_read_together_fits_one_forward(build):
    items = make_items(14)
    bank = build(items)
    groups = set(bank.groups.values())
    assert sorted(p.context for group in groups for p in group) == sorted(
        p.context for q in bank.items for p in q.prompts
    )
    assert len(groups) == 1, "few and short: all at once"
    most = max(p.tokens for group in groups for p in group)
    build.engine.sizes = replace(build.engine.sizes, forward_tokens=3 * most)
    cut = set(build(items).groups.values())
    assert all(sum(p.tokens for p in group) <= 3 * most for group in cut) and len(cut) in (5, 6, 7)
    build.engine.sizes = replace(build.engine.sizes, forward_tokens=1)
    assert {len(group) for group in build(items).groups.values()} == {1}, "a long question is read by itself"
