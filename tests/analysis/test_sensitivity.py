"""The smallest gap that is found: how sets are composed, what counts as found, what a verdict says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from c3po_bench.analysis import sensitivity
from c3po_bench.analysis.compare import compare, compare_controls
from c3po_bench.analysis.sensitivity import (
    SEEDS,
    TESTBEDS,
    compose,
    publish,
    read,
    read_items,
    smallest,
    summary,
    table,
)
from c3po_bench.analysis.verdict import verdict
from c3po_bench.errors import UserError
from c3po_bench.store.reader import load_runs
from tests import store_factory as factory

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "results" / "sensitivity"
RIGHT = {  # of known and rare names, each with topic words that tell the domain or mislead
    "base": (1, 1, 0, 0),
    "planted_optimum": (1, 1, 1, 1),
    "ngd": (1, 0, 1, 0),
    "ngd_random_neighbors": (0, 0, 0, 0),
    "random_pathway": (1, 1, 0, 0),
}
KINDS = ("known_told", "known_misled", "rare_told", "rare_misled")


@pytest.fixture
def store(tmp_path):
    """A testbed on which NGD goes where its neighbors are, and finds what is there if they are right."""
    for arm, right in RIGHT.items():
        rows = [
            row
            for kind, correct in zip(KINDS, right, strict=True)
            for row in factory.sample_rows(arm, f"planted_{kind}", np.full(1800, correct), details=False)
        ]
        factory.write_run(tmp_path / "store", arm, rows, model="planted")
    return tmp_path / "store"


def test_a_set_has_the_shares_that_were_asked_for():
    pool = {kind: list(range(1000 * place, 1000 * place + 600)) for place, kind in enumerate(KINDS)}
    mix = TESTBEDS["planted"].mix(0.3, TESTBEDS["planted"].settings[1])
    places = compose(pool, mix, 600, range(4000))
    assert np.bincount(places // 1000).tolist() == [315, 105, 135, 45]
    pool["rare_misled"] = [3000]
    assert len(compose(pool, mix, 600, range(4000))) < 20


def test_a_question_that_two_kinds_share_is_in_a_set_once():
    pool = {"right": list(range(300)), "shifted": list(range(1000, 1300))}
    questions = [place % 1000 for place in range(2000)]
    places = compose(pool, {"right": 0.6, "shifted": 0.4}, 297, questions) % 1000
    assert len(places) == 297 == len(set(places.tolist()))
    pool["shifted"] = pool["shifted"][:60]
    places = compose(pool, {"right": 0.8, "shifted": 0.2}, 297, questions)
    assert (places >= 1000).sum() == 59 and len(set((places % 1000).tolist())) == 297


def test_neighbors_of_the_own_skill_are_known_from_their_names(tmp_path):
    """Whatever the phrasing; a damaged model's items are another kind of the same tasks."""
    for model, task in (("specialists", "skills_giver"), ("specialists_damaged", "skills_giver")):
        for arm in ("base", "right_expert", "ngd", "ngd_random_neighbors"):
            rows = factory.sample_rows(arm, task, np.ones(4), details=False)
            for row, near in zip(rows, (SAME, MIXED, SAME, MIXED), strict=True):
                row |= (
                    {} if arm == "base" else {"neighbors": [{"id": name, "similarity": 1} for name in near]}
                )
            factory.write_run(tmp_path, arm, rows, model=model, key=model)
    found = read(load_runs(tmp_path))
    assert [item[0] for item in found.items] == ["damaged"] * 4 + ["right"] * 4
    assert found.led_right == [True, False, True, False] * 2


OTHER = "skills_receiver/2"
SAME, MIXED = ["skills_giver/1", "skills_giver/2", OTHER], ["skills_giver/1", OTHER, "skills_receiver/3"]


def test_only_settings_with_right_neighbors_find_the_gap(store):
    found = read(load_runs(store))
    assert found.controls == {"ngd": ["ngd_random_neighbors", "random_pathway"]}
    frame = table(found)
    assert (frame["seeds"] == SEEDS).all() and frame["items"].between(598, 600).all()
    every = frame[frame["setting"] == TESTBEDS["planted"].settings[0]]
    assert every["gap"].tolist() == pytest.approx(TESTBEDS["planted"].wrong, abs=1e-3)
    assert every["gain"].tolist() == pytest.approx(every["gap"].tolist())
    assert every["found"].tolist() == [SEEDS * (gap >= 0.01) for gap in every["gap"]]
    none = frame[frame["setting"] == TESTBEDS["planted"].settings[-1]]
    assert (none.loc[none["wrong"] < 0.5, "gain"] < 0).all()
    gaps = smallest(frame)["ngd"]
    assert gaps[TESTBEDS["planted"].settings[0]] == pytest.approx(0.01)
    assert list(gaps.values())[-1] is None
    assert summary(found, frame)["largest"] == pytest.approx(0.75)


