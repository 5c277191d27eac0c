"""Give one bad input of `inputs.yaml` to the program, in this process, and see how it ends: milliseconds a row.

`python -m tests.bad_inputs.run` prints all inputs with their exit status and message.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir

from c3po_bench import cli
from c3po_bench.config import Config, ModelConfig, check_ranges, conf_dir
from c3po_bench.errors import UserError
from c3po_bench.evaluate.run import check_items, set_up
from c3po_bench.explain import hydra_overrides, status_of
from c3po_bench.feedback.answering import check_chat
from c3po_bench.models import loading
from c3po_bench.rewiring.tokens import Tokenizer
from c3po_bench.tasks import TaskSet

INPUTS = Path(__file__).with_name("inputs.yaml")
PLAIN: dict[str, Any] = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "HERE/test.jsonl"}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
}
WRITTEN: dict[str, Any] = {
    "output_type": "generate_until",
    "doc_to_choice": None,
    "metric_list": [{"metric": "exact_match"}],
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
}
ROWS = [
    {"question": "What do cows give?", "choices": ["milk", "stone"], "answer": 0},
    {"question": "Is water wet?", "choices": ["no", "yes"], "answer": 1},
]


def inputs() -> dict[str, dict[str, Any]]:
    """The table, by the name of each input."""
    rows = yaml.safe_load(INPUTS.read_text(encoding="utf-8"))
    table = {row["name"]: row for row in rows}
    assert len(table) == len(rows), "two inputs have one name"
    return table


def outcome(row: dict[str, Any]) -> tuple[int, str]:
    """Exit status and standard error."""
    folder, stderr = Path(tempfile.mkdtemp()), io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            try:
                KINDS[row["kind"]](row, folder)
                status = 0
            except (Exception, SystemExit) as error:
                status = status_of(error)
    finally:
        shutil.rmtree(folder)
    return status, stderr.getvalue().replace(str(folder), "FOLDER").strip()


def ask_task(row: dict[str, Any], folder: Path) -> None:
    """Read a task and its rows and put all items in tokens: what happens before anything is scored."""
    _write(folder, row)
    tasks = TaskSet(
        [text.replace("HERE", str(folder)) for text in row.get("tasks", ["HERE/mine.yaml"])],
        data_root=folder / "data" if row.get("data_root") else None,
        rule=row.get("rule", "cloze"),
        num_fewshot=row.get("num_fewshot", 0),
        permute_options=row.get("permute", False),
    )
    tasks.request_hashes()
    check_items(Config(), tasks, cast("Any", SimpleNamespace(check_items=_tokenizer().check)))


def load_model(row: dict[str, Any], folder: Path) -> None:
    """Load a folder that `change` (Python, with `folder`) has made worse."""
    saved = folder / "model"
    shutil.copytree(_saved_model(), saved)
    scope = {"folder": saved, "json": json, "edit": _edit, "Path": Path}
    exec(row["change"], scope)
    path = row.get("path", "HERE/model").replace("HERE", str(folder))
    loaded = loading._load(ModelConfig(name="mine", kind="hf", path=path))
    check_chat(loaded.tokenizer)


def compose_words(row: dict[str, Any], folder: Path) -> None:
    """Compose the words of a command line."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        words = hydra_overrides([*row["words"], f"results_dir={folder}"])
        check_ranges(cli.to_config(compose("config", overrides=words)))


def import_plugin(row: dict[str, Any], folder: Path) -> None:
    """Import a plugin, or run a function of one as the program does."""
    (folder / "bad_plugin.py").write_text(row["plugin"])
    sys.path.insert(0, str(folder))
    sys.modules.pop("bad_plugin", None)
    importlib.invalidate_caches()
    try:
        set_up(Config(plugins=["bad_plugin"]))
        if name := row.get("kernel"):
            _weigh(name)
    finally:
        sys.path.remove(str(folder))


def _weigh(kernel: str) -> None:
    """Ask a plugin's kernel for weights, and take it out again."""
    import torch

    from c3po_bench.rewiring.config import KernelConfig
    from c3po_bench.rewiring.kernels import KERNELS, kernel_weights

    try:
        kernel_weights(KernelConfig(name=kernel), torch.ones(1, 2), torch.ones(1, 2) > 0)
    finally:
        KERNELS.remove(kernel)


KINDS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "task": ask_task,
    "model": load_model,
    "words": compose_words,
    "plugin": import_plugin,
}


def _write(folder: Path, row: dict[str, Any]) -> None:
    """The task's YAML, its rows and whatever other files the input has."""
    for name, text in row.get("files", {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False)
        path.write_bytes(text.replace("HERE", str(folder)).encode("utf-8", "surrogateescape"))
    config = PLAIN | (WRITTEN if row.get("written") else {}) | row.get("yaml", {})
    functions = {key: f"!function {value}" for key, value in row.get("functions", {}).items()}
    lines = yaml.safe_dump(
        {k: v for k, v in config.items() if v is not None and k not in functions}, sort_keys=False
    )
    lines += "".join(f"{key}: {value}\n" for key, value in functions.items())
    (folder / "mine.yaml").write_text(lines.replace("HERE", str(folder)))
    if "test.jsonl" not in row.get("files", {}):
        rows = "".join(json.dumps(each) + "\n" for each in row.get("rows", ROWS))
        (folder / "test.jsonl").write_text(rows)


def _edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None takes one out."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


@cache
def _tokenizer() -> Tokenizer:
    loaded = loading.load(ModelConfig(name="tiny", kind="tiny"))
    return Tokenizer(loaded.model, loaded.tokenizer)


@cache
def _saved_model() -> Path:
    from c3po_bench.models.tiny import tiny_model, tiny_tokenizer

    folder = Path(tempfile.mkdtemp())
    tiny_model("olmoe").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def main() -> None:
    """Print the table."""
    for name, row in inputs().items():
        status, message = outcome(row)
        print(f"{status}  {name}\n   {message}\n")  # noqa: T201


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from error
