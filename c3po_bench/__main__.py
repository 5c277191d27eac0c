"""`python -m c3po_bench +experiment=NAME [key=value ...]`."""

import sys

try:
    from c3po_bench.cli import main

    sys.exit(main())
except KeyboardInterrupt:  # before or after what `main` guards
    sys.stderr.write("interrupted: run the same command again to go on where it stopped\n")
    sys.exit(130)
