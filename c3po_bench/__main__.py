"""`python -m c3po_bench experiment=NAME [key=value ...]`. `--help` is answered before Hydra is imported."""

import os
import sys
from contextlib import suppress
from multiprocessing import parent_process

from c3po_bench.config import conf_dir
from c3po_bench.errors import INTERRUPTED

HELP = """\
c3po_bench: expert rewiring and verbal feedback for language models, compared fairly.

  python -m c3po_bench experiment=NAME [key=value ...]         run an experiment, for example
  python -m c3po_bench experiment=quickstart limit=20
  python -m c3po_bench -m sweep=NAME [experiment=NAME ...]     run a sweep

Groups (group=option; +experiment=NAME, as Hydra writes it, is the same as experiment=NAME):
{listing}
Every key: python -m c3po_bench --cfg job. More of Hydra: --hydra-help.
Exit status: 0 done, 1 our fault, 2 yours to mend. Interrupt at any time and run the same command again: it goes on.
"""


def main() -> int:
    """Entry point: returns the exit status."""
    if asks_help():
        return show_help()
    try:
        from c3po_bench import cli  # Hydra, of which --help has no need

        return cli.main()
    except KeyboardInterrupt:  # before or after what `cli.main` guards
        sys.stderr.write("interrupted: run the same command again to go on where it stopped\n")
        return INTERRUPTED


def show_help() -> int:
    """Print what there is to choose from, read off the folders.

    Hydra's own page composes every group first, which is slow.
    """
    listing = ""
    for folder in sorted(path for path in conf_dir().rglob("*") if path.is_dir()):
        if names := sorted(file.stem for file in folder.glob("[!_]*.yaml")):
            listing += f"  {folder.relative_to(conf_dir()).as_posix()}: {', '.join(names)}\n"
    with suppress(BrokenPipeError):
        sys.stdout.write(HELP.format(listing=listing))
    return 0


def asks_help() -> bool:
    """Whether nothing but the overview is wanted."""
    return sys.argv[1:] in (["--help"], ["-h"])


def fix_hashes() -> None:
    """Start Python anew with fixed hashes of texts, unless `PYTHONHASHSEED` is set.

    The order of a set of texts depends on them: a task's function that goes through one would ask other
    things in each run. Jobs and processes that this one starts have the same.
    """
    forked = parent_process() is not None  # from a server of processes, whose command `sys.orig_argv` is
    if "PYTHONHASHSEED" not in os.environ and sys.flags.hash_randomization and not forked and not asks_help():
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 (our own command again)


def command() -> int:
    """Entry point of the installed command and of `python -m c3po_bench`."""
    fix_hashes()
    return main()


if __name__ == "__main__":
    sys.exit(command())
