"""`python -m c3po_bench.report RESULTS_DIR`: the report of a store, its table, a paper's, or records for other tools."""

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
    parser.add_argument(
        "--against", metavar="ARM", help="differences are to this arm, or run id, not to base"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--table", action="store_true", help="print the table of the console and write nothing"
    )
    shape.add_argument(
        "--paper", action="store_true", help="write LaTeX tables and PDF and SVG figures (into paper/ there)"
    )
    arguments = parser.parse_args(argv)

    def work() -> None:
        if arguments.to:
            from c3po_bench.analysis.export import export  # needs no extra, and the report not it

            output = arguments.output or f"{arguments.results_dir}/exports/{arguments.to}"
            written = export(arguments.results_dir, arguments.to, output)
            sys.stdout.write(f"{len(written)} files in {output}\n")
            return
        if arguments.table:
            from c3po_bench.analysis.tables import show_store

            show_store(arguments.results_dir, arguments.against)
            return
        try:  # the room is entered here: what it needs is an extra, and --help does without
            from c3po_bench.report.build import write_report
            from c3po_bench.report.paper import write_paper
        except ImportError as error:
            raise UserError(
                "the report needs altair and vl-convert: pip install 'c3po-bench[report]'"
            ) from error
        try:
            write = write_paper if arguments.paper else write_report
            sys.stdout.write(f"{write(arguments.results_dir, arguments.output, arguments.against)}\n")
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM) or arguments.output:
                raise
            raise UserError(
                f"{error.filename}: {error.strerror}: this store can only be read; --output DIR writes elsewhere"
            ) from error

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
