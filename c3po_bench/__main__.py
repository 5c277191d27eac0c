"""`python -m c3po_bench +experiment=NAME [key=value ...]`."""

import gc
import sys

from c3po_bench.cli import main

status = main()
gc.freeze()  # Python's last look for garbage, among all that torch and transformers imported, takes a second
sys.exit(status)
