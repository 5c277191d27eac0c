"""What the documentation says is run: code blocks, links, and the tables made from the code."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "docs" / "_build"))
import chart  # noqa: E402
import hook  # noqa: E402
import tables  # noqa: E402

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").rglob("*.md")),
]
BLOCK = re.compile(r"(?P<mark><!-- [^\n]+ -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.M | re.S)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[re.Match[str]]:
    """Fenced blocks of a page; those under `<!-- not run: why -->` are left out."""
    matches = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [
        b for b in matches if b["language"] in languages and not (b["mark"] or "").startswith("<!-- not run")
    ]


@pytest.fixture
def registries():
    """What blocks register is taken out again."""
    from c3po_bench.models.families import FAMILIES
    from c3po_bench.rewiring.arms import ARMS

    before = [(registry, set(registry)) for registry in (FAMILIES, ARMS)]
    yield
    for registry, names in before:
        for added in set(registry) - names:
            registry.remove(added)


def runnable() -> list[Any]:
    """Pages with Python; those that build a checkpoint are slow."""
    pages = []
    for page in PAGES:
        code = "".join(block["body"] for block in blocks(page, "python"))
        slow = pytest.mark.slow if "checkpoint(" in code else ()
        pages += [pytest.param(page, marks=slow)] if code else []
    return pages


@pytest.mark.parametrize("page", runnable(), ids=name)
def test_python_blocks_run(page, registries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {"__name__": "docs"}
    for block in blocks(page, "python"):
        exec(compile(block["body"], name(page), "exec"), space)  # noqa: S102
    assert len(space) > 2, "a block that defines nothing shows nothing"


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "yaml", "json")], ids=name)
def test_yaml_blocks_can_be_read(page):
    for block in blocks(page, "yaml", "json"):
        assert isinstance(yaml.safe_load(block["body"]), dict | list)


def test_the_example_task_loads(tmp_path):
    from c3po_bench.tasks.taskset import TaskSet

    page = ROOT / "docs" / "how-to" / "own-task.md"
    task, item = blocks(page, "yaml")[0]["body"], blocks(page, "json")[0]["body"]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(item, encoding="utf-8")
    path = tmp_path / "planets.yaml"
    path.write_text(task.replace("/data/planets", str(tmp_path)), encoding="utf-8")
    (loaded,) = TaskSet([str(path)]).load().values()
    (doc,) = loaded.eval_docs
    assert loaded.doc_to_choice(doc)[loaded.doc_to_target(doc)] == "Mercury"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_experiments_and_sweeps_exist(page):
    for kind, chosen in re.findall(r"\+(experiment|sweep|task)=([a-z]\w*)", page.read_text(encoding="utf-8")):
        if chosen not in ("planets", "mine"):  # the examples of docs/how-to/own-task.md and own-grid.md
            assert (ROOT / "conf" / kind / f"{chosen}.yaml").is_file(), f"{name(page)}: +{kind}={chosen}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{name(page)} -> {target}"


def test_every_page_is_in_the_nav():
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1]
    missing = [
        p
        for p in PAGES
        if p.is_relative_to(ROOT / "docs") and str(p.relative_to(ROOT / "docs")) not in listed
    ]
    assert not missing


def test_every_key_is_explained():
    unexplained = [key for key, entry, _ in tables.config_keys() if not entry.metadata.get("help")]
    assert not unexplained


@pytest.mark.parametrize("page", [p for p in PAGES if "<!-- made" in p.read_text(encoding="utf-8")], ids=name)
def test_tables_made_from_code_and_results_are_current(page):
    """`make docs-tables` writes them. They stand in the page, for readers of the repository."""
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- made: ") == text.count("<!-- /made -->")
    assert hook.fill(text) == text, f"{name(page)} is not current: run `make docs-tables`"


def test_a_marked_part_is_made_anew():
    old = "before\n<!-- made: kernels -->\nold\n<!-- /made -->\nafter"
    made = hook.fill(old)
    assert "old" not in made and made.startswith("before\n") and made.endswith("\nafter")
    assert hook.fill(made) == made and tables.kernels() in made


def test_the_chart_is_drawn_from_its_table():
    page = chart.PAGE.read_text(encoding="utf-8")
    assert chart.PICTURE.read_text(encoding="utf-8") == chart.draw(page), "run `make docs-tables`"
    assert len(page.splitlines()) <= 150 and chart.PICTURE.name in page
    assert chart.draw(page.replace("| 13.4 to 14.1 |", "| 3 to 4 |")) != chart.draw(page)


def test_findings_are_numbers_of_the_published_studies():
    import findings

    assert findings.gain("smolmoe_arc_surrogates", "oracle") == "+22.0 [18.2, 26.3]"
    with pytest.raises(ValueError, match="recorded with version 1"):
        findings.gain("smolmoe_arc", "random_pathway")
    with pytest.raises(KeyError):
        findings.gain("smolmoe_arc", "ngdd")


def test_what_we_know_is_first_and_short():
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)["nav"]  # noqa: S506
    assert [next(iter(entry.values())) for entry in nav[:2]] == ["index.md", "findings.md"]
    assert len((ROOT / "docs" / "findings.md").read_text(encoding="utf-8").splitlines()) < 80


def test_search_works_from_disk_and_fetches_nothing():
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506
    assert {"search", "offline"} <= {entry for entry in site["plugins"] if isinstance(entry, str)}
    (script,) = site["extra"]["polyfills"]  # else the plugin would fetch one from elsewhere
    assert (ROOT / "docs" / script).is_file() and "iframe-worker" in script


def test_the_reference_is_made_from_the_code():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for key in ("method.neighbors.k", "feedback.lambda_near", "tracking.mode", "scoring.rule"):
        assert f"| `{key}` |" in text
    assert re.search(r"\| `method.neighbors.k` \| [^|]+ \| `3` \| 3 \|", text), (
        "the paper's value has a column of its own"
    )


def test_the_reference_names_every_arm_and_option():
    from c3po_bench.rewiring.arms import ARMS

    text = tables.rewiring_arms()
    assert all(f"`{arm}`" in text for arm in ARMS)
    assert "tokens=" in text


def test_the_readme_lists_the_words_of_the_design():
    """The vocabulary is one table; both documented entry commands are there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make bench" in text and "make test" in text
    assert text.count("<!-- bench -->") == text.count("<!-- /bench -->") == 1
    assert len(text.splitlines()) < 120


def test_key_tables_cover_the_schema():
    from c3po_bench.config import Config

    keys = {key.split(".")[0] for key, _, _ in tables.config_keys()}
    assert keys == {entry.name for entry in fields(Config)}
