"""What a sweep would cost, before it is run.

From what was measured, in stores where there is one, else from FLOPs.

The model: an item costs a base pass; a surrogate's item costs `ARM_PASSES` base passes on top; a reference
costs one pass, once a sweep. The time of a base pass is that of the store's own base run if the store has one
(`measured`), else 2 x active parameters x tokens at a share of the device's peak (`estimated`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c3po_bench.runtime.ranks import parse_shard
from c3po_bench.store.identity import content_hash

if TYPE_CHECKING:
    from c3po_bench.launch.grid import Grid

TOKENS = {"mmlu": 110, "hellaswag": 85, "arc_challenge": 45, "arc_easy": 40, "piqa": 35, "winogrande": 30}
ITEMS = {
    "mmlu": 14042,
    "hellaswag": 10042,
    "arc_challenge": 1172,
    "arc_easy": 2376,
    "piqa": 1838,
    "winogrande": 1267,
    "openbookqa": 500,
    "sciq": 1000,
    "facts": 10000,
}
UNKNOWN_TOKENS, UNKNOWN_ITEMS = 60, 1000
ARM_PASSES = {
    "base": 0.0,
    "mode_finding": 0.3,
    "mode_finding_random_neighbors": 0.3,
    "kernel_regression": 1.2,
    "ngd": 1.2,
    "oracle": 0.6,
}
OTHER_PASSES = 1.2
DEVICE_FLOPS = (
    0.05 * 400e12
)  # a guess on the safe side: 5% of an A100-class peak, small batches through an MoE
CORE_FLOPS = 60e9  # one CPU core in float32; the embedded models are meant for it
ON_CPU = ("smolmoe", "smollm", "planted", "tiny")
START_SECONDS = 60.0  # to import, load a 7B model and its tasks


@dataclass(frozen=True)
class ModelSize:
    """What a plan must know of a model. `kv_bytes` are those of one token in all critical layers (last 5)."""

    parameters: float
    active: float
    bytes_each: int
    kv_bytes: int


SIZES = {
    "olmoe": ModelSize(6.9e9, 1.3e9, 2, 5 * 8192),
    "olmoe_instruct": ModelSize(6.9e9, 1.3e9, 2, 5 * 8192),
    "deepseek_moe": ModelSize(16.4e9, 2.8e9, 2, 5 * 8192),
    "smolmoe": ModelSize(0.135e9, 0.1e9, 4, 5 * 3072),
}
UNKNOWN_SIZE = SIZES["olmoe"]


@dataclass(frozen=True)
class Plan:
    """A sweep's size and cost. Seconds are of one device; `basis` says where they come from."""

    cells: int
    runs: int
    items: int
    gpu_seconds: float
    longest_seconds: float
    references: int
    bank_bytes: int
    memory_bytes: int
    basis: str

    def wall_seconds(self, devices: int) -> float:
        """Time on so many devices: shared evenly, but no shorter than the longest cell and one start."""
        return max(self.gpu_seconds / devices, self.longest_seconds) + START_SECONDS


def plan(grid: Grid) -> Plan:
    """The plan of a grid; runs that cells share (base, above all) are counted once."""
    runs: dict[str, float] = {}
    items: dict[str, int] = {}
    longest = 0.0
    basis = "estimated"
    for cell in grid.cells:
        config = cell.config
        count = items_of(config)
        per_item, basis = pass_seconds(config, grid.results_dir)
        spent = START_SECONDS
        for arm in dict.fromkeys(["base", *config["arms"]]):
            key = content_hash([arm, _matters(config, arm)])
            seconds = count * per_item * (1 + ARM_PASSES.get(arm, OTHER_PASSES))
            spent += 0.0 if key in runs else seconds
            runs[key], items[key] = seconds, count
        longest = max(longest, spent)
    one = grid.cells[0].config
    size = SIZES.get(one["model"]["name"], UNKNOWN_SIZE)
    references = int(one["references"]["limit"] or 34000) if one["references"]["tasks"] else 0
    per_reference, _ = pass_seconds(one, grid.results_dir)
    bank = int(references * (size.kv_bytes * UNKNOWN_TOKENS + 64 * 16 * 4 + 384 * 4))
    return Plan(
        cells=len(grid.cells),
        runs=len(runs),
        items=sum(items.values()),
        gpu_seconds=sum(runs.values()) + references * per_reference,
        longest_seconds=longest,
        references=references,
        bank_bytes=min(bank, int(one.get("bank_gb", 8.0) * 2**30)),
        memory_bytes=int(size.parameters * size.bytes_each * 1.1) + (2 << 30),
        basis=basis,
    )


def items_of(config: dict[str, Any]) -> int:
    """Items of a cell; where a task's size is not known, a thousand."""
    total = 0
    for task in config["tasks"]:
        size = ITEMS.get(task, UNKNOWN_ITEMS)
        parts = {"facts": 24, "mmlu": 57}.get(task, 1)
        total += min(size, parts * config["limit"]) if config["limit"] else size
    shares = parse_shard(config["shard"])[1] if config["shard"] else 1
    return max(1, total // shares)


def pass_seconds(config: dict[str, Any], results_dir: str) -> tuple[float, str]:
    """Seconds of a base pass over one item, and whether they were measured in this store or estimated."""
    measured = measured_seconds(Path(results_dir), config["model"]["name"])
    if measured is not None:
        return measured, "measured in this store"
    size = SIZES.get(config["model"]["name"], UNKNOWN_SIZE)
    tokens = [TOKENS.get(task, UNKNOWN_TOKENS) for task in config["tasks"]] or [UNKNOWN_TOKENS]
    work = 2 * size.active * sum(tokens) / len(tokens)
    if config["model"]["name"] in ON_CPU:
        return work / CORE_FLOPS, "estimated for one CPU core"
    return work / DEVICE_FLOPS, "estimated for one A100/H100-class GPU"


def measured_seconds(results_dir: Path, model: str) -> float | None:
    """Seconds an item of the store's base run of a model, if it has one."""
    from c3po_bench.store.reader import load_runs

    if not (results_dir / "runs").is_dir():
        return None
    costs = [
        run.result["cost"]
        for run in load_runs(results_dir)
        if run.arm == "base" and run.result["model"] == model
    ]
    costs = [cost for cost in costs if cost.get("items")]
    return sum(c["seconds"] for c in costs) / sum(c["items"] for c in costs) if costs else None


def _matters(config: dict[str, Any], arm: str) -> dict[str, Any]:
    """What makes two cells' runs of an arm different."""
    everything = ("model", "tasks", "limit", "scoring", "shard")
    found = {key: config[key] for key in everything}
    if arm != "base":
        found |= {
            key: config[key] for key in ("method", "references", "embedder", "seed", "engine", "feedback")
        }
        found["options"] = config["arm"].get(arm)
    return found


def plan_text(grid: Grid) -> str:
    """The plan in a few lines."""
    found = plan(grid)
    hours = found.gpu_seconds / 3600
    lines = [
        f"{grid.name}: {found.cells} cells, {found.runs} different runs (base is shared), {found.items:,} items to score",
        f"time:   {hours:.2f} device-hours, {found.basis}; start to end "
        + ", ".join(f"{found.wall_seconds(n) / 60:.0f} min on {n}" for n in (1, 8, 100)),
        f"memory: {found.memory_bytes / 2**30:.1f} GiB a job for {grid.cells[0].config['model']['name']}",
        f"bank:   {found.references:,} references, {found.bank_bytes / 2**30:.2f} GiB on disk, built once",
    ]
    return "\n".join(lines)
