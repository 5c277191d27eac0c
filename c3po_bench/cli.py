"""The command line: compose, validate, run; errors of the user's in one line with exit status 2.

Importing this loads no torch: `--help` and `--cfg job` answer at once.
"""

from __future__ import annotations

import atexit
import gc
import os
import shlex
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from c3po_bench.config import Config, conf_dir, register
from c3po_bench.errors import UserError, of_the_disk, our_fault
from c3po_bench.explain import explain, refuse_extra_keys, unknown_flag

if TYPE_CHECKING:
    from omegaconf import DictConfig

USER, OURS, INTERRUPTED = 2, 1, 130
HELP = """\
c3po_bench: expert rewiring and verbal feedback for language models, compared fairly.

  python -m c3po_bench +experiment=NAME [key=value ...]         run an experiment, for example
  python -m c3po_bench +experiment=quickstart limit=20
  python -m c3po_bench -m +sweep=NAME [+experiment=NAME ...]    run a sweep

Groups (group=option; +experiment, +sweep and +task with a plus):
{listing}
Every key: python -m c3po_bench --cfg job. More of Hydra: --hydra-help.
Exit status: 0 done, 1 our fault, 2 yours to mend. Interrupt at any time and run the same command again: it goes on.
"""


register()
_refused: list[str] = []


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def experiment(cfg: DictConfig) -> None:
    """One composed experiment: score, compare, print.

    In a single run what the user can mend is kept for `main`, since Hydra would print a line of its own; in a
    sweep it goes through, so that the launcher sees a failed cell.
    """
    from c3po_bench import harness
    from c3po_bench.runtime import signals

    if "SUBMITIT_EXECUTOR" not in os.environ:  # submitit has handlers of its own, which requeue
        signals.listen()
    try:
        config = to_config(cfg)
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            return run_cell(config, HydraConfig.get().job.num)
        runs = harness.run(config)
        if os.environ.get("RANK", "0") == "0":
            show(config, runs)
    except (UserError, OSError) as error:
        line = str(error) if isinstance(error, UserError) else of_the_disk(error)
        if line is None or HydraConfig.get().mode is RunMode.MULTIRUN:
            raise
        _refused.append(line)


def run_cell(config: Config, number: int) -> None:
    """One cell of a sweep; the table comes at the end of the sweep, from `main`."""
    from c3po_bench import harness
    from c3po_bench.launch.cells import watched
    from c3po_bench.launch.folder import folder_of_this_sweep

    if "SUBMITIT_EXECUTOR" in os.environ:  # there the command is submitit's; the run's provenance gives ours
        sys.argv = ["c3po_bench", *HydraConfig.get().overrides.task]
    folder = folder_of_this_sweep()
    if folder is None:
        harness.run(config)
        return
    with watched(folder, number) as runs:
        runs += harness.run(config)


def to_config(cfg: DictConfig) -> Config:
    """The typed config of a composed one.

    Raises:
        UserError: for a key that only `+` or `++` could add.
    """
    refuse_extra_keys(cast("dict[str, Any]", OmegaConf.to_container(cfg)))
    found = OmegaConf.to_object(cfg)
    assert isinstance(found, Config)
    return found


def show(cfg: Config, runs: list[Any]) -> None:
    """The comparison table, the verdict and where the results are."""
    from rich.console import Console

    from c3po_bench.analysis.compare import compare, compare_controls
    from c3po_bench.analysis.measures import share_recovered
    from c3po_bench.analysis.tables import console_table, feedback_table, gap_table
    from c3po_bench.analysis.verdict import verdict
    from c3po_bench.models.planted.truth import distance

    frame = compare(runs)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(console_table(frame))
    if any(run.arm == "planted_optimum" for run in runs):
        console.print(gap_table(share_recovered(runs, distance)))
    if any(frame["scope"]):
        console.print(feedback_table(runs))
    console.print(verdict(frame, compare_controls(runs)), highlight=False, markup=False)
    console.print(f"results: {cfg.results_dir}", highlight=False, markup=False, soft_wrap=True)
    report = f"python -m c3po_bench.report {shlex.quote(cfg.results_dir)}"
    console.print(f"report:  {report}", highlight=False, markup=False, soft_wrap=True)


def main() -> int:
    """Entry point: returns the exit status."""
    if sys.argv[1:] in (["--help"], ["-h"]):
        return show_help()
    atexit.register(
        gc.freeze
    )  # else Python looks for garbage once more, in all that torch and transformers brought: a second
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to here instead of Hydra's own report
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.pop("C3PO_SWEEP_FOLDER", None)  # of a sweep that started this one
    words = sorted(
        sys.argv[1:], key=lambda word: word not in ("-m", "--multirun")
    )  # argparse takes no flag between words
    sys.argv[1:] = [
        f"++{word}" if word.startswith("arm.") else word for word in words
    ]  # options of arms are open keys
    if line := unknown_flag(words):
        return say(line)
    status = guarded()
    if status == 0 and _refused:
        status = say(_refused[0])
    if "C3PO_SWEEP_FOLDER" in os.environ and status != INTERRUPTED and os.environ.get("RANK", "0") == "0":
        from c3po_bench.launch.folder import folder_of_this_sweep
        from c3po_bench.launch.table import show_sweep

        folder = folder_of_this_sweep()
        assert folder is not None
        return status if show_sweep(folder) else status or OURS
    return status


def show_help() -> int:
    """What there is to choose from, read off the folders.

    Hydra's own page composes every group first, which is slow.
    """
    groups = {}
    for folder in sorted(p for p in conf_dir().rglob("*") if p.is_dir()):
        names = sorted(file.stem for file in folder.glob("*.yaml"))
        if names:
            groups[folder.relative_to(conf_dir()).as_posix()] = names
    listing = "".join(f"  {group}: {', '.join(names)}\n" for group, names in groups.items())
    with suppress(BrokenPipeError):
        sys.stdout.write(HELP.format(listing=listing))
    return 0


def guarded() -> int:
    """Run; the exit status, errors said in one line where they are the user's."""
    try:
        experiment()  # pyright: ignore[reportCallIssue]  (Hydra gives it)
    except UserError as error:
        return say(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return say(explain(error))
    except BrokenPipeError:  # the reader of our output has left, as in `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as stopped:
        from c3po_bench.launch import slurm

        if "SIGUSR2" in stopped.args and slurm.requeue():
            sys.stderr.write("time is up: back in the queue, to be continued\n")
        else:
            sys.stderr.write("interrupted: run the same command again to go on where it stopped\n")
        return INTERRUPTED
    except Exception as error:
        if line := of_the_disk(error):
            return say(line)
        if str(error).startswith("Config group override must be"):  # model=null
            return say(f"{error}: python -m c3po_bench --help lists the groups and their options")
        if str(error).startswith("Only one of --run, --multirun, --cfg"):  # Hydra's own check of its flags
            return say("--cfg and --info show one composed config: leave out -m")
        if type(error).__module__.startswith(
            "submitit"
        ):  # a cell's failure, which is in its log and its state
            return OURS
        traceback.print_exc()
        sys.stderr.write(our_fault(error))
        return OURS
    return 0


def say(message: str) -> int:
    """One line on standard error."""
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")
    return USER
