"""Every command line of the documentation is composed or parsed as the program itself does it; some are run."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hydra.types import RunMode

from c3po_bench.explain import hydra_overrides
from c3po_bench.launch.grid import compose_grid, composer
from tests import store_factory as factory
from tests.conftest import ROOT
from tests.docs.test_docs import BLOCK, PAGES, blocks, name

LINE = re.compile(
    r"^(?:[A-Z_]+=\S+ )*(?:\S*/)?(?:python3?|torchrun(?: --\S+(?: \d+)?)*|c3po-bench)(?: -m)? (c3po_bench\S*) ?(.*)$"
)
SPAN = re.compile(r"`(python -m c3po_bench[^\s`]* [^`]*)`")  # without arguments it names the module
WITHOUT_PARSER = ("c3po_bench.models.makers.planted",)  # reads two words itself, and starts to train
FILLED = (  # what stands for something is given an example of it
    (r"\\\|", "|"),
    (r"\[key=value \.\.\.\]|(?<=\S) \.\.\.(?= |$)", ""),
    (r"\[(--[^]|]+)(?:\|[^]]*)?\]", r"\1"),
    (r"\[:ARM\]", ":ngd"),
    (r"experiment=NAME", "experiment=quickstart"),
    (r"sweep=(?:NAME|\.\.\.)", "sweep=neighbors"),
    (r"model=NAME", "model=olmoe"),
    (r"perf NAME", "perf suffix"),
    (r"--discordance D\b", "--discordance 0.1"),
    (r"--items N\b", "--items 400"),
    (r"--gain G\b", "--gain 0.05"),
    (r"=COMMIT", "=" + 40 * "a"),
    (r"\[(?:ARM=VERSION|--stamp) .*?\]", ""),
)


def filled(command: str) -> str:
    """A command with an example for each placeholder of the grammar; names of folders stay as they are."""
    for pattern, example in FILLED:
        command = re.sub(pattern, example, command)
    return " ".join(command.split("  #")[0].split())


def commands() -> dict[str, str]:
    """Command -> the first page that has it, of all blocks and of all spans that are whole commands."""
    listed: dict[str, str] = {}
    for page in PAGES:
        lines = [
            line.strip()
            for block in blocks(page, "", "bash", "text", "console", "sh")
            for line in block["body"].replace("\\\n", " ").splitlines()
        ]
        lines += SPAN.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))
        for line in lines:
            if LINE.match(command := filled(line)):
                listed.setdefault(command, name(page))
    return listed


COMMANDS = commands()


def words(command: str) -> list[str]:
    """Module and arguments."""
    match = LINE.match(command)
    assert match
    return [match[1], *shlex.split(match[2], comments=True)]


def of(*modules: str) -> list[str]:
    return [command for command in COMMANDS if words(command)[0] in modules]


class Parsed(Exception):
    """The arguments were read; nothing is done with them."""


@pytest.fixture
def parse(monkeypatch):
    """Reads arguments by the entry point's own parser, and stops there."""
    real = argparse.ArgumentParser.parse_args

    def stop(self, *args, **kwargs):
        raise Parsed(vars(real(self, *args, **kwargs)))

    def parsed(command: str) -> dict:
        module, *arguments = words(command)
        package = import_module(module)
        entry = import_module(f"{module}.__main__") if hasattr(package, "__path__") else package
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Parsed) as options:
            entry.main()
        return options.value.args[0]

    return parsed


def compose(overrides: list[str], mode: RunMode = RunMode.RUN) -> None:
    """Every key, group, experiment and value type is valid."""
    overrides = [
        word for word in overrides if word not in ("-m", "--multirun", "--help", "--cfg", "job", "-h")
    ]
    with composer() as loader:
        loader.load_configuration("config", hydra_overrides(overrides), run_mode=mode)


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 110
    for module in [
        "ask",
        "compare",
        "doctor",
        "export",
        "headroom",
        "power",
        "publish",
        "report",
        "sweep",
        "verify",
        "perf",
    ]:
        assert of(f"c3po_bench.{module}"), module
    assert filled("python -m c3po_bench.power --discordance D [--items N] [--json]") == (
        "python -m c3po_bench.power --discordance 0.1 --items 400 --json"
    )


