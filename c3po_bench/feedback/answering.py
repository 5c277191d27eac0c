"""How a local model answers: batches of token ids in, texts out, the same at every run.

Batches are laid out from the whole list of prompts, not from what is still missing, so a killed and resumed run pads each
prompt exactly as an uninterrupted one does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from c3po_bench.feedback.chat import stop_ids
from c3po_bench.feedback.config import GenerationConfig


@dataclass(frozen=True)
class Answer:
    """One answer: `finished` is false when it was cut at the token limit; `tokens` counts what was generated."""

    text: str
    finished: bool
    tokens: int

    def record(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def batches(prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Indices of the prompts, batched by length (longest first)."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), list(prompts[i]), i))
    return [order[start : start + size] for start in range(0, len(order), size)]


def answer_batch(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], cfg: GenerationConfig, seed: int = 0
) -> list[Answer]:
    """The answers to one batch of prompts (token ids), padded on the left. Sampling draws from `seed` and the prompts."""
    import torch

    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    stops = stop_ids(tokenizer, model)
    sampling: dict[str, Any] = {"do_sample": False}
    if cfg.temperature > 0:
        sampling = {"do_sample": True, "temperature": cfg.temperature, "top_p": cfg.top_p}
        torch.manual_seed(_draw_seed(prompts, seed))
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=cfg.max_new_tokens, eos_token_id=stops,
            pad_token_id=pad, **sampling,
        )  # fmt: skip
    return [_answer(tokenizer, row.tolist(), stops) for row in output[:, width:]]


def _answer(tokenizer: Any, ids: list[int], stops: list[int]) -> Answer:
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    kept = ids if end is None else ids[:end]
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Answer(text.strip(), end is not None, len(kept))


def answer_all(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    cfg: GenerationConfig,
    seed: int = 0,
    known: Sequence[Answer | None] | None = None,
    done: Callable[[dict[int, Answer]], None] | None = None,
) -> list[Answer]:
    """The answers to all prompts; batches with nothing missing in `known` are skipped, `done` is told of each finished one."""
    answers: list[Answer | None] = list(known) if known is not None else [None] * len(prompts)
    for batch in batches(prompts, cfg.batch):
        if all(answers[i] is not None for i in batch):
            continue
        fresh = answer_batch(model, tokenizer, [prompts[i] for i in batch], cfg, seed)
        found = {i: answer for i, answer in zip(batch, fresh, strict=True) if answers[i] is None}
        for i, answer in found.items():
            answers[i] = answer
        if done is not None:
            done(found)
    return [answer for answer in answers if answer is not None]


def _draw_seed(prompts: Sequence[Sequence[int]], seed: int) -> int:
    return int(hashlib.sha256(repr((seed, [list(p) for p in prompts])).encode()).hexdigest()[:8], 16)
