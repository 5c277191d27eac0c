"""The command line: strict, one line for what the user can mend, light to import."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from c3po_bench import cli
from c3po_bench.cli import to_config
from c3po_bench.config import KEYS, Config, conf_dir
from c3po_bench.errors import UserError
from c3po_bench.explain import hydra_overrides
from c3po_bench.launch.grid import compose_grid
from c3po_bench.launch.sweep_folder import find_sweeps
from c3po_bench.runtime.console import log_to

MENDABLE = {
    "+experiment=olmoe_ark": "olmoe_arc",
    "k=abc": "method.neighbors.k",
    "method.neighbors.k=abc": "Integer",
    "model=smolmo": "smolmoe",
    "+limt=5": "'limit'",
    "--experiment=quickstart": "write experiment=quickstart",
    "experiment=olmoe_ark": "olmoe_arc",
    "sweep=layers": "sweep=layers is now sweep=layer_table",
    "arm.ngd.steps=3": "arm is now arm_options",
    "+arm.ngd.steps=3": "arm is now arm_options",
    "feedback.train.warmup=1": "feedback.train.warmup is now feedback.train.warmup_ratio",
    "feedback.train.accumulation=1": "feedback.train.accumulation is now feedback.train.gradient_accumulation_steps",
    "feedback.train.constraint_batch=1": "feedback.train.constraint_batch is now feedback.train.constraint_batch_size",
    "feedback.train.batch=8": "feedback.train.batch is now feedback.train.batch_size",
    "feedback.answers.batch=8": "feedback.answers.batch is now feedback.answers.batch_size",
    "sweep=mass": "sweep=mass is now sweep=total_weight",
    "method.preserve_total_weight=x": "not a valid bool",
    "method.mass=preserved": "method.mass is now method.preserve_total_weight (false for model, true for preserved)",
    "model.experts=eager": "model.experts is now model.experts_implementation",
    "bank_gb=4": "bank_gb is now reference_cache_gb",
    "--limit 5": "--limit: write limit=5",
    "--results-dir=x": "write results_dir=x",
    "--lmit": "'limit'",
    "seed=null": "seed=null: must have a value",
    "model=null": "--help",
    "arm_options.ngd=3": "arm_options.ngd=3: Cannot assign int",
    "results_dir=~/x": "'results_dir=\"~/x\"'",
    "quickstart": "'quickstart' is no key=value",
    "++method.stps=3": "'method.steps'",
    "method.layer=3": "method.layers",
    "embedder=minlm": "minilm",
    "arms=base": "arms=[base]",
    "arms=base,ngd": "arms=[base,ngd]",
    "method.layers=3,5": "'method.layers=\"3,5\"'",
    "arm_options.kernel_regression.points=3,5": "'arm_options.kernel_regression.points=\"3,5\"'",
}


def option_names(group: str) -> list[str]:
    return sorted(p.stem for p in (conf_dir() / group).glob("[!_]*.yaml"))


@pytest.mark.parametrize("override", MENDABLE)
def test_a_wrong_config_is_one_line_with_the_nearest_choice(warm, override):
    done = warm(*override.split())
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert MENDABLE[override] in lines[0]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("arms=[ngdd]", "'ngd'"),
        ("data.root=/nowhere", "/nowhere"),
        ("tasks=[fact]", "'facts'"),
        ("method.layers=lost:5", "last:5"),
        ("engine=sufix", "'suffix'"),
        ("+arm_options.kernel_regression.alfa=1", "'alpha'"),
        ("arm_options.kernel_regression.alfa=1", "'alpha'"),
        ("shard=3", "i/n"),
        ("limit=0", "limit=0"),
        ("threads=100000", "at most 1024"),
        ("batch_size=-3", "batch_size=-3"),
        ("method.neighbors.k=0", "at least 1"),
        ("method.learning_rate=nan", "method.learning_rate=nan"),
        ("method.experts=tp:20", "top:20"),
        ("name=../../x", "not a path"),
        ("name=..", "not a path"),
        ("seed=4294967296", "2**32"),
        ("plugins=[.x]", "'.x' can't be imported (TypeError"),
        ("tracking.mode=onlne", "'online'"),
        ("model.device=foo", "model.device=foo"),
        ("method.kernel.name=gausian", "'gaussian'"),
        ("method.kernel.bandwidth=-1", "median"),
        ("references.tasks=[fact]", "'facts'"),
        ("arms=[knn_vote] arm_options.knn_vote.k=0", "arm_options.knn_vote.k=0"),
    ],
)
def test_a_wrong_value_is_one_line_with_the_nearest_choice(warm, tiny, tmp_path, override, expected):
    done = warm(*tiny, f"results_dir={tmp_path}", "log_level=error", *override.split())
    assert done.returncode == 2, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and expected in line
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*")), "something was scored before"


@pytest.mark.parametrize(
    ("words", "expected"), [(["+limt=5"], "'limit'"), (["+experiment=planted", "engine=sufix"], "'suffix'")]
)
def test_a_process_of_its_own_says_that_one_line_alone(c3po, words, expected):
    done = c3po(*words)
    assert done.returncode == 2 and done.stdout == "" and expected in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "phrase"), [("ENOSPC", "make room"), ("EROFS", "results_dir"), ("ENAMETOOLONG", "name")]
)
@pytest.mark.parametrize("entry", ["cli", "sweep"])
def test_a_disk_that_takes_nothing_more_is_one_line(entry, number, phrase, tmp_path):
    code = (
        "import errno, os, sys\n"
        "from c3po_bench import cli, sweep\nfrom c3po_bench.evaluate import run as evaluate\n"
        f"error = OSError(errno.{number}, os.strerror(errno.{number}))\n"
        "def refuse(*_): raise error\n"
        "evaluate.run = sweep.find_sweeps = refuse\n"
        f"sys.argv = ['c3po_bench', '+experiment=quickstart', 'results_dir={tmp_path}']\n"
        f"sys.exit(cli.main() if {entry == 'cli'} else sweep.main(['status', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    lines = done.stderr.strip().splitlines()
    assert (
        done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ") and phrase in lines[0]
    ), done.stderr


def test_an_interrupt_while_it_starts_is_one_line():
    code = (
        "import runpy, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'c3po_bench.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "runpy.run_module('c3po_bench', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130 and done.stderr.startswith("interrupted: ") and done.stderr.count("\n") == 1


def test_a_fault_of_ours_ends_with_its_traceback_and_the_run_to_attach(tmp_path, monkeypatch, capsys):
    """The log of the run has the traceback, too; an error of the user's is one line, and neither."""

    ours: dict = {}  # a function in a file of ours: an error of another file is a plugin's or a task's
    exec(compile("def fail(error):\n    raise error", cli.__file__, "exec"), ours)

    def fails(error):
        def experiment():
            with log_to(tmp_path / "ngd-1" / "log.txt"):
                ours["fail"](error)

        monkeypatch.setattr(cli, "experiment", experiment)
        return (
            cli.guarded(),
            capsys.readouterr().err,
            (tmp_path / "ngd-1" / "log.txt").read_text(encoding="utf-8"),
        )

    assert fails(UserError("no such thing")) == (2, "error: no such thing\n", "")
    status, stderr, log = fails(ZeroDivisionError("oops"))
    assert status == 1 and stderr.startswith("Traceback") and "ZeroDivisionError: oops" in stderr
    assert stderr.endswith(f"please report it with the traceback above; attach {tmp_path / 'ngd-1'}\n")
    assert "ZeroDivisionError: oops" in log