def test_a_gap_that_is_found_below_one_that_is_not_does_not_count():
    rows = [{"method": "ngd", "setting": "s", "gap": gap, "found": n, "seeds": 3} for gap, n in GRID]
    assert smallest(pd.DataFrame(rows)) == {"ngd": {"s": 0.3}}
    assert smallest(pd.DataFrame(rows[:2])) == {"ngd": {"s": None}}


GRID = [(0.1, 3), (0.2, 2), (0.3, 3), (0.4, 3)]


def test_what_is_published_says_the_same_again(store, tmp_path):
    publish([str(store)], tmp_path / "study")
    again = table(read_items(tmp_path / "study", "planted"))
    pd.testing.assert_frame_equal(again, table(read(load_runs(store))))


def test_a_store_of_another_model_or_without_the_ceiling_is_refused(tmp_path):
    runs = factory.store(tmp_path / "other", base=np.ones(9), ngd=np.ones(9))
    with pytest.raises(UserError, match="testbed"):
        read(runs)
    rows = factory.sample_rows("base", "planted_known_told", np.ones(9), details=False)
    factory.write_run(tmp_path / "bare", "base", rows, model="planted")
    with pytest.raises(UserError, match="no run of planted_optimum"):
        read(load_runs(tmp_path / "bare"))


@pytest.fixture
def known(store, tmp_path, monkeypatch):
    """The summary of the store above, in place of the one that ships."""
    publish([str(store)], tmp_path / "study")
    monkeypatch.setattr(sensitivity, "KNOWN", tmp_path / "study" / "smallest.json")
    sensitivity._known.cache_clear()
    yield tmp_path / "study" / "smallest.json"
    sensitivity._known.cache_clear()


def null(folder: Path, model: str, task: str, *arms: str) -> str:
    """The verdict on arms that score as base does."""
    for arm in ("base", *arms):
        rows = factory.sample_rows(arm, task, np.array([0, 1] * 30), details=False)
        factory.write_run(folder, arm, rows, model=model)
    runs = load_runs(folder)
    return verdict(compare(runs), compare_controls(runs))


def test_a_null_on_the_testbed_says_what_would_have_been_found(known, tmp_path):
    text = null(tmp_path / "null", "planted", "planted", "ngd")
    found = "; on this testbed a gap of 1 points would have been found in three of three seeds"
    assert f"{found} (all neighbors of the right kind)" in text
    text = null(tmp_path / "other_arm", "planted", "planted", "knn_vote")
    assert "would have been found by ngd in three of three seeds" in text


def test_nothing_is_said_elsewhere_or_of_what_has_changed(known, tmp_path):
    assert "testbed" not in null(tmp_path / "model", "smolmoe", "planted", "ngd")
    assert "testbed" not in null(tmp_path / "task", "planted", "facts_capitals", "ngd")
    about = json.loads(known.read_text(encoding="utf-8"))
    about["planted"]["versions"]["ngd"] = 0
    known.write_text(json.dumps(about), encoding="utf-8")
    sensitivity._known.cache_clear()
    assert "testbed" not in null(tmp_path / "version", "planted", "planted", "ngd")


def test_what_ships_is_what_is_published():
    """And its tables say the same again."""
    published = json.loads((PUBLISHED / "smallest.json").read_text(encoding="utf-8"))
    assert json.loads(sensitivity.KNOWN.read_text(encoding="utf-8")) == published
    frame = pd.read_csv(PUBLISHED / "sensitivity.csv")
    for name in published:
        found = read_items(PUBLISHED, name)
        again = table(found)
        written = frame[frame["testbed"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(again, written, check_dtype=False, atol=1e-4)
        assert smallest(again) == published[name]["smallest"]


def test_where_nothing_was_found_the_null_says_so(known, tmp_path):
    about = json.loads(known.read_text(encoding="utf-8"))
    about["planted"]["smallest"]["ngd"] = {"setting": None}
    known.write_text(json.dumps(about), encoding="utf-8")
    sensitivity._known.cache_clear()
    text = null(tmp_path / "null", "planted", "planted", "ngd")
    assert "on this testbed no gap up to 75 points is found in three of three seeds" in text
