"""`python -m c3po_bench.publish RESULTS_DIR`.

W&B runs, tables and dashboard from a store, any number of times.
"""

import argparse
import os
import sys

from c3po_bench.errors import UserError, exit_status
from c3po_bench.masking import masked
from c3po_bench.store.reader import load_runs
from c3po_bench.tracking import TrackingConfig

MANY_RUNS = 50  # in a larger store the end of each run leaves the cross-run tables to this command


def main(argv: list[str] | None = None) -> int:
    """Publish and say what was done; 2 where the user can mend what is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m c3po_bench.publish",
        description="Create or complete the W&B runs, tables and dashboard of a store of results.",
    )
    parser.add_argument("results_dir", help="the folder an experiment or a sweep wrote its results to")
    parser.add_argument(
        "--mode", choices=["online", "offline"], default=None, help="default: WANDB_MODE, else online"
    )
    parser.add_argument("--project", default="c3po-bench")
    parser.add_argument("--entity", default=None, help="W&B user or team (default: your own)")
    parser.add_argument("--at-end-of-run", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    try:
        return exit_status(lambda: sys.stdout.write(_publish(arguments) + "\n"))
    except Exception as error:
        if not arguments.at_end_of_run and not type(error).__module__.startswith("wandb"):
            raise
        sys.stderr.write(masked(f"error: W&B: {type(error).__name__}: {' '.join(str(error).split())}\n"))
        return 1


def _publish(arguments: argparse.Namespace) -> str:
    """Publish; what was done, in lines."""
    try:  # the room is entered here: wandb is an extra, and takes a second to import
        from c3po_bench.tracking import publisher
    except ImportError as error:
        raise UserError("W&B is not installed: pip install 'c3po-bench[wandb]'") from error
    stored = len(load_runs(arguments.results_dir))
    mode = arguments.mode or os.environ.get("WANDB_MODE")
    mode = mode if mode in ("online", "offline") else "online"
    if mode == "online" and not publisher.wandb.api.api_key:
        raise UserError("not logged in to W&B: run `wandb login`, set WANDB_API_KEY, or use --mode offline")
    few = not arguments.at_end_of_run or stored <= MANY_RUNS
    cfg = TrackingConfig(mode=mode, project=arguments.project, entity=arguments.entity)
    done = publisher.publish_store(
        arguments.results_dir, cfg, analysis=few, save_dashboard=not arguments.at_end_of_run
    )
    lines = [f"{len(done.runs)} runs published ({mode}), {done.skipped} were already", *done.urls]
    if mode == "offline" and (done.runs or done.analysis):
        lines.append(f"sync later with: wandb sync {arguments.results_dir}/wandb/offline-run-*")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
