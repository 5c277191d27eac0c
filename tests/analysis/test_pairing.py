"""Which runs stand side by side: each with its base and its controls; and what is refused, with the reason."""

from __future__ import annotations

import pytest

from c3po_bench.analysis.compare import compare, compare_controls
from c3po_bench.analysis.pairing import run_labels
from c3po_bench.errors import UserError
from c3po_bench.store.reader import Run
from tests import store_factory as factory

RANDOM = "ngd_random_neighbors"


def pair(tmp_path, **changes) -> list[Run]:
    """A base and an arm over 20 items; `changes` are of the arm's result."""
    base = factory.scores_of("base", 20, 0.5)
    arm = factory.scores_of("ngd", 20, 0.5, base=base)
    first = factory.write_run(tmp_path, "base", factory.sample_rows("base", "arc", base, details=False))
    rows = factory.sample_rows("ngd", "arc", arm, details=True)
    return [first, factory.write_run(tmp_path, "ngd", rows, **changes)]


def test_other_prompts_are_refused_unless_declared(tmp_path):
    runs = pair(tmp_path)
    factory.edit(runs[1], lambda row: row.update(prompt_hash="other"))
    with pytest.raises(UserError, match="20 prompts differ, first arc/0.*prompt_differs"):
        compare(runs)
    runs[1] = factory.write_run(tmp_path, "ngd", runs[1].samples(), settings={"prompt_differs": True})
    assert compare(runs, draws=100)["prompt_differs"].tolist() == [False, True]


def test_changed_items_are_refused(tmp_path):
    runs = pair(tmp_path)
    factory.edit(runs[1], lambda row: row.update(doc_hash="x" if row["doc_id"] == 7 else row["doc_hash"]))
    with pytest.raises(UserError, match="1 items differ in content, first arc/7"):
        compare(runs)


def test_missing_items_are_refused(tmp_path):
    runs = pair(tmp_path)
    factory.keep(runs[1], 15)
    with pytest.raises(UserError, match=r"other items \(0 only in the one, 5 only in the other\)"):
        compare(runs)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("scoring", {"rule": "letters", "num_fewshot": 0}, "scoring differs"),
        ("limit", 5, "limit differs"),
        ("model", "olmoe", "model differs"),
        ("tasks", ["piqa"], "tasks differs"),
    ],
)
def test_other_settings_are_refused_with_the_reason(tmp_path, field, value, reason):
    with pytest.raises(UserError, match=reason):
        compare(pair(tmp_path, key="other", **{field: value}))


def test_other_data_are_refused(tmp_path):
    with pytest.raises(UserError, match="the data of arc differ"):
        compare(pair(tmp_path, data_hashes={"arc": "changed"}))


def test_a_missing_base_is_refused(tmp_path):
    with pytest.raises(UserError, match="no base run"):
        compare(pair(tmp_path)[1:])


def test_refusals_can_be_collected(tmp_path):
    runs = pair(tmp_path)
    factory.edit(runs[1], lambda row: row.update(prompt_hash="other"))
    refused: dict[str, str] = {}
    frame = compare(runs, draws=100, refused=refused)
    assert frame["arm"].tolist() == ["base"]
    assert "prompts differ" in refused[runs[1].run_id]


def test_a_run_is_compared_with_the_base_of_its_own_engine(tmp_path):
    scores = {name: factory.scores_of(name, 40, 0.5) for name in ("naive", "suffix")}
    runs = [
        factory.write_run(
            tmp_path,
            arm,
            factory.sample_rows(arm, "arc", own, details=False),
            settings={"engine": engine},
            identity={"backend": "rewiring", "engine": engine},
        )
        for arm in ("base", "ngd")
        for engine, own in scores.items()
    ]
    frame = compare(runs, draws=100)
    assert (frame.loc[frame["arm"] == "ngd", "difference"] == 0).all()


def test_labels_tell_runs_of_one_arm_apart(tmp_path):
    rows = factory.sample_rows("base", "arc", factory.scores_of("base", 5, 0.5), details=False)
    runs = [factory.write_run(tmp_path, "base", rows, key=key) for key in "ab"]
    assert len(set(run_labels(runs).values())) == 2
    runs[1] = factory.write_run(tmp_path, "base", rows, key="b", limit=100, model="olmoe")
    assert run_labels(runs)[runs[1].run_id] == "base (model=olmoe, limit=100)"


def run(root, arm, seed=0, identity=None, **changes) -> Run:
    """A run of 40 items; `identity` goes into its provenance, as a run records it."""
    rows = factory.sample_rows(arm, "arc", factory.scores_of(arm, 40, 0.5, seed=seed), details=False)
    return factory.write_run(root, arm, rows, seed=seed, identity=identity or {}, **changes)


def test_a_tuned_model_that_is_rewired_has_controls_that_are_tuned_too(tmp_path):
    chain, control = "c3po_then_ngd", f"c3po_then_{RANDOM}"
    runs = [run(tmp_path, arm) for arm in ("base", "ngd", RANDOM, chain)]
    row = factory.arm_row(RANDOM) | {"name": control, "control_of": chain}
    frame = compare_controls([*runs, run(tmp_path, control, arm_row=row)], draws=100)
    assert list(zip(frame["arm"], frame["control"], strict=True)) == [("ngd", RANDOM), (chain, control)]


def test_the_strictest_control_comes_first_whatever_it_is_called(tmp_path):
    arms = ("base", "ngd", "random_pathway", RANDOM)
    changed = factory.arm_row("random_pathway") | {"name": "a_pathway"}
    runs = [run(tmp_path, arm) for arm in arms] + [run(tmp_path, "a_pathway", arm_row=changed | {"place": 9})]
    assert compare_controls(runs, draws=100)["control"].tolist() == [RANDOM, "random_pathway", "a_pathway"]


def test_an_arm_is_compared_with_the_control_of_its_own_seed(tmp_path):
    runs = [run(tmp_path, "base")]
    runs += [run(tmp_path, arm, seed=seed) for seed in range(3) for arm in ("ngd", RANDOM)]
    seeds = {r.run_id: r.result["seed"] for r in runs}
    frame = compare_controls(runs, draws=100)
    pairs = [(seeds[a], seeds[b]) for a, b in zip(frame["run_id"], frame["control_run_id"], strict=True)]
    assert pairs == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("ours", "theirs", "alike"),
    [
        ({"references": {"tasks": ["sciq"]}}, {"references": {"tasks": ["sciq"]}}, True),
        ({"references": {"tasks": ["sciq"]}}, {"references": {"tasks": ["openbookqa"]}}, False),
        ({"method": {"tune": "none"}}, {"method": {"tune": "reference"}}, False),
        (
            {"method": {"neighbors": {"max_similarity": 0.95}}},
            {"method": {"neighbors": {"max_similarity": 0.9}}},
            False,
        ),
    ],
)
def test_a_control_differs_from_its_arm_in_nothing_else(tmp_path, ours, theirs, alike):
    runs = [
        run(tmp_path, "base"),
        run(tmp_path, "ngd", identity=ours),
        run(tmp_path, RANDOM, identity=theirs),
    ]
    assert len(compare_controls(runs, draws=100)) == alike


def test_a_control_that_answered_other_items_is_refused(tmp_path):
    runs = [run(tmp_path, arm) for arm in ("base", "ngd", RANDOM)]
    factory.keep(runs[2], 30)
    with pytest.raises(UserError, match="other items"):
        compare_controls(runs)
    refused: dict[str, str] = {}
    assert compare_controls(runs, refused=refused).empty and len(refused) == 1