@pytest.fixture(scope="module")
def own_conf(tmp_path_factory) -> Path:
    """CONF_DIR of docs/how-to/own-grid.md, with the file that stands there."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "sweep").mkdir()
    (sweep,) = blocks(ROOT / "docs" / "how-to" / "own-grid.md", "yaml")
    (folder / "sweep" / "mine.yaml").write_text(sweep["body"], encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", of("c3po_bench"), ids=lambda value: value[12:80])
def test_experiments_and_sweeps_compose(command, own_conf):
    overrides = [word.replace("file://CONF_DIR", f"file://{own_conf}") for word in words(command)[1:]]
    if "-m" in overrides:
        assert compose_grid([word for word in overrides if word != "-m"]).cells
    else:
        compose(overrides)


OTHERS = [
    pytest.param(command, marks=pytest.mark.slow if ".models." in command else ())  # those import much
    for command in COMMANDS
    if words(command)[0] != "c3po_bench"
]


@pytest.mark.parametrize("command", OTHERS, ids=lambda value: value[20:90])
def test_other_commands_parse(command, parse):
    module, *arguments = words(command)
    if alternatives := [word for word in arguments if "|" in word]:  # a list of commands, not a command
        (chosen,) = alternatives
        for one in chosen.split("|"):
            with pytest.raises(SystemExit) as left:
                import_module(module).main([one, "--help"])
            assert left.value.code == 0
        return
    if module in WITHOUT_PARSER:
        assert callable(import_module(module).main)
        return
    if arguments[-1:] == ["-h"]:
        with pytest.raises(SystemExit) as left:
            parse(command)
        assert left.value.code == 0
        return
    options = parse(command)
    if "plan_command" in str(options.get("run")):
        assert compose_grid(options["overrides"]).cells
    elif "submit_command" in str(options.get("run")):  # the same sweep's cells are composed above
        compose(options["overrides"], RunMode.MULTIRUN)
    elif module.endswith((".ask", ".headroom")):
        compose([word for word in options["words"] if re.match(r"\+?[\w./]+=\S+$", word)])


def test_a_wrong_command_is_noticed(parse):
    with pytest.raises(SystemExit):
        parse("python -m c3po_bench.report outputs/quickstart --papers")
    with pytest.raises(Exception, match="experiment"):
        compose(["+experiment=quickstar"])


STORES = ("outputs/quickstart", "outputs/feedback_quick", "outputs/landlord", "outputs/grid")
LIGHT = ("--table", "--to ", "compare", "power")  # draw no figures


def views() -> list:
    """Commands that read a store, each once whatever the store; those that draw figures are slow."""
    chosen: dict[str, Any] = {}
    for command in of("c3po_bench.report", "c3po_bench.compare", "c3po_bench.power"):
        if any(store in command for store in STORES) or "--discordance" in command:
            module, *arguments = words(command)
            for store in STORES[1:]:
                arguments = [word.replace(store, STORES[0]) for word in arguments]
            heavy = not any(sign in command for sign in LIGHT)
            chosen.setdefault(
                " ".join([module, *arguments]),
                pytest.param(module, arguments, marks=pytest.mark.slow if heavy else ()),
            )
    return list(chosen.values())


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with the store that commands name."""
    root = tmp_path_factory.mktemp("here")
    factory.rewiring_store(root / STORES[0], items=8, tasks=("facts_cities", "facts_foods"))
    return root


@pytest.mark.parametrize(("module", "arguments"), views(), ids=lambda value: str(value)[-60:])
def test_views_of_a_store_run(module, arguments, here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    package = import_module(module)
    entry = import_module(f"{module}.__main__") if hasattr(package, "__path__") else package
    assert entry.main(arguments) in (0, None)
    assert capsys.readouterr().out
