"""Fixtures of the feedback tests: tiny models, a stub chat endpoint, the golden cases."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
ROOT = Path(__file__).resolve().parents[2]


def quick(tiny: Path, folder: Path, *more: str) -> list[str]:
    """Words of a small `feedback_quick` on the random model, whose results and cache are in `folder`."""
    return [
        "c3po_bench",
        "+experiment=feedback_quick",
        "model=hf",
        f"model.path={tiny}",
        "model.device=cpu",
        f"results_dir={folder}/out",
        f"feedback.cache_dir={folder}/cache",
        "tracking.mode=disabled",
        "batch_size=4",
        *(f"feedback.n_{scope}=16" for scope in ("in", "near", "out")),
        "feedback.train.precision=float32",
        "feedback.answers.batch_size=4",
        *more,
    ]


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder with what the official trainer computed."""
    folder = Path(os.environ.get("C3PO_GOLDEN_DIR", ROOT / ".." / "shared" / "golden")) / "feedback"
    if not (folder / "cases.json").exists():
        pytest.skip(f"no golden cases in {folder}: set C3PO_GOLDEN_DIR")
    return folder


@pytest.fixture(scope="session")
def golden_cases(golden: Path) -> list[dict]:
    """The recorded cases."""
    return json.loads((golden / "cases.json").read_text())["cases"]


CHAT = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama and a byte-level chat tokenizer."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def make_tiny(folder: Path) -> Path:
    """Write that model into `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<|end|>", "<|user|>", "<|assistant|>", *alphabet]
    raw = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT,
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
