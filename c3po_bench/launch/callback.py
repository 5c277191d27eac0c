"""What happens around a Hydra multirun: check the launcher, freeze the cells, and let jobs find them.

Named in conf/config.yaml under `hydra.callbacks`. Hydra turns a callback's exceptions into warnings, so a
refusal leaves through `SystemExit`.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from c3po_bench.errors import UserError, refuse
from c3po_bench.launch import slurm
from c3po_bench.launch.grid import expand, is_grid
from c3po_bench.launch.sweep_folder import SweepFolder, freeze

FOLDER_VARIABLE = "C3PO_SWEEP_FOLDER"
"""Names the folder to the jobs of a sweep, wherever they run: there they write down how they are."""
PLUGINS = {
    "hydra_submitit_launcher": "hydra-submitit-launcher",
    "hydra_joblib_launcher": "hydra-joblib-launcher",
}


class Sweep(Callback):
    """Freezes a multirun's cells into the sweep's folder before the first of them starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse in one line what can't work; else freeze the cells and make imports resolve in the jobs."""
        target = str(config.hydra.launcher.get("_target_", ""))
        try:
            check_launcher(target)
            if not is_grid(config):
                return
            folder = freeze(expand(GlobalHydra.instance().config_loader(), config))
        except UserError as error:
            raise SystemExit(refuse(str(error))) from error
        folder.note_job(launcher=target.rpartition(".")[2])
        os.environ[FOLDER_VARIABLE] = str(folder.path.resolve())
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))


def check_launcher(target: str) -> None:
    """Raise `UserError` for a launcher whose plugin, or whose Slurm, is missing."""
    for module, package in PLUGINS.items():
        if module in target and importlib.util.find_spec(f"hydra_plugins.{module}") is None:
            raise UserError(
                f"this launcher needs {package}: pip install 'c3po-bench[slurm]' (or pip install {package})"
            )
    if target.endswith("SlurmLauncher"):
        slurm.require_cluster()
        if not slurm.has_accounting():
            slurm.let_submitit_ask_the_queue()


def folder_of_this_sweep() -> SweepFolder | None:
    """The folder of the sweep that this process is, or is a cell of."""
    path = os.environ.get(FOLDER_VARIABLE)
    return SweepFolder(Path(path)) if path else None
