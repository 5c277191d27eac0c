"""Scoring rules: the same question, put in three ways; lm-eval itself does the scoring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from lm_eval.api.model import LM

from c3po_bench.errors import UserError
from c3po_bench.tasks import RULES, TaskSet
from c3po_bench.tasks.catalog import Catalog
from c3po_bench.tasks.fields import Fields
from tests.tasks.conftest import tiny_tasks


class Fake(LM):
    """Log-likelihoods that depend on nothing but the texts."""

    def loglikelihood(self, requests):  # noqa: ANN001, ANN201
        return [(-float(sum(map(ord, c + k)) % 97) - 1, False) for c, k in (r.args for r in requests)]

    def generate_until(self, requests):  # noqa: ANN001, ANN201
        raise NotImplementedError

    loglikelihood_rolling = generate_until


def _first(tasks: TaskSet, name: str, doc_id: int = 0):  # noqa: ANN202
    task = tasks.load()[name]
    return tasks.references(task.task_name, [(doc_id, task.eval_docs[doc_id])])[0]


def test_letters_list_the_options(tiny_root: Path) -> None:
    item = _first(TaskSet(["arc_easy"], data_root=tiny_root, rule="letters"), "arc_easy")
    prompt = (
        "Question: Which is number 201?\nA. thing 201\nB. stuff 201\nC. matter 201\nD. object 201\nAnswer:"
    )
    assert item.requests == tuple((prompt, f" {letter}") for letter in "ABCD") and item.gold == 1
    assert item.question == "Which is number 201?"


def test_letters_on_tasks_with_one_prompt_for_each_choice(tiny_root: Path) -> None:
    item = _first(TaskSet(["winogrande"], data_root=tiny_root, rule="letters"), "winogrande")
    prompt = "Ann gave Bob 101 coins because _ was kind.\nA. Ann\nB. Bob\nAnswer:"
    assert item.requests == ((prompt, " A"), (prompt, " B")) and item.gold == 1


def test_a_lettered_stock_task_is_the_same_under_letters_and_cloze(tiny_root: Path) -> None:
    for name in ("mmlu_anatomy", "commonsense_qa"):
        cloze = _first(TaskSet([name], data_root=tiny_root), name)
        assert cloze == _first(TaskSet([name], data_root=tiny_root, rule="letters"), name)


def test_permuting_keeps_the_prompt_of_lettered_tasks_but_for_the_order(tiny_root: Path) -> None:
    for name in ("mmlu_anatomy", "commonsense_qa"):
        stock = TaskSet([name], data_root=tiny_root)
        mixed = TaskSet([name], data_root=tiny_root, permute_options=True)
        plain, other = _first(stock, name).requests[0][0], _first(mixed, name).requests[0][0]
        strip = lambda text: sorted(line.split(". ", 1)[-1] for line in text.splitlines())  # noqa: E731
        assert strip(plain) == strip(other)
        golds = {tuple(_first(mixed, name, i).gold for i in range(12))} - {
            tuple(_first(stock, name, i).gold for i in range(12))
        }
        assert golds, "the permutation changed nothing"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", tiny_tasks())
def test_permutation_moves_the_gold_with_its_text(name: str, rule: str, tiny_root: Path) -> None:
    stock = TaskSet([name], data_root=tiny_root, rule="cloze")
    mixed = TaskSet([name], data_root=tiny_root, rule=rule, permute_options=True, seed=5)
    again = TaskSet([name], data_root=tiny_root, rule=rule, permute_options=True, seed=5)
    orders = set()
    for doc_id in range(12):
        doc = stock.load()[name].eval_docs[doc_id]
        before, after = (
            stock.choice_texts(stock.load()[name], doc),
            mixed.choice_texts(mixed.load()[name], doc),
        )
        assert before is not None and after is not None and sorted(before) == sorted(after)
        assert before[_first(stock, name, doc_id).gold] == after[_first(mixed, name, doc_id).gold]
        assert _first(mixed, name, doc_id) == _first(again, name, doc_id)
        orders.add(tuple(before.index(text) for text in after))
    assert len(orders) > 1


def test_the_order_shown_does_not_depend_on_the_label(tiny_root: Path) -> None:
    tasks = TaskSet(["piqa", "sciq"], data_root=tiny_root, rule="letters", permute_options=True)
    piqa = tasks.load()["piqa"]
    doc = piqa.eval_docs[0]
    assert tasks.choice_texts(piqa, doc) == tasks.choice_texts(piqa, {**doc, "label": 1 - doc["label"]})
    assert piqa.doc_to_text(doc) == piqa.doc_to_text({**doc, "label": 1 - doc["label"]})


def test_letters_do_not_give_away_a_fixed_place(tiny_root: Path) -> None:
    tasks = TaskSet(["sciq"], data_root=tiny_root, rule="letters")
    assert len({_first(tasks, "sciq", i).gold for i in range(12)}) > 1


def test_permuting_moves_options_that_letters_have_shuffled_already(tiny_root: Path) -> None:
    shown = TaskSet(["sciq"], data_root=tiny_root, rule="letters")
    mixed = TaskSet(["sciq"], data_root=tiny_root, rule="letters", permute_options=True)
    changed = [_first(shown, "sciq", i).requests != _first(mixed, "sciq", i).requests for i in range(12)]
    assert sum(changed) >= 8, "a permutation of four options repeats the old one in 1 of 24"


@pytest.mark.parametrize("rule", RULES)
def test_lm_eval_scores_as_we_predict(rule: str, tiny_root: Path) -> None:
    tasks = TaskSet([*tiny_tasks(), "facts_capitals"], data_root=tiny_root, rule=rule)
    first, again = (
        lm_eval.simple_evaluate(
            Fake(),
            tasks=tasks.specs,
            task_manager=tasks.manager,
            limit=8,
            bootstrap_iters=0,
            log_samples=True,
        )
        for _ in range(2)
    )
    assert first is not None and again is not None
    assert first["results"] == again["results"], "a task must be scored alike by the next arm"
    for name, samples in first["samples"].items():
        task = tasks.load()[name]
        for sample in samples:
            scores = [float(r[0]) for r in sample["filtered_resps"]]
            if tasks.headline[name] == "acc_norm":
                scores = [
                    s / n for s, n in zip(scores, tasks.choice_lengths(task, sample["doc"]), strict=True)
                ]
            right = scores.index(max(scores)) == tasks.gold(task, sample["doc"])
            assert sample[tasks.headline[name]] == float(right)


def test_headlines() -> None:
    assert TaskSet(["facts_capitals"]).headline == {"facts_capitals": "acc"}
    assert TaskSet(["facts_capitals"], rule="length_normalized").headline == {"facts_capitals": "acc_norm"}


def test_ready_made_tasks_can_join(tiny_root: Path) -> None:
    tasks = TaskSet(["facts_capitals"])
    assert list(tasks.headline) == ["facts_capitals"]
    tasks.extend("more", TaskSet(["copa"], data_root=tiny_root).load())
    assert tasks.groups == {"facts_capitals": ["facts_capitals"], "more": ["copa"]}
    assert set(tasks.headline) == set(tasks.data_hashes()) == {"facts_capitals", "copa"}
    alone = TaskSet([])
    alone.extend("more", TaskSet(["copa"], data_root=tiny_root).load())
    assert list(alone.load()) == ["copa"] and len(alone.specs) == 1


@pytest.mark.parametrize("rule", RULES)
def test_few_shot_examples_are_fixed_and_never_the_question(rule: str, tiny_root: Path) -> None:
    for name in ("arc_easy", "winogrande", "copa", "mmlu_anatomy", "facts_capitals"):
        tasks = TaskSet([name], data_root=tiny_root, rule=rule, num_fewshot=5)
        task = tasks.load()[name]
        rows = list(enumerate(task.eval_docs))[:6]
        forward, backward = (
            tasks.references(task.task_name, rows),
            tasks.references(task.task_name, rows[::-1]),
        )
        assert forward == backward[::-1], "prompts depend on the order"
        zero = TaskSet([name], data_root=tiny_root, rule=rule)
        for item, plain in zip(forward, zero.references(name, rows), strict=True):
            assert item.requests[0][0].count("\n\n") - plain.requests[0][0].count("\n\n") == 5
            assert item.question == plain.question and item.requests[0][0].count(item.question[:30]) <= 1
        seeds = [TaskSet([name], data_root=tiny_root, num_fewshot=3, seed=s) for s in (1, 2)]
        if name != "mmlu_anatomy":  # its examples are prescribed: the first five
            assert _first(seeds[0], name) != _first(seeds[1], name)


def test_shots_take_effect_where_the_yaml_says_zero(tmp_path: Path, tiny_root: Path) -> None:
    from c3po_bench.tasks.catalog import stock_root

    path = tmp_path / "zero.yaml"
    path.write_text(f"include: {stock_root() / 'arc' / 'arc_easy.yaml'}\ntask: arc_zero\nnum_fewshot: 0\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "arc_zero").symlink_to(tiny_root / "arc_easy")
    tasks = TaskSet([str(path)], data_root=tmp_path / "data", num_fewshot=2)
    results = lm_eval.simple_evaluate(
        Fake(), tasks=tasks.specs, task_manager=tasks.manager, limit=1, bootstrap_iters=0, log_samples=True
    )
    assert results is not None
    assert results["samples"]["arc_zero"][0]["arguments"][0][0].count("\n\n") == 2


def test_another_number_of_examples_than_lm_evals_own_is_noted(tmp_path: Path) -> None:
    """As for gsm8k, whose file asks for five."""
    path = own_task(tmp_path, "five", num_fewshot=2)
    said = "five: asked with 0 examples (scoring.num_fewshot), in lm-eval with 2"
    assert TaskSet([path], data_root=tmp_path).notes == [said]
    assert TaskSet([path], data_root=tmp_path, num_fewshot=2).notes == []


def test_too_few_examples_and_bad_rules_are_user_errors(tiny_root: Path) -> None:
    tasks = TaskSet(["facts_capitals"], num_fewshot=50)
    with pytest.raises(UserError, match="num_fewshot=50"):
        _first(tasks, "facts_capitals")
    with pytest.raises(UserError, match="did you mean 'letters'"):
        TaskSet(["facts"], rule="leters")
    with pytest.raises(UserError, match="num_fewshot=-1"):
        TaskSet(["facts"], num_fewshot=-1)


def test_templates_are_compiled_once(tiny_root: Path) -> None:
    from lm_eval import utils

    tasks = TaskSet(["arc_easy"], data_root=tiny_root)
    first = tasks.request_hashes()
    from_string: Any = utils.env.from_string
    compiled = from_string.cache_info().misses
    assert TaskSet(["arc_easy"], data_root=tiny_root).request_hashes() == first
    assert from_string.cache_info().misses == compiled


def test_fixed_examples_in_a_prompt_are_not_the_question() -> None:
    for name in ("truthfulqa_mc1", "truthfulqa_mc2"):
        (config,) = Catalog().expand(name).values()
        assert Fields.of(name, config).question({"question": "Do cats fly?"}) == "Do cats fly?"


def test_question_texts_are_questions(tiny_root: Path) -> None:
    tasks = TaskSet(tiny_tasks(), data_root=tiny_root, rule="letters")
    texts = {name: tasks.question_text(task, task.eval_docs[0]) for name, task in tasks.load().items()}
    assert texts["winogrande"] == "Ann gave Bob 101 coins because _ was kind."
    assert texts["sciq"] == "What is measured in case 101?"
    assert texts["piqa"] == "To do 101,"
    assert texts["hellaswag"].startswith("Cooking: A man cooks")
    assert texts["mmlu_anatomy"] == "Which bone is number 201?"
    assert texts["copa"] == "It rained for 101 days therefore"


LISTED = "A. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nAnswer:"


def own_task(folder: Path, name: str, **changes: Any) -> str:
    """A YAML of a lettered task whose documents are the three that it comes with."""
    docs = [
        {
            "passage": f"Passage {i}.",
            "question": f"what is {i}?",
            "choices": [f"{w} {i}" for w in ("one", "two", "three")],
            "opa": f"one {i}",
            "opb": f"two {i}",
            "opc": f"three {i}",
            "answer": i % 3,
        }
        for i in range(3)
    ]
    data = folder / name
    data.mkdir(parents=True, exist_ok=True)
    (data / "test.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in changes.pop("docs", docs)))
    config = {
        "task": name,
        "dataset_path": "none",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Passage: {{passage}}\nQuestion: {{question}}\n" + LISTED,
        "doc_to_choice": ["A", "B", "C"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config | changes))
    return str(path)


def test_permuting_a_lettered_prompt_changes_its_order_and_nothing_else(tmp_path: Path) -> None:
    path = own_task(tmp_path, "lettered")
    stock, mixed = (TaskSet([path], data_root=tmp_path, permute_options=p, seed=1) for p in (False, True))
    prompts = [[_first(tasks, "lettered", i).requests[0][0] for i in range(3)] for tasks in (stock, mixed)]
    assert prompts[0] != prompts[1]
    for i, (plain, other) in enumerate(zip(*prompts, strict=True)):
        assert other.startswith(f"Passage: Passage {i}.\nQuestion: what is {i}?\nA. ") and other.endswith(
            "\nAnswer:"
        )
        assert sorted(x[3:] for x in plain.splitlines()[2:5]) == sorted(
            x[3:] for x in other.splitlines()[2:5]
        )


def test_a_prompt_whose_options_cannot_be_exchanged_is_refused(tmp_path: Path) -> None:
    text = "{{question}} (A) {{choices[0]}} (B) {{choices[1]}} (C) {{choices[2]}}"
    tasks = TaskSet(
        [own_task(tmp_path, "inline", doc_to_text=text)], data_root=tmp_path, permute_options=True
    )
    with pytest.raises(UserError, match="'inline': its prompt does not list the options"):
        tasks.request_hashes()


def test_options_kept_elsewhere_are_shown_as_letters(tmp_path: Path) -> None:
    """As in medmcqa: the prompt has them, no field `choices` has."""
    text = "{{question}}\nA. {{opa}}\nB. {{opb}}\nC. {{opc}}\nAnswer:"
    docs = [{"question": f"what is {i}?", "opa": "x", "opb": "y", "opc": "z", "answer": i} for i in range(3)]
    tasks = TaskSet([own_task(tmp_path, "apart", doc_to_text=text, docs=docs)], data_root=tmp_path)
    task = tasks.load()["apart"]
    assert tasks.choice_texts(task, task.eval_docs[0]) == ["A", "B", "C"]
    with pytest.raises(UserError, match="no field `choices`"):
        TaskSet(tasks.names, data_root=tmp_path, permute_options=True).request_hashes()


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    first = own_task(tmp_path / "a", "same")
    second = own_task(tmp_path / "b", "same", doc_to_text="{{question}}")
    assert TaskSet([first, first], data_root=tmp_path / "a").groups == {first: ["same"]}
    with pytest.raises(UserError, match="holds another task same than one before it"):
        TaskSet([first, second], data_root=tmp_path / "a")


@pytest.mark.parametrize(
    ("rule", "doc", "said"),
    [
        (
            "cloze",
            {"question": "q", "choices": ["a", "b"], "answer": 5},
            r"document 1 \(row 2 of .*\) can't be asked: doc_to_target .*gives 5, which is none of its 2 choices",
        ),
        ("length_normalized", {"question": "q", "choices": ["a", ""], "answer": 0}, "a choice without text"),
        (
            "cloze",
            {"question": "q", "choices": None, "answer": 0},
            "document 1 .*can't be asked: doc_to_choice",
        ),
    ],
)
def test_documents_that_cannot_be_asked_are_named(
    rule: str, doc: dict[str, Any], said: str, tmp_path: Path
) -> None:
    docs = [{"question": "p", "choices": ["a", "b"], "answer": 1}, doc]
    own = own_task(tmp_path, "plain", doc_to_text="question", doc_to_choice="{{choices}}", docs=docs)
    with pytest.raises(UserError, match=said):
        TaskSet([own], data_root=tmp_path, rule=rule).request_hashes()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"doc_to_text": "{{question"}, "can't be asked: doc_to_text: TemplateSyntaxError"),
        ({"doc_to_txt": "question"}, "unknown key of task plain 'doc_to_txt': did you mean 'doc_to_text'"),
        ({"doc_to_target": None}, "needs doc_to_target, which its file lacks"),
        ({"metric_list": [{"metric": "accc"}]}, "unknown metric of task plain 'accc': did you mean 'acc'"),
        ({"test_split": None}, "names neither test_split nor validation_split"),
        ({"include": "absent.yaml"}, "can't be read .FileNotFoundError"),
    ],
)
def test_a_task_file_with_a_mistake_is_refused_in_one_line(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        TaskSet([own_task(tmp_path, "plain", **changes)], data_root=tmp_path).load()


def test_an_answer_is_found_as_lm_eval_finds_it(tmp_path: Path) -> None:
    """A field's text is one of the choices, even a number; choices may be a dict's values."""
    docs = [{"question": "q", "answer": "1", "n": 1}, {"question": "r", "answer": "2", "n": 0}]
    numbers = TaskSet(
        [own_task(tmp_path, "numbers", docs=docs, doc_to_text="question", doc_to_choice=["1", "2"])],
        data_root=tmp_path,
    )
    assert [_first(numbers, "numbers", i).gold for i in range(2)] == [0, 1]
    keyed = {
        "docs": docs,
        "doc_to_text": "question",
        "doc_to_choice": {"x": "yes", "y": "no"},
        "doc_to_target": "n",
    }
    stock, mixed = (
        TaskSet([own_task(tmp_path, "keyed", **keyed)], data_root=tmp_path, permute_options=p)
        for p in (False, True)
    )
    for i in range(2):
        plain, other = _first(stock, "keyed", i), _first(mixed, "keyed", i)
        assert (
            sorted(plain.requests)
            == sorted(other.requests)
            == [("q" if not i else "r", c) for c in (" no", " yes")]
        )
        assert plain.requests[plain.gold] == other.requests[other.gold]
    wrong = own_task(tmp_path, "wrong", docs=docs, doc_to_text="question", doc_to_choice=["yes", "no"])
    with pytest.raises(UserError, match="gives '1', which is none of its 2 choices"):
        TaskSet([wrong], data_root=tmp_path).references("wrong", [(0, docs[0])])


MASS = """
def mass(doc, results):
    return {"acc": sum(-ll for (ll, _), label in zip(results, doc["labels"]) if label)}
