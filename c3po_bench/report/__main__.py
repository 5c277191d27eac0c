"""`python -m c3po_bench.report RESULTS_DIR [--output DIR] [--to FORMAT]`: report or records of a store."""

import argparse
import errno
import sys

from c3po_bench.errors import UserError, exit_status


def main(argv: list[str] | None = None) -> int:
    """Write the report and say where it is; 2 where the user can mend what is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m c3po_bench.report",
        description="Write report.html, figures and tables from a store of results.",
    )
    parser.add_argument("results_dir", help="the folder an experiment or a sweep wrote its results to")
    parser.add_argument("--output", default=None, help="where to write (default: the results folder itself)")
    parser.add_argument(
        "--to",
        metavar="FORMAT",
        help="write records for other tools instead: every-eval-ever or lm-eval (into exports/ there)",
    )
    arguments = parser.parse_args(argv)

    def work() -> None:
        if arguments.to:
            from c3po_bench.analysis.export import export  # needs no extra, and the report not it

            output = arguments.output or f"{arguments.results_dir}/exports/{arguments.to}"
            written = export(arguments.results_dir, arguments.to, output)
            sys.stdout.write(f"{len(written)} files in {output}\n")
            return
        try:  # the room is entered here: what it needs is an extra, and --help does without
            from c3po_bench.report.build import write_report
        except ImportError as error:
            raise UserError(
                "the report needs altair and vl-convert: pip install 'c3po-bench[report]'"
            ) from error
        try:
            sys.stdout.write(f"{write_report(arguments.results_dir, arguments.output)}\n")
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM) or arguments.output:
                raise
            raise UserError(
                f"{error.filename}: {error.strerror}: this store can only be read; --output DIR writes elsewhere"
            ) from error

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
