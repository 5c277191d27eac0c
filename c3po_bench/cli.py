"""The command line: compose, validate, run; errors of the user's in one line with exit status 2.

Importing this loads no torch: `--cfg job` and a wrong key are answered at once.
"""

import atexit
import gc
import io
import os
import sys
from contextlib import nullcontext, redirect_stdout
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from c3po_bench.config import Config, conf_dir, register
from c3po_bench.errors import INTERRUPTED, OURS, UserError, foreign_place, refuse
from c3po_bench.evaluate.budget import SweepPlace
from c3po_bench.explain import explain, hydra_overrides, refuse_extra_keys, status_of, unknown_flag
from c3po_bench.launch import slurm
from c3po_bench.launch.callback import FOLDER_VARIABLE, folder_of_this_sweep
from c3po_bench.launch.cells import place_of, watched
from c3po_bench.masking import masked
from c3po_bench.models.embedded.planted_world import distance
from c3po_bench.runtime import ranks, signals
from c3po_bench.runtime.console import quiet_libraries
from c3po_bench.store.reader import Run

register()
_refused: list[str] = []


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def experiment(cfg: DictConfig) -> None:
    """One composed experiment: score, compare, print.

    In a single run what the user can mend is kept for `main`, since Hydra would print a line of its own; in a
    sweep it goes through, so that the launcher sees a failed cell.
    """
    job = HydraConfig.get()
    os.chdir(job.runtime.cwd)  # with hydra.job.chdir, too, a relative path means where the command was given
    if "SUBMITIT_EXECUTOR" not in os.environ:  # submitit has handlers of its own, which requeue
        signals.listen()
    try:
        config = to_config(cfg)
        if job.mode is RunMode.MULTIRUN:
            run_cell(config, job.job.num)
        else:
            show(config, run(config))
    except (UserError, OSError) as error:
        line = explain(error)
        if line is None or job.mode is RunMode.MULTIRUN:
            raise
        _refused.append(line)


def run(config: Config, place: SweepPlace | None = None) -> list[Run]:
    """Score the arms of an experiment, or of a cell at its place in a sweep; comes with torch and lm-eval."""
    from c3po_bench.evaluate.run import run as evaluate

    return evaluate(config, place)


def run_cell(config: Config, number: int) -> None:
    """One cell of a sweep; the table comes at the end of the sweep, from `main`."""
    if "SUBMITIT_EXECUTOR" in os.environ:  # there the command is submitit's; the run's provenance gives ours
        sys.argv = ["c3po_bench", *HydraConfig.get().overrides.task]
    if (folder := folder_of_this_sweep()) is None:
        run(config)
        return
    with watched(folder, number) as runs:
        runs += run(config, place_of(folder, number))


def to_config(cfg: DictConfig) -> Config:
    """The typed config of a composed one.

    Raises:
        UserError: for a key that only `+` or `++` could add.
    """
    refuse_extra_keys(cast("dict[str, Any]", OmegaConf.to_container(cfg)))
    return cast("Config", OmegaConf.to_object(cfg))


def show(cfg: Config, runs: list[Run]) -> None:
    """Print the comparison table, the verdict and where the results are; of several ranks, on the first."""
    if ranks.rank() > 0:
        return
    from c3po_bench.analysis.tables import show_comparison  # pandas and scipy

    show_comparison(runs, cfg.results_dir, distance)


def main() -> int:
    """Entry point, all but `--help`: returns the exit status."""
    # else Python looks for garbage once more, in all that torch and transformers brought: a second
    atexit.register(gc.freeze)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to here instead of Hydra's own report
    quiet_libraries()
    os.environ.pop(FOLDER_VARIABLE, None)  # of a sweep that started this one
    flags_first = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))  # as argparse wants
    if line := unknown_flag(flags_first):
        return refuse(line)
    sys.argv[1:] = hydra_overrides(flags_first)
    status = guarded()
    if status == 0 and _refused:
        status = refuse(_refused[0])
    folder = folder_of_this_sweep()
    if folder is None or status == INTERRUPTED or ranks.rank() > 0:
        return status
    from c3po_bench.launch.table import show_sweep  # pandas

    return status if show_sweep(folder) else status or OURS


def guarded() -> int:
    """Run; returns the exit status, after a line on standard error for what ended the run early."""
    shows_config = any(word.partition("=")[0] in ("--cfg", "-c", "--info", "-i") for word in sys.argv[1:])
    shown = io.StringIO()
    try:
        with redirect_stdout(shown) if shows_config else nullcontext():
            experiment()  # pyright: ignore[reportCallIssue]  (Hydra gives it)
        sys.stdout.write(masked(shown.getvalue()))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left, as in `... --cfg job | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as stopped:
        if "SIGUSR2" in stopped.args and slurm.requeue():
            sys.stderr.write("time is up: back in the queue, to be continued\n")
        else:
            sys.stderr.write("interrupted: run the same command again to go on where it stopped\n")
        return INTERRUPTED
    except SystemExit as error:
        if foreign_place(error) is None:  # Hydra's own, after `--help`
            raise
        return status_of(error)
    except Exception as error:
        return status_of(error)
    return 0
