"""Tasks: a narrow catalog, local data for stock tasks, scoring rules, reference items, and our own `facts`."""

from c3po_bench.tasks.references import reference_items
from c3po_bench.tasks.rules import RULES
from c3po_bench.tasks.taskset import TaskSet

__all__ = ["RULES", "TaskSet", "reference_items"]
