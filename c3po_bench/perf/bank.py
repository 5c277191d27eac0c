"""The reference bank: build rate against stock scoring of the same references.

Size and memory as it grows.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from c3po_bench.config import Config
from c3po_bench.perf import Options
from c3po_bench.perf.workload import stock_requests, tasks
from c3po_bench.rewiring.backend import RewiringBackend

GROWTH = """
import json, sys, numpy as np, torch
from pathlib import Path
from c3po_bench.rewiring.config import MethodConfig
from c3po_bench.rewiring.neighbors import nearest
from c3po_bench.rewiring.states import Prompt, State, StateStore
from c3po_bench.runtime.resources import peak_resident
count, folder = int(sys.argv[1]), Path(sys.argv[2])
rng = np.random.default_rng(0)
store = StateStore(folder, 1 << 36)
def array(name, *shape):
    file = folder / f"{name}.npy"
    return np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(count, *shape))
embeddings, pathways = array("embeddings", 384), array("pathways", 30, 16)
prompts = []
for start in range(0, count, 100):
    block = rng.standard_normal((min(100, count - start), 384)).astype(np.float32)
    embeddings[start : start + 100] = block / np.linalg.norm(block, axis=1, keepdims=True)
    states = []
    for i in range(start, min(start + 100, count)):
        prompt = Prompt(tuple(range(i, i + 33)), ((1, 2, 3, 4, 5),))
        prompts.append(prompt)
        keys, values = ([torch.randn(3, 32, 64) for _ in range(5)] for _ in range(2))
        kept = {"entering": torch.randn(576), "answers": [torch.randn(4, 576)]}
        kept |= {"keys": keys, "values": values}
        states.append(State(prompt, torch.randn(30, 16), kept))
    store.put(states)
bank = torch.from_numpy(np.ascontiguousarray(embeddings))
for _ in range(20):
    near = nearest(MethodConfig(), torch.nn.functional.normalize(torch.randn(16, 384), dim=-1), bank)
    store.get([prompts[i] for i in near.index.flatten().tolist()])
peak = peak_resident()
print(json.dumps({"references": count, "peak_memory_bytes": peak, "disk_bytes": store.data.stat().st_size}))
"""


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Growth at 1,000 and 10,000 synthetic references, then the build rate."""
    sizes = [growth(count) for count in ((100, 200) if options.quick else (1000, 10000))]
    for size in sizes:
        yield {"name": "bank", "setting": "growth", **size}
    more = sizes[1]["peak_memory_bytes"] - sizes[0]["peak_memory_bytes"]
    yield {**build(options), "memory_growth_bytes": more}


def growth(count: int) -> dict[str, Any]:
    """Memory and disk of a synthetic bank of smolmoe's sizes, made and searched in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", GROWTH, str(count), folder], capture_output=True, text=True, check=True
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def build(options: Options) -> dict[str, Any]:
    """`ratio` is building over stock scoring of the same references, in turn on fresh folders."""
    count = 16 if options.quick else 96
    ratios, rates = [], []
    disk, size = 0, 1
    for _ in range(max(1, options.rounds // 2)):
        with tempfile.TemporaryDirectory() as folder:
            cfg = Config(results_dir=folder)
            cfg.model.device = options.device
            cfg.data.root = str(options.data) if options.data else None
            cfg.references.tasks = ["openbookqa", "sciq"] if options.data else ["facts"]
            cfg.references.limit, cfg.references.only_correct = count, False
            backend = RewiringBackend(cfg, tasks(options.data))
            items, _notes = backend.reference_items
            requests = stock_requests(items)
            backend.embedder(["warm"])
            stock = backend.tokenizer.lm
            stock.batch_size_per_gpu = 16
            start = time.perf_counter()
            stock.loglikelihood(requests, disable_tqdm=True)
            middle = time.perf_counter()
            size = len(backend.bank)
            end = time.perf_counter()
            ratios.append((end - middle) / (middle - start))
            rates.append(size / (end - middle))
            disk = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    return {
        "name": "bank",
        "setting": "build",
        "ratio": median(ratios),
        "max_abs_diff": 0.0,
        "references_per_second": median(rates),
        "disk_bytes_per_reference": disk // max(1, size),
    }
