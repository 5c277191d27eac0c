"""Names are found without indexing all of lm-eval, and wrong ones are refused with the nearest choice."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex

from c3po_bench.errors import UserError
from c3po_bench.tasks import TaskSet
from c3po_bench.tasks.catalog import STOCK_FOLDERS, Catalog, folder_of, stock_root
from c3po_bench.tasks.references import BIGBENCH, SETS


def test_every_known_name_is_defined_in_its_folder() -> None:
    for name in STOCK_FOLDERS:
        catalog = Catalog()
        assert catalog.expand(name), name
        assert folder_of(name) in catalog.folders


def test_known_tasks_read_only_their_folders(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "c3po_bench.tasks.catalog._stock_yamls", lambda: pytest.fail("searched all of lm-eval")
    )
    tasks = TaskSet(["arc_easy", "mmlu_anatomy"], data_root=tiny_root)
    tasks.load()
    assert len(tasks.manager.all_tasks) < 100
    assert {"arc_easy", "mmlu_anatomy"} <= set(tasks.manager.all_tasks)


def test_no_full_index_even_for_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    build = TaskIndex.build

    def narrow(paths, **options):  # noqa: ANN001, ANN202
        assert stock_root() not in list(paths), "indexed the whole of lm-eval"
        return build(paths, **options)

    monkeypatch.setattr(TaskIndex, "build", staticmethod(narrow))
    with pytest.raises(UserError, match="did you mean 'arc_easy'"):
        TaskSet(["arc_esy"])
    assert list(Catalog().expand("lambada_standard")) == ["lambada_standard"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("arc_esy", "arc_easy"),
        ("mmlu_anatmy", "mmlu_anatomy"),
        ("fact", "facts"),
        ("winogrand", "winogrande"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        Catalog().expand(name)
    assert f"unknown task {name!r}" in str(caught.value) and hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_groups_and_tags_expand_as_lm_eval_does() -> None:
    catalog = Catalog()
    manager = TaskManager(include_defaults=False, include_path=[str(stock_root() / "mmlu/default")])
    subjects = [name for name in manager.all_subtasks if name.startswith("mmlu_")]
    assert sorted(catalog.expand("mmlu")) == sorted(subjects) and len(subjects) == 57
    assert set(catalog.expand("mmlu_stem")) < set(subjects)
    assert sorted(catalog.expand("ai2_arc")) == ["arc_challenge", "arc_easy"]


def test_the_names_of_reference_sets_exist() -> None:
    catalog = Catalog()
    for whole in SETS.values():
        for name in whole.tasks + whole.instead:
            assert name in catalog.expand(name)
    assert len(SETS["bigbench"].tasks) == len(BIGBENCH)


def test_a_task_of_ones_own_is_a_yaml_file(tmp_path: Path, tiny_root: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"include: {stock_root() / 'arc' / 'arc_easy.yaml'}\ntask: mine\n")
    root = tmp_path / "data"
    (root / "mine").mkdir(parents=True)
    (root / "mine" / "test.jsonl").write_text((tiny_root / "arc_easy" / "test.jsonl").read_text())
    tasks = TaskSet([str(path)], data_root=root)
    assert tasks.groups == {str(path): ["mine"]} and len(tasks.load()["mine"].eval_docs) == 12
    with pytest.raises(UserError, match="no task file"):
        TaskSet([str(tmp_path / "absent.yaml")])


def test_loading_is_quiet(
    tiny_root: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        TaskSet(["facts", "copa", "hellaswag"], data_root=tiny_root, num_fewshot=2).load()
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert capfd.readouterr().err == ""
