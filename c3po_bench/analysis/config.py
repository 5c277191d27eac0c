"""What is fixed before a comparison is looked at: dataclasses only, so that a config loads no scipy."""

from dataclasses import dataclass

from c3po_bench.options import option

POOLED = "all items"
"""What the row over all items is called, where there are several benchmarks."""


@dataclass
class AnalysisConfig:
    """The section ``analysis`` of the config. It changes no run, only what is said of runs."""

    margin: float = option(
        0.01,
        "difference of accuracies below which two arms count as the same; 0.01 is 1 point",
        above=0,
        most=1,
    )
    primary: str | None = option(
        None, "ARM or ARM:TASK, the one comparison with base that is tested first; null = none is named"
    )