"""


def test_a_tasks_own_scoring_meets_the_options_in_stock_order(tmp_path: Path) -> None:
    """As TruthfulQA's second form: its function reads the labels, which stand in stock order."""
    (tmp_path / "own_mass.py").write_text(MASS)
    docs = [
        {"question": f"what is {i}?", "choices": ["a", "bb", "ccc", "dddd"], "labels": [1, 1, 0, 0]}
        for i in range(8)
    ]
    text = own_task(
        tmp_path, "mass", docs=docs, doc_to_text="question", doc_to_choice="choices", doc_to_target=0
    )
    Path(text).write_text(Path(text).read_text() + "process_results: !function own_mass.mass\n")
    found = []
    for rule, permute in (("cloze", False), ("cloze", True), ("length_normalized", True)):
        tasks = TaskSet([text], data_root=tmp_path, rule=rule, permute_options=permute)
        task = tasks.load()["mass"]
        assert tasks.headline == {"mass": "acc"} and tasks.request_hashes()
        lls = [
            [(-float(len(pair[1])), False) for pair in _first(tasks, "mass", i).requests] for i in range(8)
        ]
        found.append([task.process_results(doc, ll)["acc"] for doc, ll in zip(docs, lls, strict=True)])
    assert found == [[5.0] * 8] * 3


def test_letters_stand_behind_a_space_whatever_the_stock_choices_do(tmp_path: Path) -> None:
    tight = {"doc_to_text": "question", "doc_to_choice": "{{choices}}", "target_delimiter": ""}
    item = _first(
        TaskSet([own_task(tmp_path, "tight", **tight)], data_root=tmp_path, rule="letters"), "tight"
    )
    assert [continuation for _, continuation in item.requests] == [" A", " B", " C"]
    spaced = {"doc_to_choice": [" A", " B", " C"], "target_delimiter": ""}
    item = _first(
        TaskSet([own_task(tmp_path, "spaced", **spaced)], data_root=tmp_path, permute_options=True), "spaced"
    )
    assert [continuation for _, continuation in item.requests] == [" A", " B", " C"]


@pytest.mark.parametrize(
    ("text", "said"), [("", "holds no rows"), ("{x}\n", "line 1 is no JSON"), ("[1]\n", "no JSON object")]
)
def test_data_that_is_no_json_lines_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = own_task(tmp_path, "plain")
    (tmp_path / "plain" / "test.jsonl").write_text(text)
    with pytest.raises(UserError, match=said):
        TaskSet([path], data_root=tmp_path).load()
