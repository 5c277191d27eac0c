"""What a sweep would cost, before it is run.

From what was measured, in stores where there is one, else from FLOPs.

The work of arms is that of forecasts (`evaluate.work`); a reference costs one pass, once a sweep. The time of
a base pass is that of the store's own base run if the store has one (`measured`), else its FLOPs
(`models.flops`) at a share of the device's peak (`estimated`). A running experiment measures its machine
(`evaluate.forecast`).
"""

from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from more_itertools import map_reduce

from c3po_bench.config import Config
from c3po_bench.evaluate.work import CHAT_TOKENS, Rates, TaskSize, run_key, works_of_cells
from c3po_bench.launch.grid import Grid
from c3po_bench.launch.sweep_folder import typed_config
from c3po_bench.models.flops import LayerShape, ModelShape
from c3po_bench.options import MOST, seconds_of
from c3po_bench.registry import import_plugins
from c3po_bench.runtime.ranks import parse_shard
from c3po_bench.store.reader import load_runs

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
PARTS = {"facts": 24, "mmlu": 57}  # tasks of which `limit` takes as many items each
FEEDBACK_GROUP, SCOPES = "feedback", ("in_scope", "near_scope", "out_of_scope")
UNKNOWN_TOKENS, UNKNOWN_ITEMS, ALL_REFERENCES = 60, 1000, 34000
# a guess on the safe side: 5% of an A100-class peak, small batches through an MoE
DEVICE_FLOPS = 0.05 * 400e12
CORE_FLOPS = 60e9  # one CPU core in float32; the embedded models are meant for it
ON_CPU = ("smolmoe", "specialists", "specialists_damaged", "smollm", "planted", "planted_sigmoid", "tiny")
START_SECONDS = 60.0  # to import, load a 7B model and its tasks


def shape(
    *,
    layers: int,
    width: int,
    keys: int,
    experts: int,
    top_k: int,
    inner: int,
    vocabulary: int,
    shared: int = 0,
) -> ModelShape:
    """The shape of a Mixture-of-Experts decoder from what its config says.

    `keys` is the width of all keys, `inner` that of one routed expert, `shared` that of the shared ones.
    """
    dense = 2 * width * (width + keys) + width * experts + 3 * width * shared
    return ModelShape((LayerShape(dense, 3 * width * inner, top_k, 2 * width),) * layers, width * vocabulary)


@dataclass(frozen=True)
class ModelSize:
    """What a plan must know of a model. `kv_bytes` are those of one token in all critical layers (last 5)."""

    parameters: float
    shape: ModelShape
    bytes_each: int
    kv_bytes: int


OLMOE = shape(layers=16, width=2048, keys=2048, experts=64, top_k=8, inner=1024, vocabulary=50304)
DEEPSEEK_MOE = shape(
    layers=28, width=2048, keys=2048, experts=64, top_k=6, inner=1408, vocabulary=102400, shared=2816
)
SMOLMOE = shape(layers=30, width=576, keys=192, experts=16, top_k=8, inner=48, vocabulary=49152, shared=768)
SMOLLM = shape(layers=30, width=576, keys=192, experts=0, top_k=0, inner=0, vocabulary=49152, shared=1536)
SPECIALISTS = shape(
    layers=30, width=576, keys=192, experts=12, top_k=2, inner=64, vocabulary=49152, shared=1536
)
PLANTED = shape(layers=6, width=64, keys=64, experts=16, top_k=2, inner=32, vocabulary=340)
SIZES = {
    "olmoe": ModelSize(6.9e9, OLMOE, 2, 5 * 8192),
    "olmoe_instruct": ModelSize(6.9e9, OLMOE, 2, 5 * 8192),
    "deepseek_moe": ModelSize(16.4e9, DEEPSEEK_MOE, 2, 5 * 8192),
    "smolmoe": ModelSize(0.135e9, SMOLMOE, 4, 5 * 3072),
    "smollm": ModelSize(0.135e9, SMOLLM, 4, 0),
    "specialists": ModelSize(0.141e9, SPECIALISTS, 4, 5 * 3072),
    "planted": ModelSize(0.74e6, PLANTED, 4, 3 * 512),
    "planted_sigmoid": ModelSize(0.74e6, PLANTED, 4, 3 * 512),
}
UNKNOWN_SIZE = SIZES["olmoe"]
CHOICES = 4  # tokens of an item at which the head is asked, at least


@dataclass(frozen=True)
class CellCost:
    """What a cell costs, in seconds of one device: each arm over all items, and one pass over one item.

    `basis` says where the seconds come from.
    """

    items: int
    arms: dict[str, float]
    pass_seconds: float
    basis: str


def cell_cost(config: dict[str, Any], measured: dict[str, float]) -> CellCost:
    """The cost of a cell's config; `measured` are seconds of a base pass over an item by model, where known.

    All that a plan knows of time is here: work of an arm, FLOPs of a pass, FLOPs of a device in a second.
    """
    model, cfg = config["model"]["name"], typed_config(config)
    sizes = task_sizes(cfg)
    items, mean = items_of(config), round(sum(size.read for size in sizes) / len(sizes))
    if model in measured and not any(size.about_feedback for size in sizes):
        seconds, basis = measured[model], "measured in this store"
    else:
        model_shape = SIZES.get(model, UNKNOWN_SIZE).shape
        flops = model_shape.forward(model_shape.span, 1, mean, mean) + model_shape.logits(CHOICES)
        seconds, basis = flops / DEVICE_FLOPS, "estimated for one A100/H100-class GPU"
        if model in ON_CPU:
            seconds, basis = flops / CORE_FLOPS, "estimated for one CPU core"
    arms: dict[str, float] = {}
    rates = Rates(seconds / mean, seconds / mean, 0.0)
    for part in works_of_cells([cfg], sizes, {"references", "questions", "alone"}):
        arms[part.arm] = arms.get(part.arm, 0.0) + rates.seconds(part.total(sizes, None))
    return CellCost(items, arms, seconds, basis)


