"""Written answers: stock greedy decoding without a recipe; the override at the last prompt token or at all written ones."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from lm_eval.api.instance import Instance
from rewiring_world import tasks_of, written_item

from c3po_bench.contract import ArmRow
from c3po_bench.errors import UserError
from c3po_bench.models.tiny import tiny_model, tiny_tokenizer
from c3po_bench.rewiring.arms import check_tasks
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.hook import override
from c3po_bench.rewiring.methods import Solution
from c3po_bench.rewiring.pathway import Mixture
from c3po_bench.rewiring.rewirer import Rewirer, Rewiring
from c3po_bench.rewiring.tokens import Tokenizer

PROMPT = "Question: what is it?\nAnswer:"
LAYERS = [3, 4]


def swap(problem) -> Solution:
    """A fixed, drastic change: each layer's pathway is turned round."""
    return Solution(problem.original.flip(-1))


@pytest.fixture(scope="module")
def written():
    model = tiny_model("olmoe", seed=1)
    tokenizer = Tokenizer(model, tiny_tokenizer())

    def make(rewiring=None, position="last", engine="suffix"):
        method = MethodConfig(layers="3,4", experts="all", position=position)
        return Rewirer(load_engine(engine, model, LAYERS, position), tokenizer, method, rewiring)

    return make


SWAP = Rewiring(ArmRow("swap", "swap", "method"), swap)


def item(until=(), tokens=12, prompt=PROMPT):
    return written_item(prompt, until, tokens)


def texts(rewirer, *items) -> list[str]:
    return [answer.text for answer in rewirer.answer(items)]


def stock(rewirer, *items) -> list[str]:
    """What lm-eval's own model writes."""
    requests = [
        Instance("generate_until", {}, (i.prompt, dict(i.decoding)), 0, metadata=("t", 0, 1)) for i in items
    ]
    return rewirer.tokenizer.lm.generate_until(requests, disable_tqdm=True)


def test_without_a_rewiring_it_is_lm_evals_greedy_decoding(written):
    lm = written()
    for asked in (item(), item(until=["a"]), item(tokens=3), item(until=["zz", "~"])):
        assert texts(lm, asked) == stock(lm, asked)
        assert lm.answer([asked])[0].details == {}


def test_an_answer_is_cut_before_its_stop_and_a_prompt_to_what_leaves_it_room(written):
    lm = written()
    hf, whole = lm.tokenizer.lm, texts(lm, item())[0]
    place = next(n for n in range(1, len(whole)) if whole[n] not in whole[:n])
    assert texts(lm, item(until=["", whole[place]])) == [whole[:place]]
    long = item(prompt="".join(map(str, range(hf.max_length))), tokens=5)
    assert len(hf.tok_encode(long.prompt)) > hf.max_length
    assert texts(lm, long) == stock(lm, long)
    with pytest.raises(UserError, match="leave no room for a prompt"):
        texts(lm, item(tokens=hf.max_length))


def test_an_answer_ends_at_every_end_that_the_generation_config_names(written, monkeypatch):
    """As for models whose turns end in another token than EOS."""
    lm = written()
    hf, whole = lm.tokenizer.lm, texts(lm, item())[0]
    place = next(n for n in range(1, len(whole)) if whole[n] not in whole[:n])
    other = hf.tok_encode(whole[place])[0]
    monkeypatch.setattr(lm.engine.model.generation_config, "eos_token_id", [hf.eot_token_id, other])
    answer = lm.answer([item()])[0]
    assert answer.text == whole[:place] and answer.finished and len(answer.token_ids) == place
    assert stock(lm, item())[0].rstrip(whole[place]) == whole[:place]


def test_the_length_has_every_name_that_lm_eval_takes(written):
    lm = written()
    for name in ("max_new_tokens", "max_tokens", "max_gen_toks"):
        asked = replace(item(), decoding={"until": [], name: 3})
        assert texts(lm, asked) == stock(lm, asked)
    with pytest.raises(UserError, match="leave no room for a prompt"):
        texts(lm, item(tokens=10**6))


