"""`python -m c3po_bench +experiment=NAME [key=value ...]`."""

import sys

from c3po_bench.cli import main

sys.exit(main())
