"""Written answers: stock greedy decoding without a recipe; the override at the last prompt token or at all written ones."""

from __future__ import annotations

import json

import pytest
import torch
from rewiring_world import tasks_of

from c3po_bench.errors import UserError
from c3po_bench.models.tiny import tiny_model, tiny_tokenizer
from c3po_bench.rewiring.arms import check_tasks
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.engines import load_engine
from c3po_bench.rewiring.hook import override
from c3po_bench.rewiring.lm import RewiredLM
from c3po_bench.rewiring.pathway import Mixture
from c3po_bench.rewiring.questions import Tokenizer
from c3po_bench.rewiring.rewirer import Recipe, Rewirer
from c3po_bench.rewiring.surrogates import Solution

PROMPT = "Question: what is it?\nAnswer:"
LAYERS = [3, 4]


def swap(problem) -> Solution:
    """A fixed, drastic change: each layer's pathway is turned round."""
    return Solution(problem.original.flip(-1))


@pytest.fixture(scope="module")
def written():
    model = tiny_model("olmoe", seed=1)
    tokenizer = Tokenizer(model, tiny_tokenizer())

    def make(recipe=None, position="last", engine="suffix"):
        method = MethodConfig(layers="3,4", experts="all", position=position)
        return RewiredLM(Rewirer(load_engine(engine, model, LAYERS, position), method, recipe), tokenizer)

    return make


def request(until=(), tokens=12, prompt=PROMPT):
    from lm_eval.api.instance import Instance

    doc = {"question": "what is it?", "key": "k"}
    arguments = (prompt, {"until": list(until), "max_gen_toks": tokens, "do_sample": False})
    return Instance("generate_until", doc, arguments, 0, metadata=("t", 0, 1))


def test_without_a_recipe_it_is_lm_evals_greedy_decoding(written):
    lm = written()
    for ask in (request(), request(until=["a"]), request(tokens=3), request(until=["zz", "~"])):
        assert lm.generate_until([ask]) == lm.tokenizer.lm.generate_until([ask], disable_tqdm=True)
    assert lm.pop_details() == {}


def test_an_answer_is_cut_before_its_stop_and_a_prompt_to_what_leaves_it_room(written):
    lm = written()
    hf, whole = lm.tokenizer.lm, lm.generate_until([request()])[0]
    place = next(n for n in range(1, len(whole)) if whole[n] not in whole[:n])
    assert lm.generate_until([request(until=["", whole[place]])]) == [whole[:place]]
    long = request(prompt="".join(map(str, range(hf.max_length))), tokens=5)
    assert len(hf.tok_encode(long.args[0])) > hf.max_length
    assert lm.generate_until([long]) == hf.generate_until([long], disable_tqdm=True)
    with pytest.raises(UserError, match="leave no room for a prompt"):
        lm.generate_until([request(tokens=hf.max_length)])


def test_an_answer_ends_at_every_end_that_the_generation_config_names(written, monkeypatch):
    """As for models whose turns end in another token than EOS."""
    lm = written()
    hf, whole = lm.tokenizer.lm, lm.generate_until([request()])[0]
    place = next(n for n in range(1, len(whole)) if whole[n] not in whole[:n])
    other = hf.tok_encode(whole[place])[0]
    monkeypatch.setattr(lm.rewirer.engine.model.generation_config, "eos_token_id", [hf.eot_token_id, other])
    assert lm.generate_until([request()]) == [whole[:place]]
    assert hf.generate_until([request()], disable_tqdm=True)[0].rstrip(whole[place]) == whole[:place]


def test_the_length_has_every_name_that_lm_eval_takes(written):
    lm = written()
    for name in ("max_new_tokens", "max_tokens", "max_gen_toks"):
        ask = request()
        ask.arguments = (PROMPT, {"until": [], name: 3})
        assert lm.generate_until([ask]) == lm.tokenizer.lm.generate_until([ask], disable_tqdm=True)
    with pytest.raises(UserError, match="leave no room for a prompt"):
        lm.generate_until([request(tokens=10**6)])


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
    engine = lm.rewirer.engine
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
    lm = written(Recipe(swap, "none"), position, engine)
    assert lm.generate_until([request()]) == [by_hand(lm, position, 12)]
    (details,) = lm.pop_details().values()
    assert details["pathway_change"] > 0 and details["pathway_layers"] == LAYERS


def test_both_positions_and_the_base_write_different_texts(written):
    recipe = Recipe(swap, "none")
    texts = {p: written(recipe, p).generate_until([request()])[0] for p in ("last", "continuation")}
    assert len({*texts.values(), written().generate_until([request()])[0]}) == 3


def test_nothing_is_left_for_the_next_prompt(written):
    lm = written(Recipe(swap, "none"))
    alone = lm.generate_until([request(prompt="Something else:")])
    assert lm.generate_until([request(), request(prompt="Something else:")])[1:] == alone


def test_the_oracle_has_no_label_of_a_written_answer(written):
    with pytest.raises(UserError, match="oracle"):
        written(Recipe(swap, "self")).generate_until([request()])


def test_whole_texts_are_the_base_models(written):
    from lm_eval.api.instance import Instance

    ask = Instance("loglikelihood_rolling", {}, ("some text",), 0)
    rewired = written(Recipe(swap, "none"))
    assert rewired.loglikelihood_rolling([ask]) == written().loglikelihood_rolling([ask])


@pytest.mark.parametrize("position", ["last", "continuation"])
def test_a_generation_task_runs_whole(experiment, tmp_path, position):
    """A `generate_until` task of the user's, with multiple-choice references: texts, scores and pathways are recorded."""
    from c3po_bench.harness import run

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