def task_sizes(cfg: Config) -> list[TaskSize]:
    """The tasks of a config as a plan knows them, without data: items that are asked, and tokens of one."""
    sizes = []
    for task in cfg.tasks:
        if task in (FEEDBACK_GROUP, *SCOPES):
            scopes = SCOPES if task == FEEDBACK_GROUP else (task,)
            sizes += [TaskSize(scope, _feedback_items(cfg, scope), CHAT_TOKENS, 1, True) for scope in scopes]
        else:
            sizes.append(TaskSize(task, _items(task, cfg.limit, cfg.shard), TOKENS.get(task, UNKNOWN_TOKENS)))
    return sizes or [TaskSize("", 0, UNKNOWN_TOKENS)]


def _feedback_items(cfg: Config, scope: str) -> int:
    written = getattr(cfg.feedback, f"n_{scope.split('_')[0]}") * cfg.feedback.test_share
    return _share(min(len(cfg.feedback.pieces) * round(written), cfg.limit or MOST), cfg.shard)


def _items(task: str, limit: int | None, shard: str | None) -> int:
    size = ITEMS.get(task, UNKNOWN_ITEMS)
    return _share(min(size, PARTS.get(task, 1) * limit) if limit else size, shard)


def _share(items: int, shard: str | None) -> int:
    return items // (parse_shard(shard)[1] if shard else 1)


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
    import_plugins(grid.cells[0].config["plugins"])
    measured = measured_seconds(Path(grid.results_dir))
    costs = [cell_cost(cell.config, measured) for cell in grid.cells]
    seconds: dict[str, float] = {}  # by run
    items = 0
    longest = 0.0
    for cell, cost in zip(grid.cells, costs, strict=True):
        keys = {arm: run_key(typed_config(cell.config), arm) for arm in cost.arms}
        new = {keys[arm]: own for arm, own in cost.arms.items() if keys[arm] not in seconds}
        longest = max(longest, START_SECONDS + sum(new.values()))
        items += cost.items * len(new)
        seconds |= new
    first = grid.cells[0].config
    size = SIZES.get(first["model"]["name"], UNKNOWN_SIZE)
    references = int(first["references"]["limit"] or ALL_REFERENCES) if first["references"]["tasks"] else 0
    bank = references * (size.kv_bytes * UNKNOWN_TOKENS + 64 * 16 * 4 + 384 * 4)
    return Plan(
        cells=len(grid.cells),
        runs=len(seconds),
        items=items,
        gpu_seconds=sum(seconds.values()) + references * costs[0].pass_seconds,
        longest_seconds=longest,
        references=references,
        bank_bytes=min(bank, int(first["reference_cache_gb"] * 2**30)),
        memory_bytes=int(size.parameters * size.bytes_each * 1.1) + (2 << 30),
        basis=costs[-1].basis,
    )


def items_of(config: dict[str, Any]) -> int:
    """Items of a cell; where a task's size is not known, a thousand."""
    return max(1, sum(size.items for size in task_sizes(typed_config(config))))


def measured_seconds(results_dir: Path) -> dict[str, float]:
    """Seconds an item of a store's base runs, by model; of no store, none."""
    if not (results_dir / "runs").is_dir():
        return {}
    bases = [run.result for run in load_runs(results_dir) if run.arm == "base"]
    scored = (result for result in bases if result["cost"]["items"])
    costs = map_reduce(scored, itemgetter("model"), itemgetter("cost"))
    return {m: sum(c["seconds"] for c in own) / sum(c["items"] for c in own) for m, own in costs.items()}


def plan_text(grid: Grid) -> str:
    """The plan in a few lines."""
    total = plan(grid)
    model, hours = grid.cells[0].config["model"]["name"], total.gpu_seconds / 3600
    walls = ", ".join(f"{total.wall_seconds(n) / 60:.0f} min on {n}" for n in (1, 8, 100))
    bank = f"{total.bank_bytes / 2**30:.2f} GiB on disk, built once"
    lines = [
        f"{grid.name}: {total.cells} cells, {total.runs} different runs (base is shared), "
        f"{total.items:,} items to score",
        f"time:   {hours:.2f} device-hours, {total.basis}; start to end {walls}",
        f"memory: {total.memory_bytes / 2**30:.1f} GiB a job for {model}",
        f"bank:   {total.references:,} references, {bank}",
    ]
    if budget := grid.cells[0].config["budget"]:
        time, limit = seconds_of("budget", budget), grid.cells[0].config["limit"]
        at = "all items" if limit is None else f"limit={limit}"
        lines.append(
            f"budget: {budget} for all cells; the first to run measures its machine and takes the limit that "
            f"fits (with {at} the plan takes {total.wall_seconds(1) / time:.1f} times as long)"
        )
    return "\n".join(lines)
