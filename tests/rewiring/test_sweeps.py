"""Every sweep composes with every rewiring experiment, and every value that one of them tries runs on the tiny model."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from c3po_bench.config import conf_dir, register
from c3po_bench.evaluate.run import run
from c3po_bench.rewiring import arms
from c3po_bench.rewiring.pathway import check_method, critical_layers

CONF = Path(conf_dir())
SWEEPS = sorted(p.stem for p in (CONF / "sweep").glob("[!_]*.yaml") if "feedback" not in p.stem)
EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("*.yaml") if "feedback" not in p.stem)
LONG = (
    "layer_table",
    "seeds",
    "reference_size",
    "optimizer",
    "scoring",
    "bandwidth",
    "neighborhood",
    "lr",
)
"""Sweeps of many cells whose values are tried by other tests too."""
TINY = [
    "model=tiny",
    "embedder=hidden_states",
    "tracking=disabled",
    "tasks=[facts_capitals]",
    "references.tasks=[facts_capitals]",
    "references.limit=16",
    "limit=1",
    "log_level=error",
    "method.layers=last:2",
    "method.steps=2",
    "method.neighbors.max_similarity=0.9999",
]


@pytest.fixture(scope="module", autouse=True)
def hydra_config():
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@cache
def composed(*overrides: str) -> tuple[Any, dict[str, Any], str]:
    """The typed config, the sweep's parameters and the mode. Callers change a copy."""
    cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    params = dict(cfg.hydra.sweeper.params or {})
    mode = str(cfg.hydra.mode)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return OmegaConf.to_object(cfg), params, mode


def values(params: dict[str, object]) -> dict[str, list[str]]:
    return {key: str(choices).split(",") for key, choices in params.items()}


def check_composition(sweep: str, experiments: list[str]) -> None:
    alone, params, mode = composed(f"+sweep={sweep}")
    if alone.backend.name != "rewiring":
        pytest.skip("a sweep of the other backend")
    assert (
        mode.endswith("MULTIRUN")
        and params
        and alone.tasks
        and alone.arms[0] == "base"
        and alone.name == sweep
    )
    for experiment in experiments:
        cfg, with_experiment, _ = composed(f"+sweep={sweep}", f"+experiment={experiment}")
        if cfg.backend.name != "rewiring":
            continue
        assert cfg.name == experiment and with_experiment == params, (
            "the experiment brings its arms, the sweep its grid"
        )
        only = composed(f"+experiment={experiment}")[0]
        assert cfg.arms == only.arms and cfg.tasks == only.tasks and cfg.model == only.model
        assert cfg.limit == only.limit and cfg.references == only.references, (
            "nothing of the quick sweep is left"
        )


@pytest.mark.parametrize("number", range(len(SWEEPS)))
def test_sweeps_compose_with_experiments(number):
    """Each sweep with three experiments, in turn; every pair under `-m slow`."""
    check_composition(SWEEPS[number], [EXPERIMENTS[(number + k * 3) % len(EXPERIMENTS)] for k in range(3)])


@pytest.mark.slow
@pytest.mark.parametrize("sweep", SWEEPS)
def test_sweeps_compose_with_every_experiment(sweep):
    check_composition(sweep, EXPERIMENTS)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_first_and_last_cells_are_valid_and_differ(sweep):
    alone, params, _ = composed(f"+sweep={sweep}")
    if alone.backend.name != "rewiring":
        pytest.skip("a sweep of the other backend")
    grid = list(product(*values(params).values()))
    assert len(set(grid)) == len(grid) > 1
    found = []
    for cell in (grid[0], grid[-1]):
        cfg, _, _ = composed(
            f"+sweep={sweep}", *(f"{key}={value}" for key, value in zip(params, cell, strict=True))
        )
        check_method(cfg.method)
        arms.check_arms(cfg)
        critical_layers(cfg.method.layers, list(range(30)))
        found.append(cfg)
    assert found[0] != found[1]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_are_valid_and_say_what_they_are(experiment):
    cfg = composed(f"+experiment={experiment}")[0]
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert text[0] == "# @package _global_" and text[1].startswith(
        f"# python -m c3po_bench +experiment={experiment}"
    )
    assert cfg.name == experiment
    if cfg.backend.name == "rewiring":
        check_method(cfg.method)
        arms.check_arms(cfg)
        if "ngd" in cfg.arms and experiment not in ("quickstart",):
            controls = {"ngd_random_neighbors", "ngd_shuffled_labels", "random_pathway"}
            assert controls <= set(cfg.arms), "the controls are on by default"


@pytest.mark.parametrize(
    "sweep", [s if s not in LONG else pytest.param(s, marks=pytest.mark.slow) for s in SWEEPS]
)
def test_each_value_runs_on_the_tiny_model(sweep, tmp_path_factory):
    """One run for each value of each axis, the others at their first; base is computed once for the whole file."""
    alone, params, _ = composed(f"+sweep={sweep}")
    if alone.backend.name != "rewiring":
        pytest.skip("a sweep of the other backend")
    store = tmp_path_factory.getbasetemp() / "sweeps"
    scale = {
        "method.steps": lambda v: str(min(int(v), 4)),
        "references.limit": lambda v: str(min(int(v), 16)),
    }
    first = {key: found[0] for key, found in values(params).items()}
    cells = [first | {key: value} for key, found in values(params).items() for value in found]
    for cell in {tuple(c.items()) for c in cells}:
        overrides = [f"{key}={scale.get(key, str)(value)}" for key, value in cell]
        layers = [o for o in overrides if o.startswith("method.layers=")]
        cfg = deepcopy(composed(f"+sweep={sweep}", *TINY, *overrides, f"results_dir={store}")[0])
        if layers:
            cfg.method.layers = layers[0].partition("=")[2].replace(":3", ":2")  # five layers in all
        cfg.references.only_correct = False
        cfg.arms = ["base", cfg.arms[1] if "ngd" not in cfg.arms or sweep in ("kernels", "search") else "ngd"]
        runs = run(cfg)
        assert [r.arm for r in runs] == cfg.arms
        for result in (r.result for r in runs):
            assert result["metrics"]["facts_capitals"]["n"] == 1


def test_every_arm_of_every_experiment_has_run_here():
    """No arm that an experiment names is missing from the tests that run arms."""
    tested = set(arms.ARMS)
    for experiment in EXPERIMENTS:
        cfg = composed(f"+experiment={experiment}")[0]
        if cfg.backend.name == "rewiring" and not cfg.plugins:
            assert set(cfg.arms) <= tested | {"planted_optimum", "right_expert"}
