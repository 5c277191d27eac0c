"""Local copies give the stock tasks, prompt for prompt; what is missing is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from c3po_bench.errors import UserError
from c3po_bench.tasks import TaskSet
from c3po_bench.tasks.catalog import stock_root
from c3po_bench.tasks.local_data import folder_name

STOCK = {  # task: (YAML below lm_eval/tasks, splits of the stock YAML that the shared data has)
    "arc_easy": ("arc/arc_easy.yaml", ("train", "validation", "test")),
    "arc_challenge": ("arc/arc_challenge.yaml", ("train", "validation", "test")),
    "openbookqa": ("openbookqa/openbookqa.yaml", ("train", "validation", "test")),
    "sciq": ("sciq/sciq.yaml", ("validation", "test")),
    "piqa": ("piqa/piqa.yaml", ("train", "validation")),
    "winogrande": ("winogrande/default.yaml", ("train", "validation")),
    "hellaswag": ("hellaswag/hellaswag.yaml", ("validation",)),
    "social_iqa": ("siqa/siqa.yaml", ("train", "validation")),
    "commonsense_qa": ("commonsense_qa/default.yaml", ("train", "validation")),
    "copa": ("super_glue/copa/default.yaml", ("train", "validation")),
    "mmlu_anatomy": ("mmlu/default/mmlu_anatomy.yaml", ("dev", "test")),
    "mmlu_world_religions": ("mmlu/default/mmlu_world_religions.yaml", ("dev", "test")),
}


def _stock(name: str, data_root: Path, cache: Path) -> ConfigurableTask:
    """The stock task through lm-eval's and `datasets`' own JSON reader."""
    file, splits = STOCK[name]
    config = load_yaml(stock_root() / file, resolve_func=True)
    config.pop("tag", None)
    files = {
        split: str(data_root / folder_name(name, {"dataset_path": "cais/mmlu"}) / f"{split}.jsonl")
        for split in splits
    }
    config |= {"dataset_path": "json", "dataset_name": None}
    config["dataset_kwargs"] = {"data_files": files, "cache_dir": str(cache)}
    for key in ("training_split", "validation_split"):
        if config.get(key) not in splits:
            config[key] = None
    return ConfigurableTask(config=config)


@pytest.mark.parametrize("name", sorted(STOCK))
def test_prompts_and_golds_are_stock(name: str, data_root: Path, tmp_path: Path) -> None:
    stock, tasks = _stock(name, data_root, tmp_path), TaskSet([name], data_root=data_root)
    ours = tasks.load()[name]
    assert len(ours.eval_docs) == len(stock.eval_docs) > 0
    for doc_id in range(0, len(stock.eval_docs), max(1, len(stock.eval_docs) // 40)):
        doc = stock.eval_docs[doc_id]
        context = stock.fewshot_context(doc, 0)
        expected = [r.args for r in stock.construct_requests(doc, context, metadata=(name, doc_id, 1))]
        item = tasks.references(ours.task_name, [(doc_id, ours.eval_docs[doc_id])])[0]
        assert list(item.requests) == expected
        scores = [(0.0 if i == item.gold else -1.0, False) for i in range(len(expected))]
        assert stock.process_results(doc, scores)["acc"] == 1.0


@pytest.mark.parametrize("name", [*sorted(STOCK), "qasc", "mmlu"])
def test_every_item_has_its_gold_among_distinct_choices(name: str, data_root: Path) -> None:
    tasks = TaskSet([name], data_root=data_root)
    for task in tasks.load().values():
        for doc in task.eval_docs.select(range(0, len(task.eval_docs), 7)):
            assert 0 <= tasks.gold(task, doc) < len(tasks.choice_texts(task, doc) or [])
            assert tasks.question_text(task, doc).strip()


def test_missing_things_are_said_in_one_line(tmp_path: Path, tiny_root: Path) -> None:
    (tmp_path / "data").mkdir()
    cases = [
        (["arc_easy"], "/nowhere", "no folder '/nowhere'"),
        (["arc_easy"], tmp_path / "dat", "did you mean"),
        (["social_iqa"], tiny_root, "no folder 'social_iqa'"),
        (["arc_easy"], tmp_path / "data", "it has nothing"),
    ]
    for names, root, words in cases:
        with pytest.raises(UserError) as caught:
            TaskSet(names, data_root=root)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_task_that_names_its_files_stands_beside_local_copies(tmp_path: Path, tiny_root: Path) -> None:
    rows, own = tiny_root / "arc_easy" / "test.jsonl", tmp_path / "own.yaml"
    stock = load_yaml(stock_root() / "arc/arc_easy.yaml", resolve_func=True)
    kept = {
        key: stock[key]
        for key in ("output_type", "test_split", "doc_to_text", "doc_to_target", "doc_to_choice")
    }
    files = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}}}
    own.write_text(yaml.safe_dump({"task": "own", **files, **kept}))
    tasks = TaskSet([str(own), "arc_easy"], data_root=tiny_root).load()
    assert len(tasks["own"].eval_docs) == len(tasks["arc_easy"].eval_docs) == 12


def test_an_absent_test_split_is_an_error_and_other_splits_are_not(tmp_path: Path, tiny_root: Path) -> None:
    (tmp_path / "arc_easy").mkdir()
    text = (tiny_root / "arc_easy" / "test.jsonl").read_text()
    (tmp_path / "arc_easy" / "validation.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"lacks test.jsonl.*it has validation.jsonl"):
        TaskSet(["arc_easy"], data_root=tmp_path)
    (tmp_path / "arc_easy" / "test.jsonl").write_text(text)
    task = TaskSet(["arc_easy"], data_root=tmp_path).load()["arc_easy"]
    assert task.config.training_split is None and len(task.eval_docs) == 12


def test_without_hub_and_data_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    def offline(**_: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    tasks = TaskSet(["arc_easy"])
    with pytest.raises(UserError, match=r"no data for task 'arc_easy'.*data.root=DIR") as caught:
        tasks.load()
    assert "\n" not in str(caught.value)


def test_data_hashes_follow_the_documents(tmp_path: Path, tiny_root: Path) -> None:
    before = TaskSet(["copa"], data_root=tiny_root).data_hashes()["copa"]
    assert before == TaskSet(["copa"], data_root=tiny_root).data_hashes()["copa"]
    (tmp_path / "copa").mkdir()
    rows = (tiny_root / "copa" / "validation.jsonl").read_text().replace("rose", "sank")
    (tmp_path / "copa" / "validation.jsonl").write_text(rows)
    assert TaskSet(["copa"], data_root=tmp_path).data_hashes()["copa"] != before
