"""Scoring by lm-eval into rows: one row an item, with a number that arms can be compared by."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from c3po_bench.contract import CHOICES, TEXT, Answer, ArmRow, Cost, Item, Phase
from c3po_bench.errors import UserError
from c3po_bench.evaluate.adapter import score
from c3po_bench.evaluate.chunks import make_chunks
from c3po_bench.evaluate.record import mean_correct
from c3po_bench.store.files import Journal
from c3po_bench.tasks.taskset import TaskSet

GSM8K_LIKE = {
    "output_type": "generate_until",
    "doc_to_text": "Question: {{q}}\nAnswer:",
    "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [
        {
            "name": name,
            "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}],
        }
        for name, pattern in {"strict-match": "#### ([0-9]+)", "flexible-extract": "([0-9]+)"}.items()
    ],
}


class ParrotArm:
    """Answers with the right number, every other time with the marks that the strict filter wants; likes choice 0."""

    row = ArmRow("parrot", "parrot", "method")

    def prepare(self) -> None:
        pass

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        return [self._scored(item) if item.kind == CHOICES else self._written(item) for item in items]

    def _written(self, item: Item) -> Answer:
        number = sum(map(int, item.prompt.split("?")[0].split(" + ")[-2:]))
        return Answer(text=f"#### {number}" if number % 4 == 0 else f"It is {number}")

    def _scored(self, item: Item) -> Answer:
        broken = "broken" in item.requests[0][0]
        return Answer(
            scores=tuple((math.nan if broken else -1.0 - n, False) for n in range(len(item.requests)))
        )

    def cost(self) -> Cost:
        return Cost()


class CostlyArm(ParrotArm):
    """A batch costs 3 seconds and 5 FLOPs of `score`, and 8 seconds that an arm before it has spent; training was before."""

    asked = 0

    def cost(self) -> Cost:
        self.asked += 1
        phases = {"score": Phase(3.0 * self.asked, 5 * self.asked), "train": Phase(7.0, None)}
        return Cost(phases, cached_seconds=8.0 * self.asked)


class CuriousArm(ParrotArm):
    """Remembers the items it was given."""

    def __init__(self, reads_labels: bool) -> None:
        self.row = ArmRow("curious", "curious", "method", reads_labels=reads_labels)
        self.items: list[Item] = []

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        self.items += items
        return super().answer(items)


@pytest.fixture
def scored(tmp_path):
    """Rows of a task made of documents and a config."""

    def run(docs: list[dict], rule: str = "cloze", arm: ParrotArm | None = None, **config) -> list[dict]:
        (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        data = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}},
        }
        (tmp_path / "made.yaml").write_text(
            json.dumps({"task": "made", "test_split": "test", **data, **config})
        )
        tasks = TaskSet([str(tmp_path / "made.yaml")], rule=rule)
        chunks = make_chunks(tasks, 4, None)
        journal = Journal(tmp_path / "journal.jsonl")
        settings = {"chunks": chunks, "limit": None, "doc_ids": None, "seed": 0, "prepare": lambda: None}
        return score(arm or ParrotArm(), tasks, journal, lambda *_: None, **settings)[0]  # pyright: ignore[reportArgumentType]

    return run


SUMS = [{"q": f"0 + {n} + {n}?", "a": str(2 * n)} for n in range(6)]


def test_long_questions_are_scored_first_whatever_their_order(tmp_path):
    words = [3, 40, 1, 25, 12]
    found = []
    for docs in (words, words[::-1]):
        lines = [{"q": "why " * n, "a": "so"} for n in docs]
        (tmp_path / "docs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        data = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}},
        }
        (tmp_path / "made.yaml").write_text(
            json.dumps({"task": "made", "test_split": "test", **data, **GSM8K_LIKE})
        )
        chunks = make_chunks(TaskSet([str(tmp_path / "made.yaml")]), 2, None)
        found.append([[docs[doc_id] for _, doc_id in chunk] for chunk in chunks.items])
    assert found[0] == found[1] == [[40, 25], [12, 3], [1]]


def test_a_task_with_several_filters_counts_each_item_once_under_the_first(scored):
    rows = scored(SUMS, **GSM8K_LIKE)
    assert [row["doc_id"] for row in rows] == list(range(6))
    strict = [float(2 * n % 4 == 0) for n in range(6)]
    assert [row["correct"] for row in rows] == strict
    assert [row["filters"] for row in rows] == [{"strict-match": s, "flexible-extract": 1.0} for s in strict]


def test_one_filter_needs_no_list(scored):
    rows = scored(SUMS, **{**GSM8K_LIKE, "filter_list": GSM8K_LIKE["filter_list"][1:]})
    assert [row["correct"] for row in rows] == [1.0] * 6 and not any("filters" in row for row in rows)


def test_requests_that_a_task_repeats_are_asked_once_and_answered_each_time(scored):
    vote = [{"function": "regex", "regex_pattern": "([0-9]+)"}, {"function": "majority_vote"}]
    steps = {"filter_list": [{"name": "vote", "filter": [*vote, {"function": "take_first"}]}]}
    arm = CuriousArm(reads_labels=False)
    rows = scored(SUMS, arm=arm, **GSM8K_LIKE | steps, repeats=3)
    assert [row["correct"] for row in rows] == [1.0] * 6 and len(arm.items) == 6
    docs = [{"q": f"question {n}", "c": ["yes", "no"], "a": n % 2} for n in range(4)]
    rows = scored(docs, arm=arm, **CHOOSE, repeats=2)
    assert [row["correct"] for row in rows] == [1.0, 0.0, 1.0, 0.0]
    assert len(arm.items[-1].requests) == 2


def test_a_metric_of_whole_corpora_is_refused_and_never_zero(scored):
    with pytest.raises(UserError, match=r"task 'made': its headline metric 'bleu'"):
        scored(SUMS, **{**GSM8K_LIKE, "metric_list": [{"metric": "bleu"}], "filter_list": None})


def test_a_log_likelihood_that_is_no_number_is_refused_and_not_kept(scored, tmp_path):
    docs = [{"q": f"question {n}" + " broken" * (n == 1), "c": ["yes", "no"], "a": 0} for n in range(3)]
    asked = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{c}}",
        "doc_to_target": "a",
    }
    with pytest.raises(
        UserError, match="parrot: item 1 of task made has a log-likelihood that is not a number"
    ):
        scored(docs, **asked)
    assert not Journal(tmp_path / "journal.jsonl").rows


def test_questions_that_share_a_passage_share_a_cluster(scored):
    docs = [
        {"passage": f"passage {n // 2}", "q": f"question {n}", "c": ["yes", "no"], "a": n % 2}
        for n in range(6)
    ]
    asked = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{c}}",
        "doc_to_target": "a",
    }
    clusters = [row["cluster"] for row in scored(docs, **asked)]
    assert clusters[::2] == clusters[1::2] and len(set(clusters)) == 3
    plain = [{name: value for name, value in doc.items() if name != "passage"} for doc in docs]
    assert not any("cluster" in row for row in scored(plain, **asked))


@pytest.mark.parametrize(("rule", "predicted"), [("cloze", [0, 0, 0]), ("length_normalized", [1, 2, 0])])
def test_a_row_says_what_was_chosen_and_it_is_what_counts(scored, rule, predicted):
    """The likeliest choice, or the likeliest a character; log-likelihoods are -1, -2 and -3 as they are asked."""
    choices = [
        ["no", "by no means", "yes"],
        ["a", "b", "every one of them"],
        ["a long first choice", "b", "c"],
    ]
    docs = [{"q": f"question {n}", "c": list(found), "a": n} for n, found in enumerate(choices)]
    asked = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{c}}",
        "doc_to_target": "a",
    }
    metrics = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
    ]
    rows = scored(docs, rule=rule, **asked, metric_list=metrics)
    assert [row["prediction"] for row in rows] == predicted and [row["gold"] for row in rows] == [0, 1, 2]
    assert [row["correct"] for row in rows] == [float(row["prediction"] == row["gold"]) for row in rows]
    assert all(row["loglikelihoods"] == [-1.0, -2.0, -3.0] for row in rows)
    assert [row["choices"] for row in rows] == choices and [row["question"] for row in rows] == [
        d["q"] for d in docs
    ]
    assert [row["doc_id"] for row in rows] == [0, 1, 2]


def test_a_batchs_cost_is_shared_by_its_items(scored, tmp_path):
    """Six items in batches of four and two: what was spent for them before is theirs, phases are told once a batch."""
    scored(SUMS, arm=CostlyArm(), **GSM8K_LIKE)
    rows = list(Journal(tmp_path / "journal.jsonl").rows.values())
    assert [int(row["seconds"]) for row in rows] == [2, 2, 2, 2, 4, 4]
    assert [row["phases"] for row in rows if "phases" in row] == [{"score": [3.0, 5]}] * 2


def test_an_answer_that_no_judge_scored_is_in_no_mean():
    rows = [{"correct": 1.0, "score": -1.0}, {"correct": 0.0, "score": None}, {"correct": 1.0}]
    assert mean_correct(rows) == 1.0
    assert mean_correct(rows[1:2]) == 0.0


CHOOSE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "{{c}}",
    "doc_to_target": "a",
}


def test_items_come_as_the_task_renders_them_and_without_their_label(scored, tmp_path):
    docs = [{"q": f"question {n}", "c": ["yes", "no"], "a": n % 2} for n in range(3)]
    blind, seeing = CuriousArm(reads_labels=False), CuriousArm(reads_labels=True)
    for arm in (blind, seeing):
        (tmp_path / "journal.jsonl").unlink(missing_ok=True)
        scored(docs, arm=arm, **CHOOSE)
    first = min(blind.items, key=lambda item: item.id)
    assert first.id == ("made", 0) and first.requests == (("question 0", " yes"), ("question 0", " no"))
    assert first.question == "question 0" and first.n_choices == 2 and first.lengths == ()
    assert {item.gold for item in blind.items} == {None}
    assert [item.gold for item in sorted(seeing.items, key=lambda item: item.id)] == [0, 1, 0]
    assert [item.key for item in blind.items] == [item.key for item in seeing.items]


def test_requests_that_only_a_metric_asks_for_are_no_options(scored):
    """Mutual information asks each option without its context, too."""
    docs = [{"q": f"question {n}", "c": ["yes", "no", "maybe"], "a": n} for n in range(3)]
    metrics = [{"metric": "acc"}, {"metric": "acc_mutual_info"}]
    arm = CuriousArm(reads_labels=False)
    rows = scored(docs, arm=arm, **CHOOSE, metric_list=metrics)
    assert all(len(item.requests) == 6 and item.n_choices == 3 == len(item.options) for item in arm.items)
    shown = arm.items[0].with_context(["An example."])
    assert [c for c, _ in shown.options] == ["An example.\n\n" + c for c, _ in arm.items[0].options]
    assert len(shown.requests) == 6 and shown.n_choices == 3
    assert all(len(row["loglikelihoods"]) == 3 for row in rows)


def test_the_right_choices_probability_is_that_of_the_tasks_scoring_rule(scored, tmp_path):
    docs = [{"q": f"question {n}", "c": ["a", "bbbb"], "a": n % 2} for n in range(2)]
    # log-likelihoods are -1 and -2 (and -3, -4 without the context); lengths are 1 and 4
    expected = {"cloze": (-1.0, -2.0), "length_normalized": (-1.0, -0.5), "mutual": (2.0, 2.0)}
    for rule, (first, second) in expected.items():
        (tmp_path / "journal.jsonl").unlink(missing_ok=True)
        metrics = {"metric_list": [{"metric": "acc_mutual_info"}]} if rule == "mutual" else {}
        rows = scored(docs, rule="cloze" if rule == "mutual" else rule, **CHOOSE, **metrics)
        share = math.exp(first) / (math.exp(first) + math.exp(second))
        assert [row["p_gold"] for row in rows] == pytest.approx([share, 1 - share], abs=1e-8)
    (tmp_path / "journal.jsonl").unlink()
    assert "p_gold" not in scored(SUMS, **GSM8K_LIKE)[0]


def test_a_task_of_written_answers_makes_text_items(scored):
    arm = CuriousArm(reads_labels=True)
    scored(SUMS, arm=arm, **GSM8K_LIKE)
    item = min(arm.items, key=lambda item: item.id)
    assert item.kind == TEXT and item.prompt == "Question: 0 + 0 + 0?\nAnswer:" and item.gold is None
    assert item.decoding["until"] == ["\n"] and item.requests == ()
    assert item.with_context(["Q", "A"]).prompt == f"Q\n\nA\n\n{item.prompt}"


def test_perplexity_tasks_are_refused_before_anything_is_loaded(scored):
    with pytest.raises(UserError, match="task made measures the perplexity of whole texts"):
        scored([{"q": "a text"}], output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{q}}")


class GreedyForMemory(ParrotArm):
    """Has memory for two items at once."""

    sizes: list[int]

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        if len(items) > 2:
            raise MemoryError
        self.sizes.append(len(items))
        return super().answer(items)


def test_a_batch_that_memory_does_not_suffice_for_is_answered_in_parts(scored, tmp_path):
    whole = scored(SUMS, **GSM8K_LIKE)
    (tmp_path / "journal.jsonl").unlink()
    arm = GreedyForMemory()
    arm.sizes = []
    assert scored(SUMS, arm=arm, **GSM8K_LIKE) == whole and arm.sizes == [2, 2, 2]
    assert [row.get("halved") for row in Journal(tmp_path / "journal.jsonl").rows.values()].count(2) == 1


class Diverging(ParrotArm):
    """Its second loss is no number."""

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        return [replace(a, details={"losses": [0.5, float("nan")]}) for a in super().answer(items)]


def test_what_is_no_number_ends_the_run_with_its_step(scored, tmp_path):
    with pytest.raises(UserError, match=r"item \d of task made: losses at step 1 is not a number"):
        scored(SUMS, arm=Diverging(), **GSM8K_LIKE)
    assert not (tmp_path / "journal.jsonl").exists()