def test_tasks_that_sample_are_refused(experiment, monkeypatch):
    cfg = experiment(arms=["base"])
    tasks = tasks_of(cfg)
    (task,) = tasks.load().values()
    monkeypatch.setattr(task, "OUTPUT_TYPE", "generate_until", raising=False)
    monkeypatch.setattr(task.config, "generation_kwargs", {"do_sample": True})
    with pytest.raises(UserError, match="samples its answers"):
        check_tasks(cfg, tasks)


def by_hand(lm, position: str, tokens: int) -> str:
    """Greedy decoding without a cache: the override at position `end` (and, for continuation, all later ones)."""
    engine = lm.engine
    ids = lm.tokenizer.lm.tok_encode(PROMPT)
    end = len(ids) - 1
    (state,) = engine.read([prompt_of(ids)])
    pathway = state.original[torch.tensor(LAYERS)].flip(-1)
    best = pathway.topk(2, dim=-1)
    for _ in range(tokens):
        last = end if position == "last" else len(ids) - 1
        rows = torch.arange(end, last + 1)
        mixture = Mixture(best.values.expand(len(rows), -1, -1), best.indices.expand(len(rows), -1, -1))
        with torch.no_grad(), override(engine.family, engine.model, LAYERS, rows, mixture):
            ids = [*ids, int(engine.model(torch.tensor([ids])).logits[0, -1].argmax())]
        if ids[-1] == lm.tokenizer.lm.eot_token_id:
            ids.pop()
            break
    return lm.tokenizer.lm.tok_decode(ids[end + 1 :])


def prompt_of(ids):
    from c3po_bench.rewiring.states import Prompt

    return Prompt(tuple(ids), ((1,),))


@pytest.mark.parametrize("engine", ["naive", "suffix"])
@pytest.mark.parametrize("position", ["last", "continuation"])
def test_the_override_is_where_it_should_be(written, position, engine):
    lm = written(SWAP, position, engine)
    (answer,) = lm.answer([item()])
    assert answer.text == by_hand(lm, position, 12)
    details = answer.details
    assert details["pathway_change"] > 0 and details["pathway_layers"] == LAYERS


def test_both_positions_and_the_base_write_different_texts(written):
    found = {texts(written(SWAP, position), item())[0] for position in ("last", "continuation")}
    assert len({*found, texts(written(), item())[0]}) == 3


def test_nothing_is_left_for_the_next_prompt(written):
    lm = written(SWAP)
    alone = texts(lm, item(prompt="Something else:"))
    assert texts(lm, item(), item(prompt="Something else:"))[1:] == alone


def test_the_oracle_has_no_label_of_a_written_answer(written):
    with pytest.raises(UserError, match="oracle"):
        texts(written(Rewiring(replace(SWAP.row, references="own"), swap)), item())


@pytest.mark.parametrize("position", ["last", "continuation"])
def test_a_generation_task_runs_whole(experiment, tmp_path, position):
    """A `generate_until` task of the user's, with multiple-choice references: texts, scores and pathways are recorded."""
    from c3po_bench.evaluate.run import run

    rows = [{"q": f"What is {n} and {n}?", "a": str(2 * n)} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "Question: {{q}}\nAnswer:",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    path = tmp_path / "sums.yaml"
    path.write_text(json.dumps(task))  # JSON is YAML
    cfg = experiment(
        arms=["ngd", "routing_temperature", "icl"], tasks=[str(path)], limit=3, method__position=position
    )
    cfg.method.learning_rate = 5.0
    cfg.data.root = None
    base, ngd, sharp, icl = run(cfg)
    for result in (base, ngd, sharp, icl):
        assert [row["gold"] for row in result.samples()] == ["0", "2", "4"] and len(result.samples()) == 3
        assert all(
            isinstance(row["prediction"], str) and row["loglikelihoods"] is None for row in result.samples()
        )
    assert all(row["pathway_change"] > 0 and row["neighbors"] for row in ngd.samples())
    assert [r["prediction"] for r in sharp.samples()] != [
        r["prediction"] for r in base.samples()
    ] or position == "last"
    cfg.arms = ["oracle"]
    with pytest.raises(UserError, match="oracle"):
        run(cfg)