def test_showing_the_config_of_many_runs_is_refused(warm):
    done = warm("+sweep=lr", "-m", "model=smollm", "--cfg", "job")  # flags may stand anywhere
    assert (
        done.returncode == 2
        and done.stderr.strip() == "error: --cfg and --info show one composed config: leave out -m"
    )


def test_olmoe_without_a_hub_says_the_way_out(c3po, data_root, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = c3po(
        "+experiment=olmoe_arc", f"data.root={data_root}", f"results_dir={tmp_path}", "tracking=disabled"
    )
    assert done.returncode == 2
    assert "model=smolmoe" in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("word", ["--help", "k=3", "++method.stps=3", "experiment=planed"])
def test_help_and_a_wrong_word_load_nothing_heavy(word):
    code = (
        f"import sys; sys.argv = ['c3po_bench', '{word}']\n"
        "from c3po_bench.__main__ import main\n"
        f"assert main() == {0 if word == '--help' else 2}\n"
        f"heavy = {{'torch', 'transformers', 'lm_eval', 'pandas', 'numpy', 'wandb'}}\n"
        f"heavy |= {{'hydra'}} if {word == '--help'} else set()\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_scoring_feedback_loads_no_trainer():
    code = "import sys, c3po_bench.feedback.responder; print(sorted({'trl', 'peft'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_a_choice_needs_no_plus_and_keeps_its_place():
    words = [
        "limit=3",
        "task=arc",
        "+experiment=planted",
        "arm_options.ngd.k=2",
        "model=tiny",
        "tasks=[x]",
        "sweep=lr",
    ]
    assert hydra_overrides(words) == [
        "limit=3",
        "+task=arc",
        "+experiment=planted",
        "++arm_options.ngd.k=2",
        "model=tiny",
        "tasks=[x]",
        "+sweep=lr",
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=planted", "limit=7"],
        ["task=arc", "experiment=planted"],
        ["experiment=planted", "task=arc"],
    ],
)
def test_with_and_without_a_plus_one_config_is_composed(warm, words):
    """Whatever the order: the later choice wins in both forms."""
    plain, added = (warm(*form, "--cfg", "job") for form in (words, hydra_overrides(words)))
    assert plain.returncode == 0 and plain.stdout == added.stdout


def test_with_and_without_a_plus_one_sweep_is_frozen():
    words = ["sweep=neighbors", "experiment=planted", "task=facts"]
    plain, added = compose_grid(words), compose_grid(hydra_overrides(words))
    assert plain.folder_name == added.folder_name and plain.name == "neighbors"
    assert [cell.overrides for cell in plain.cells] == [cell.overrides for cell in added.cells]


@pytest.mark.parametrize("launcher", ["basic", pytest.param("submitit_local", marks=pytest.mark.slow)])
def test_a_sweep_runs_without_a_plus_here_and_in_submitted_jobs(c3po, warm, tiny, tmp_path, launcher):
    """Its cells are those that `+sweep=NAME +experiment=NAME` freezes, and their jobs read the same words again."""
    arguments = [*tiny, "limit=1", "arms=[base]", "method.neighbors.k=1,2", f"results_dir={tmp_path}"]
    words = ["sweep=neighbors", *(word.removeprefix("+") for word in arguments)]
    command = warm if launcher == "basic" else c3po
    done = command("-m", *words, f"hydra/launcher={launcher}", "log_level=error")
    assert done.returncode == 0, done.stderr
    (sweep,) = find_sweeps(tmp_path)
    frozen = compose_grid([*hydra_overrides(words), "log_level=error"])
    assert sweep.path.name == frozen.folder_name
    assert [(sweep.state(cell.number) or {})["status"] for cell in frozen.cells] == ["done", "done"]


@pytest.mark.parametrize("group", ["backend", "model", "method", "embedder", "tracking", "task"])
def test_every_option_of_every_group_composes(group):
    names = option_names(group)
    assert names
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for name in names:
            override = f"+{group}={name}" if group == "task" else f"{group}={name}"
            assert isinstance(to_config(compose("config", [override])), Config)


@pytest.mark.parametrize("group", ["backend", "model", "method", "embedder", "feedback", "tracking"])
def test_no_option_repeats_a_default_of_the_schema(group):
    """Two places for one default would come to disagree."""
    schema = OmegaConf.to_container(OmegaConf.structured(Config), resolve=False)
    assert isinstance(schema, dict)

    def repeated(options, defaults, path):
        for key, value in options.items():
            if isinstance(value, dict) and defaults[key]:  # an empty one is a table of the option's own
                yield from repeated(value, defaults[key], f"{path}.{key}")
            elif value == defaults[key]:
                yield f"{path}.{key}"

    for name in option_names(group):
        options = OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{name}.yaml"))
        assert not list(repeated(options, schema[group], group)), name


def test_every_experiment_composes_and_shows_its_command():
    names = option_names("experiment")
    assert {"quickstart", "smolmoe_arc", "olmoe_arc"} <= set(names)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for name in names:
            text = (conf_dir() / "experiment" / f"{name}.yaml").read_text()
            assert f"python -m c3po_bench +experiment={name}" in text.split("defaults:")[0]
            cfg = to_config(compose("config", [f"+experiment={name}"]))
            assert cfg.name == name and cfg.tasks and cfg.arms[0] == "base"


def test_every_key_is_described():
    from dataclasses import fields, is_dataclass

    def walk(cls, prefix=""):
        for field in fields(cls):
            nested = field.default_factory() if callable(field.default_factory) else None  # type: ignore[misc]
            if is_dataclass(nested):
                yield from walk(type(nested), f"{prefix}{field.name}.")
            elif not field.metadata.get("help"):
                yield prefix + field.name

    assert list(walk(Config)) == []
    assert len(KEYS) > 60
