"""What a run says of itself while others still run: its line against base, and whether base is as good as published."""

from collections.abc import Mapping

from c3po_bench.analysis.compare import compare
from c3po_bench.analysis.frames import headlines, known, records
from c3po_bench.analysis.scores import load_scores
from c3po_bench.analysis.statistics import wilson
from c3po_bench.analysis.verdict import WHERE, bracket
from c3po_bench.store.reader import Run


def live_line(run: Run, base: Run) -> str:
    """One finished run against its base in a line, for the log while others still run; empty for a base."""
    if run.run_id == base.run_id:
        return ""
    compared = headlines(records(compare([base, run], draws=2000)))
    rows = [row for row in compared if row["run_id"] == run.run_id]
    row = next((row for row in rows if row["level"] == "pooled"), rows[0])
    where = f" {WHERE.get(row['scope'], row['scope'])}" if row["scope"] else ""
    if not known(row["difference"]):
        return f"{row['label']} against base{where}: no answer of both was judged"
    interval = bracket(row["diff_low"], row["diff_high"])
    changed = f"{row['fixed']} fixed, {row['broken']} broken"
    return f"{row['label']} against base{where}: {row['difference'] * 100:+.1f} points {interval}, {changed}"


def unlike_published(base: Run, published: Mapping[str, float]) -> list[str]:
    """A sentence for each task on which `base` is not as accurate as published, beyond the interval of its items.

    Args:
        base: a finished run of the model as it is.
        published: accuracies by task, between 0 and 1.
    """
    scores, sentences = load_scores(base), []
    for task, expected in published.items():
        correct = scores.correct[scores.task == task]
        if not len(correct):
            continue
        interval = wilson(float(correct.sum()), len(correct))
        if not interval.low <= expected <= interval.high:
            sentences.append(
                f"{task}: base has {interval.value * 100:.1f}% {bracket(interval.low, interval.high)} of {len(correct)} "
                f"items, and {expected * 100:.1f}% is published for this model: look at prompt, metric, dtype "
                "and revision before any gain is believed"
            )
    return sentences
