"""Local models as chats."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

from transformers import AutoModelForCausalLM

from c3po_bench.feedback.chats import open_chat
from c3po_bench.feedback.config import ChatConfig, FeedbackConfig
from c3po_bench.feedback.context import SynthesisContext
from tests.feedback.stub_server import ask


def test_a_local_model_is_known_by_its_files(tiny: Path, tmp_path: Path):
    """Another place is the same model, other weights at the same place are not."""
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    context = SynthesisContext(
        FeedbackConfig(cache_dir=str(tmp_path / "cache")),
        SimpleNamespace(model=SimpleNamespace(device="cpu")),
        0,
    )

    def known() -> int:
        chat = open_chat(
            ChatConfig(kind="transformers", model=str(folder), max_tokens=2, temperature=0.0), context
        )
        chat.complete("x", ask("hi"))
        return len(context.call_cache("x").rows)

    assert known() == 1
    folder = folder.rename(tmp_path / "moved")
    assert known() == 1
    model = AutoModelForCausalLM.from_pretrained(folder)
    next(model.parameters()).data += 0.5
    model.save_pretrained(folder)
    assert known() == 2
