"""What the documentation says is run: code blocks, commands, links, and the tables made from the code."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from c3po_bench.launch.grid import compose_grid, composer
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "docs" / "_build"))
import hook  # noqa: E402
import tables  # noqa: E402

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "experiments").rglob("*.md")),
]
BLOCK = re.compile(r"(?P<mark><!-- [^\n]+ -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.M | re.S)
PLACEHOLDERS = ("NAME", "...", "COMMIT")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[re.Match[str]]:
    """Fenced blocks of a page; those under `<!-- not run: why -->` are left out."""
    matches = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [
        b for b in matches if b["language"] in languages and not (b["mark"] or "").startswith("<!-- not run")
    ]


def commands() -> list[tuple[str, str]]:
    """(page, command) of every `python -m c3po_bench...` line in a fenced block."""
    listed = []
    for page in PAGES:
        for block in blocks(page, "", "bash", "text", "console", "sh"):
            lines = block["body"].replace("\\\n", " ").splitlines()
            listed += [
                (name(page), line.strip())
                for line in lines
                if re.match(r"(\S+/)?python -m c3po_bench", line.strip())
            ]
    return listed


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)[2:]


COMMANDS = commands()
RUNS = [
    c
    for c in COMMANDS
    if words(c[1])[0] == "c3po_bench" and not any(p in c[1].split("#")[0] for p in PLACEHOLDERS)
]
OTHERS = [c for c in COMMANDS if words(c[1])[0] != "c3po_bench"]


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


def test_there_are_commands_to_check():
    assert len(RUNS) > 20 and len(OTHERS) > 3


@pytest.mark.parametrize(("page", "command"), RUNS, ids=lambda value: value[:60])
def test_commands_compose(page, command):
    """Every key, group, experiment and value type of a documented command is valid."""
    overrides = words(command)[1:]
    if "-m" in overrides:
        assert compose_grid([word for word in overrides if word != "-m"]).cells
        return
    with composer() as loader:
        loader.load_configuration(config_name="config", overrides=overrides, run_mode=_run())


def _run():
    from hydra.types import RunMode

    return RunMode.RUN


@pytest.mark.parametrize(("page", "command"), OTHERS, ids=lambda value: value[:60])
def test_entry_points_and_their_flags_exist(page, command):
    module, *arguments = words(command)
    spec = find_spec(module)
    assert spec and spec.origin, f"{page}: no module {module}"
    source = Path(spec.origin)
    entry = source.with_name("__main__.py") if source.name == "__init__.py" else source
    text = entry.read_text(encoding="utf-8")
    for flag in (word for word in arguments if word.startswith("--")):
        assert f'"{flag}"' in text, f"{page}: {module} has no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_experiments_and_sweeps_exist(page):
    for kind, chosen in re.findall(r"\+(experiment|sweep|task)=([a-z]\w*)", page.read_text(encoding="utf-8")):
        if chosen != "planets":  # the example of docs/how-to/own-task.md
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


def test_the_reference_is_made_from_the_code():
    text = hook.fill((ROOT / "docs" / "reference.md").read_text(encoding="utf-8"))
    assert "<!-- made" not in text
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
