"""Every rewiring arm, whole, on the tiny model: what must not change an answer, and what must."""

from __future__ import annotations

import pytest

from c3po_bench.errors import UserError
from c3po_bench.evaluate import run as harness
from c3po_bench.evaluate.chunks import Chunks, make_chunks
from c3po_bench.evaluate.run import run
from c3po_bench.rewiring import arms
from c3po_bench.rewiring.methods.ngd import ngd
from c3po_bench.tasks.taskset import TaskSet

REWIRINGS = [
    name
    for name in arms.ARMS
    if name == "base"
    or arms.ARMS[name].builds == "solver"
    and name not in ("planted_optimum", "right_expert")
]
USES_BANK = [name for name in REWIRINGS if arms.ARMS[name].references not in ("none", "own")]


def scores(cfg) -> dict[str, dict[tuple[str, int], list[float]]]:
    """Log-likelihoods by arm and item."""
    return {
        r.arm: {(row["task"], row["doc_id"]): row["loglikelihoods"] for row in r.samples()} for r in run(cfg)
    }


def differ(a: dict, b: dict) -> float:
    """Largest difference over the items that both have."""
    shared = a.keys() & b.keys()
    assert shared
    return max(abs(x - y) for key in shared for x, y in zip(a[key], b[key], strict=True))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One run of all arms, to compare others with."""

    def get(experiment):
        if not found:
            found.update(
                scores(experiment(arms=REWIRINGS, results_dir=str(tmp_path_factory.mktemp("plain"))))
            )
        return found

    found: dict = {}
    return get


def test_base_scores_as_lm_eval_does(experiment, plain, models, tokenizer):
    import lm_eval

    tasks = TaskSet(["facts_capitals"])
    stock = lm_eval.simple_evaluate(
        tokenizer.lm,
        tasks=tasks.specs,
        task_manager=tasks.manager,
        limit=4,
        bootstrap_iters=0,
        log_samples=True,
    )
    expected = {
        ("facts_capitals", s["doc_id"]): [float(r[0]) for r in s["filtered_resps"]]
        for s in stock["samples"]["facts_capitals"]
    }
    assert differ(plain(experiment)["base"], expected) < 1e-3


def test_every_arm_moves_but_base(experiment, plain):
    found = plain(experiment)
    assert list(found) == REWIRINGS
    for name in REWIRINGS[1:]:
        assert differ(found[name], found["base"]) > 1e-3, name


def test_permuted_labels_change_the_oracle_alone(experiment, plain, monkeypatch):
    """The wall in front of the labels: what an arm answers does not depend on what is right."""
    before = plain(experiment)

    def load(self):
        tasks = loaded(self)
        for task in tasks.values():
            if task.config.test_split and not getattr(task, "permuted", False):
                task.permuted = True
                docs = list(task.eval_docs)
                for doc in docs:
                    doc["answer"] = (doc["answer"] + 1) % 4
                task.dataset[task.config.test_split] = docs
        return tasks

    loaded = TaskSet.load
    monkeypatch.setattr(TaskSet, "load", load)
    cfg = experiment(arms=REWIRINGS)
    assert [t.eval_docs[0]["answer"] for t in TaskSet(cfg.tasks).load().values()] != [
        t.eval_docs[0]["answer"] for t in loaded(TaskSet(cfg.tasks)).values()
    ]
    after = scores(cfg)
    for name in REWIRINGS:
        if name == "oracle":
            assert differ(after[name], before[name]) > 1e-3
        else:
            assert differ(after[name], before[name]) == 0, name


def test_limit_and_batch_size_change_nothing(experiment, plain):
    before = plain(experiment)
    alone = scores(experiment(arms=REWIRINGS, batch_size=1, limit=2))
    for name in REWIRINGS:
        assert differ(alone[name], before[name]) < 2e-3, name


def test_order_changes_nothing(experiment, plain, monkeypatch):
    """The items in the opposite order, in other batches: the first come last."""
    before, asked = plain(experiment), []

    def backwards(tasks, size, limit):
        forward = [item for chunk in make_chunks(tasks, size, limit).items for item in chunk]
        chunks = Chunks([forward[::-1][start : start + 3] for start in range(0, len(forward), 3)])
        asked.append((forward, [item for chunk in chunks.items for item in chunk]))
        return chunks

    monkeypatch.setattr(harness, "make_chunks", backwards)
    found = scores(experiment(arms=REWIRINGS))
    assert all(order == forward[::-1] != forward for forward, order in asked) and len(asked) == len(REWIRINGS)
    for name in REWIRINGS:
        assert found[name].keys() == before[name].keys()
        assert differ(found[name], before[name]) < 2e-3, name


def test_shards_put_together_are_the_whole(experiment, plain, tmp_path):
    before = plain(experiment)["ngd"]
    parts = [
        scores(experiment(arms=["ngd"], shard=f"{i}/2", batch_size=2, results_dir=str(tmp_path / str(i))))[
            "ngd"
        ]
        for i in (1, 2)
    ]
    assert parts[0].keys() | parts[1].keys() == before.keys() and not parts[0].keys() & parts[1].keys()
    assert differ(parts[0] | parts[1], before) < 2e-3


def test_naive_engine_gives_the_same_answers(experiment, plain):
    before = plain(experiment)
    slow = scores(experiment(arms=REWIRINGS, engine="naive"))
    for name in REWIRINGS:
        assert differ(slow[name], before[name]) < 5e-3, name


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        ("ngd", {"method__steps": 0}),
        ("oracle", {"method__steps": 0}),
        ("kernel_regression", {"arm_options": {"kernel_regression": {"search": "fixed", "alpha": 1.0}}}),
        ("mode_finding", {"arm_options": {"mode_finding": {"iterations": 0}}}),
        ("routing_temperature", {"arm_options": {"routing_temperature": {"temperature": 1.0}}}),
    ],
)
def test_standing_still_is_the_base_model(experiment, arm, changes):
    found = scores(experiment(arms=[arm], **changes))
    assert differ(found[arm], found["base"]) < 1e-3


def test_seed_moves_what_is_drawn_and_nothing_else(experiment, plain):
    """Another seed draws other references, so it is fixed: all of them are used here."""
    names = ["ngd", "ngd_random_neighbors", "ngd_shuffled_labels", "random_pathway", "kernel_regression"]
    found = [
        scores(
            experiment(
                arms=names, seed=seed, references__limit=None, results_dir=f"{experiment().results_dir}{seed}"
            )
        )
        for seed in (0, 1)
    ]
    for name in names:
        moved = differ(found[0][name], found[1][name])
        if name in ("ngd", "kernel_regression"):
            assert moved < 1e-3, name
        else:
            assert moved > 1e-3, name


def test_a_random_pathway_after_ngd_is_the_one_alone_at_the_same_cost(experiment, monkeypatch):
    """It is told how far NGD moved instead of descending again, and charged for it."""
    calls = []

    def counted(problem):
        calls.append(len(problem.original))
        return ngd(problem)

    monkeypatch.setattr("c3po_bench.rewiring.methods.random_pathway.ngd", counted)
    alone = run(experiment(arms=["random_pathway"], results_dir=f"{experiment().results_dir}-alone"))[-1]
    assert sum(calls) == 4
    after = run(experiment(arms=["ngd", "random_pathway"]))[-1]
    assert sum(calls) == 4, "it descended again"
    for one, other in zip(alone.samples(), after.samples(), strict=True):
        assert (
            one["loglikelihoods"] == other["loglikelihoods"]
            and one["pathway_change"] == other["pathway_change"] > 0
        )
    costs = [r.result["cost"]["phases"]["optimize"] for r in (alone, after)]
    assert costs[0]["flops"] == costs[1]["flops"] > 0 and costs[1]["seconds"] > 0


def test_rows_say_what_was_done(experiment):
    cfg = experiment(arms=["ngd"])
    _, ngd = run(cfg)
    for row in ngd.samples():
        assert (
            row["pathway_layers"] == [3, 4]
            and len(row["pathway_before"]) == 2
            and len(row["pathway_before"][0]) == 8
        )
        assert (
            len(row["losses"]) == 3
            and row["losses"][-1] <= row["losses"][0] + 1e-4
            and row["pathway_change"] > 0
        )
        assert len(row["neighbors"]) == 3 and all(n["similarity"] <= 0.9999 for n in row["neighbors"])
        assert {"id", "similarity", "question", "answer"} == set(row["neighbors"][0]) and row[
            "dropped_duplicates"
        ] >= 0
    result = ngd.result
    assert (
        result["settings"]["layers"] == "last:2"
        and result["settings"]["k"] == 3
        and result["settings"]["lr"] == 0.1
    )
    assert result["counts"]["references"] > 0 and "references_leaked" in result["counts"]
    assert all(
        result["cost"]["phases"][name]["seconds"] >= 0
        for name in ("read", "embed", "retrieve", "optimize", "score")
    )
    assert result["cost"]["phases"]["optimize"]["flops"] > 0 and len(result["curves"]["surrogate_loss"]) == 3


def test_unknown_arms_and_options_are_one_line(experiment):
    with pytest.raises(UserError, match="did you mean 'ngd'"):
        run(experiment(arms=["ngdd"]))
    with pytest.raises(UserError, match="did you mean 'temperature'"):
        run(experiment(arms=["base"], arm_options={"routing_temperature": {"temprature": 2.0}}))
    with pytest.raises(UserError, match="takes no options"):
        run(experiment(arms=["base"], arm_options={"base": {"k": 2}}))
