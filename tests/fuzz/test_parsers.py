"""Every parser of untrusted text takes anything: it gives a value, or one line that the user can mend, in time.

`C3PO_FUZZ=5000` tries so many examples of each instead of 60.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from yaml import YAMLError

from c3po_bench.analysis.harnesses import read_logs
from c3po_bench.analysis.judging import read_labels
from c3po_bench.analysis.logs import gold_hash, normalized, object_of, rows_of
from c3po_bench.errors import UserError
from c3po_bench.explain import as_typed, hydra_overrides, unreadable
from c3po_bench.feedback.calls import CallCache, text_after
from c3po_bench.feedback.endpoint import _is_completion
from c3po_bench.feedback.generators import FINAL, parse_list
from c3po_bench.feedback.judges import SCORE, parse_score
from c3po_bench.feedback.sentences import parse_feedback
from c3po_bench.launch.sweep_folder import SweepFolder
from c3po_bench.masking import masked, without_secrets
from c3po_bench.runtime.limits import check_yaml
from c3po_bench.store.files import Journal, read_groups, read_jsonl, unsealed
from c3po_bench.store.reader import Run, load_experiments, load_runs
from c3po_bench.store.records import mismatch, read_json, read_sealed, read_yaml
from c3po_bench.store.schema import CellState, Experiment, Provenance, Result, SweepRecord
from c3po_bench.tasks.local_data import check_lines, read_splits
from tests import store_factory as factory

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

settings.register_profile(
    "here",
    max_examples=int(os.environ.get("C3PO_FUZZ", "60")),
    deadline=None,
    derandomize=True,
    database=None,
)
settings.load_profile("here")
SECONDS = 2.0  # of one text: what takes longer can be made to take for ever

MARKS = [
    "SCORE:",
    "score :",
    "**Score:** 4/5",
    FINAL,
    "final list :",
    "1. a",
    "- b",
    "* ",
    "`",
    "**",
    "\n",
    "4-5",
    "5.0",
]
MARKS += [
    "{",
    "}",
    "[",
    "]",
    '"',
    "\\u",
    "null",
    "NaN",
    "1e999",
    "${",
    "!!python",
    "&a",
    "*a",
    "://",
    "@",
    "key=",
    ",",
]
MARKS += ["'", "(", "=", "~", "+", "\x00", "\ud83d", "\u202e", "٣", "é", "'crc': '", ', "crc": "00000000"}']
texts = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(MARKS), max_size=40).map("".join),
    st.lists(st.one_of(st.sampled_from(MARKS), st.text(max_size=10)), max_size=20).map("".join),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)
files = st.one_of(
    st.binary(max_size=300),
    texts.map(lambda text: text.encode("utf-8", "surrogatepass")),
    values.map(lambda value: json.dumps(value).encode()),
    st.lists(values, max_size=5).map(lambda rows: b"".join(json.dumps(row).encode() + b"\n" for row in rows)),
)


def in_time(work: Callable[[], Any]) -> Any:
    """What `work` gives; None where it ends with a line that the user can mend, which is one line."""
    started = time.monotonic()
    try:
        return work()
    except UserError as error:
        assert str(error).strip() and len(str(error).splitlines()) == 1
    finally:
        assert time.monotonic() - started < SECONDS


# --- what models write


@given(texts)
def test_a_judgement_is_a_whole_number_from_1_to_5_or_none(text):
    assert in_time(lambda: parse_score(text)) in (None, 1, 2, 3, 4, 5)


@given(texts, st.integers(1, 5))
def test_a_judgement_behind_any_text_is_found(text, number):
    assert parse_score(f"{text}\n{SCORE} {number}") == number


@given(texts, st.booleans())
def test_a_list_is_one_of_texts_that_differ(text, drafted):
    items = in_time(lambda: parse_list(text, FINAL, drafted))
    assert all(isinstance(item, str) and item.strip() for item in items) and len(set(items)) == len(items)


@given(texts, st.sampled_from([FINAL, SCORE, "ANSWER:", "REVISED ANSWER:"]))
def test_what_follows_a_marker_is_part_of_the_text(text, marker):
    tail = in_time(lambda: text_after(text, marker))
    assert tail is None or tail in text


@pytest.mark.parametrize(
    "unit",
    ["*", "_", " ", "\n", "`", "* ", "score:", "FINAL ", "FINAL LIST:", "1. ", '"', "**a", "SCORE: 4-"],
)
def test_long_answers_are_read_in_time(unit):
    text = (unit * 200_000)[:200_000]
    for work in (
        lambda: parse_score(text),
        lambda: parse_list(text, FINAL),
        lambda: text_after(text, FINAL),
        lambda: masked(text),
    ):
        in_time(work)


@given(files)
def test_any_reply_of_an_endpoint_is_a_completion_or_not(data):
    assert in_time(lambda: _is_completion(data)) in (True, False)


# --- files of a store and of a sweep


KINDS = [Any, dict, list, list[list[int]], Result, Provenance, Experiment, SweepRecord, CellState]


@given(files, st.sampled_from(KINDS))
def test_a_file_of_a_store_is_of_its_kind_or_named(data, kind):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        for read in (read_json, read_yaml):
            in_time(lambda read=read: read(path, kind))
        in_time(lambda: read_sealed(path))


@given(values, st.sampled_from(KINDS))
def test_whether_a_value_is_of_a_kind_is_always_said(value, kind):
    assert isinstance(mismatch(value, kind), str)


@given(files)
def test_a_journal_is_read_or_named(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        path.write_bytes(data)
        in_time(lambda: list(read_jsonl(path)))
        in_time(lambda: read_groups(path))
        in_time(lambda: Journal(path))
        in_time(lambda: CallCache(path))
        path.write_bytes(data)
        with suppress(ValueError):
            unsealed(data)


@given(
    files, st.sampled_from(["result.json", "provenance.json", "config.yaml", "samples.jsonl", "experiment"])
)
def test_a_store_with_any_file_is_read_or_the_file_is_named(data, name):
    with tempfile.TemporaryDirectory() as folder:
        runs = factory.store(Path(folder), base=[0, 1])
        factory.write_experiment(Path(folder), "x", runs)
        path = runs[0].path / name
        if name == "experiment":
            path = next((Path(folder) / "experiments").glob("*.json"))
        path.write_bytes(data)
        run: Run = load_runs(folder)[0]
        for part in ("result", "provenance", "config"):
            in_time(lambda part=part: getattr(run, part))
        in_time(run.samples)
        in_time(lambda: load_experiments(folder))


@given(files, st.sampled_from(["sweep.json", "cells.json", "state/0000.json", "cells/0000.yaml"]))
def test_a_sweep_with_any_file_is_read_or_the_file_is_named(data, name):
    with tempfile.TemporaryDirectory() as folder:
        sweep = SweepFolder(Path(folder))
        for each in ("state", "cells"):
            (Path(folder) / each).mkdir()
        (Path(folder) / name).write_bytes(data)
        in_time(lambda: sweep.record)
        in_time(lambda: sweep.cells)
        in_time(lambda: sweep.state(0))
        in_time(lambda: sweep.config(0))


# --- data, foreign logs, labels, feedback


@given(files)
def test_rows_of_data_are_read_or_the_line_is_named(data):
    with tempfile.TemporaryDirectory() as folder:
        path, array, packed = (Path(folder) / f"test.{end}" for end in ("jsonl", "json", "jsonl.gz"))
        for each in (path, array, packed):
            each.write_bytes(data)
            in_time(lambda each=each: check_lines({"test": [str(each)]}))
        in_time(lambda: check_lines({"test": [str(path), str(array)]}))
        in_time(lambda: read_splits({"test": path}))
        in_time(lambda: list(rows_of(path)))
        in_time(lambda: read_labels(path))
        in_time(lambda: object_of(data, "here"))


LOGS = {
    "samples_arc_2026-01-01T00-00-00.000000.jsonl": {
        "doc_id": 0,
        "doc": {"question": "q"},
        "target": "0",
        "arguments": {"gen_args_0": {"arg_0": "q", "arg_1": " a"}},
        "filtered_resps": [["-1.0", "False"]],
        "doc_hash": "d",
        "acc": 1.0,
    },
    "one_samples.jsonl": {
        "schema_version": "instance_level_eval_0.2.0",
        "evaluation_name": "arc",
        "sample_id": "1",
        "input": {"raw": "q", "choices": ["a"]},
        "output": {"raw": ["a"]},
        "evaluation": {"score": 1.0},
    },
    "inspect.json": {
        "version": 2,
        "status": "success",
        "eval": {"task": "t", "model": "m"},
        "samples": [{"id": 1, "input": "q", "target": "a", "scores": {"s": {"value": "C"}}}],
    },
}


def changed(value: Any, path: list[int], new: Any) -> Any:
    """A nested value with one of its parts, that `path` leads to, exchanged."""
    if not path or not isinstance(value, dict | list) or not value:
        return new
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    part = changed(value[key], path[1:], new)
    if isinstance(value, dict):
        return {**value, key: part}
    return [*value[:key], part, *value[key + 1 :]]


@given(st.sampled_from(list(LOGS)), st.lists(st.integers(0, 9), max_size=4), values)
def test_logs_of_other_harnesses_with_any_field_are_read_or_named(name, path, new):
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / name
        log.write_text(json.dumps(changed(LOGS[name], path, new)) + "\n")
        in_time(lambda: list(read_logs(str(log))))


@given(files, st.sampled_from([*LOGS, "x.eval", "details_x.parquet", "results_2026.json"]))
def test_any_file_as_a_log_is_read_or_named(data, name):
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / name
        log.write_bytes(data)
        in_time(lambda: list(read_logs(str(log))))
        if name.endswith(".eval"):
            with zipfile.ZipFile(log, "w") as archive:
                archive.writestr("header.json", data)
                archive.writestr("samples/1_epoch_1.json", data)
            in_time(lambda: list(read_logs(str(log))))


@given(values, values)
def test_answers_of_any_kind_have_a_hash_or_none(target, choices):
    in_time(lambda: normalized(target))
    assert isinstance(
        in_time(lambda: gold_hash(target, choices if isinstance(choices, list) else [])), str | None
    )


@given(
    st.dictionaries(
        st.sampled_from(["id", "content", "domain", "effect", "rules", "rewrite", "slots", "scene", "x"]),
        values,
    )
)
def test_any_record_is_a_piece_of_feedback_or_refused(record):
    in_time(lambda: parse_feedback(record))


# --- words, YAML, messages


@given(texts)
def test_words_of_the_command_line_are_rewritten_or_refused(word):
    assert isinstance(in_time(lambda: as_typed(word)), str)
    assert len(hydra_overrides([word])) == 1
    assert isinstance(in_time(lambda: unreadable(word)), str)


@given(texts)
def test_yaml_of_any_size_is_looked_at(text):
    with suppress(ValueError, YAMLError):
        in_time(lambda: check_yaml(text))


@given(texts)
def test_masking_is_stable_and_leaves_what_has_no_key(text):
    assert without_secrets(text) == text
    once = in_time(lambda: masked(text))
    assert masked(once) == once
