"""Calibration text that the dense model writes itself, and what its feed-forward layers do on it.

No benchmark item is involved: the seeds below are topics and bare formats, everything that is measured is
what the model made of them.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_TOPICS = """
    the water cycle, electric circuits, the life of bees, volcanoes, the moon, food chains, magnets,
    photosynthesis, the human heart, recycling, friction, the weather, fossils, sound, light and lenses,
    metals and rust, rivers of Europe, capital cities, planets, fractions, prime numbers, adding prices,
    the alphabet, verbs and nouns, opposites, cooking rice, growing tomatoes, riding a bicycle, a lost dog,
    a day at the beach, the history of bread, how a bridge stands, why leaves fall, germs, soap,
    ice and steam, the ocean floor, deserts, birds in winter, trains, the printing press, money,
    a letter to a friend, choosing a gift, being kind, healthy sleep, football rules, painting a wall,
    cells, atoms, gravity, a thermometer, wood and plastic, how fish breathe, earthquakes, glass
"""
TOPICS = tuple(topic.strip() for topic in _TOPICS.split(","))
CHAT = (
    "Explain {} to a child.",
    "Write five short facts about {}.",
    "Write a quiz question about {} with four choices, then the answer.",
    "Tell a short story about {}.",
)
PLAIN = ("Question: What", "Question: Which", "Q: How", "The", "In", "When you", "Question: Why", "A student")


@dataclass(frozen=True)
class Calibration:
    """Token ids [texts, length] and a mask of the same shape: true where a token counts."""

    ids: Tensor
    counts: Tensor


def write_text(model: nn.Module, tokenizer, *, seed: int, length: int = 144, batch: int = 64) -> Calibration:
    """Let the dense model write: one text a seed, sampled at temperature 0.9, nucleus 0.95.

    Returns right-padded ids; the seeds themselves count too when they are plain openings, not when they are
    chat.
    """
    torch.manual_seed(seed)
    chats = [pattern.format(topic) for topic in TOPICS for pattern in CHAT]
    prompts = [_chat(tokenizer, text) for text in chats] + [
        opening for opening in PLAIN for _ in range(len(TOPICS) // 2)
    ]
    encoded = sorted((tokenizer(prompt).input_ids for prompt in prompts), key=len)
    rows: list[tuple[list[int], int]] = []
    for start in range(0, len(encoded), batch):
        rows += _sample(model, tokenizer, encoded[start : start + batch], length)
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id, dtype=torch.long)
    counts = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (tokens, first) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        counts[row, first : len(tokens)] = True
    return Calibration(ids, counts)


def _chat(tokenizer, text: str) -> str:
    message = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def _sample(
    model: nn.Module, tokenizer, prompts: list[list[int]], length: int
) -> list[tuple[list[int], int]]:
    """Texts written after `prompts`, each with the position from which its tokens count."""
    width = max(len(ids) for ids in prompts)
    pad = tokenizer.pad_token_id
    padded = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    with torch.no_grad():
        written = model.generate(
            padded,
            attention_mask=mask,
            do_sample=True,
            temperature=0.9,
            top_p=0.95,
            max_new_tokens=length,
            pad_token_id=pad,
        )
    rows = []
    for prompt, text in zip(prompts, written[:, width:].tolist(), strict=True):
        body = text[: text.index(pad) + 1] if pad in text else text
        rows.append((prompt + body, len(prompt) if len(prompt) > 12 else 0))
    return rows


def feed_forward_inputs(
    model: nn.Module, text: Calibration, *, tokens: int, seed: int, batch: int = 16
) -> tuple[Tensor, Tensor]:
    """What enters each feed-forward layer on a random sample of the counting tokens.

    Returns the inputs [layers, tokens, hidden] and the norm of the residual stream [layers, tokens] that each
    layer adds to (the yardstick of an error there).
    """
    layers = model.model.layers
    positions = text.counts.nonzero()
    chosen = positions[torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))[:tokens]]
    mask = torch.zeros_like(text.counts)
    mask[chosen[:, 0], chosen[:, 1]] = True
    inputs: list[list[Tensor]] = [[] for _ in layers]
    norms: list[list[Tensor]] = [[] for _ in layers]
    for ids, keep in _batches(text.ids, mask, batch):
        handles = [layer.register_forward_hook(_keep_norm(norms[i], keep)) for i, layer in enumerate(layers)]
        handles += [
            layer.mlp.register_forward_pre_hook(_keep_input(inputs[i], keep))
            for i, layer in enumerate(layers)
        ]
        with torch.no_grad():
            model.model(ids)
        for handle in handles:
            handle.remove()
    return torch.stack([torch.cat(parts) for parts in inputs]), torch.stack(
        [torch.cat(parts) for parts in norms]
    )


def _batches(ids: Tensor, mask: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of texts in order of length, cut to the longest one's last chosen token."""
    last = (mask.long() * torch.arange(1, mask.shape[1] + 1)).amax(dim=1)
    order = last.argsort(stable=True)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        width = int(last[rows].max())
        if width:
            yield ids[rows, :width], mask[rows, :width]


def _keep_input(parts: list[Tensor], keep: Tensor):
    def hook(module, arguments):
        parts.append(arguments[0][keep])

    return hook


def _keep_norm(parts: list[Tensor], keep: Tensor):
    def hook(module, arguments, output):
        hidden = output[0] if isinstance(output, tuple) else output
        parts.append(hidden[keep].norm(dim=-1))

    return hook
