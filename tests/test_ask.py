"""One question at a time: what is shown, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from c3po_bench.ask import divided, made, main, probabilities
from c3po_bench.contract import Answer
from c3po_bench.errors import UserError
from c3po_bench.store.reader import load_runs
from tests.conftest import TINY

TINY_ASK = [word for word in TINY if not word.startswith("limit")]


@pytest.fixture
def ask(capsys) -> Callable[..., tuple[int, str, str]]:
    """Status, output and errors of the command, run in this process."""

    def run(*words: str) -> tuple[int, str, str]:
        status = main([*TINY_ASK, *words])
        return status, *capsys.readouterr()

    return run


def test_a_question_is_answered_by_base_and_the_method_with_neighbors_and_pathway(ask):
    status, shown, errors = ask("What is the capital of Peru?", "Lima", "Quito", "Bogota")
    assert status == 0, errors
    for part in ("its neighbors", "the pathway", "moved", "the options", "Lima", "base", "ngd"):
        assert part in shown
    shares = re.findall(r"(\d+\.\d)%", shown)
    assert len(shares) == 6 and sum(map(float, shares)) == pytest.approx(200, abs=0.5)


def test_an_item_of_a_task_says_whether_it_was_fixed(ask, warm, tmp_path):
    status, shown, errors = ask("facts_capitals:2", "--arm", "kernel_regression")
    assert status == 0, errors
    ending = shown.strip().splitlines()[-1]
    assert re.search(r"\((both right|both wrong|fixed|broken)\)\.$", ending) and "(right)" in shown
    run = warm(*TINY, "arms=[kernel_regression]", f"results_dir={tmp_path}", "limit=3")
    assert run.returncode == 0, run.stderr
    for stored in load_runs(tmp_path):
        (row,) = (r for r in stored.samples() if (r["task"], r["doc_id"]) == ("facts_capitals", 2))
        assert repr(row["choices"][row["prediction"]].strip()) in ending or stored.arm == "base"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["A question?", "one option"], "two options or more"),
        (["limit=3"], "two options or more"),
        (["facts_capitols:2"], "did you mean 'facts_capitals'"),
        (["facts_capitals:999"], "has the numbers 0 to"),
        (["Q?", "a", "b", "--arm", "nhd"], "did you mean 'ngd'"),
        (["backend=feedback", "Q?", "a", "b"], "for backend=rewiring alone"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(ask, words, says):
    status, _, errors = ask(*words)
    assert status == 2 and says in errors.strip().splitlines()[-1], errors


def test_settings_stand_first_and_a_question_may_hold_an_equals_sign():
    assert divided(["limit=3", "What is x if x = 2?", "1", "2"]) == (
        ["limit=3"],
        ["What is x if x = 2?", "1", "2"],
    )
    with pytest.raises(UserError):
        divided(["Q?", "a"])


def test_probabilities_are_those_of_the_tasks_rule():
    item = made(["Q?", "one", "two"])
    assert probabilities(item, Answer(((-1.0, False), (-1.0, False)))) == [0.5, 0.5]
    low, high = probabilities(item, Answer(((-800.0, False), (-799.0, False))))
    assert high == pytest.approx(0.7311, abs=1e-4) and low + high == pytest.approx(1)
