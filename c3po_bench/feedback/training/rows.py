"""Rows of tokens: their order over the steps of a training, and what a forward pass says about their answers.

The whole order of a run is fixed before its first step, so a resumed run goes on with exactly the rows it
would have had.

TRL calls its model with ``fused_lm_head=True`` and reads per-token fields. Its fused head saves memory on a
GPU but is several times slower than plain logits on a CPU, so `token_fields` offers the same fields from
plain logits at the labelled positions. Nothing here needs TRL, which is slow to import: scoring needs it too.
"""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

IGNORED = -100
SCOPES = ("near", "out")


@dataclass(frozen=True)
class Row:
    """One prompt and the answer that the model should keep giving to it."""

    prompt_ids: list[int]
    completion_ids: list[int]

    def tensors(self, max_length: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and labels [length], cut at `max_length`, prompt ignored in the labels."""
        ids = (self.prompt_ids + self.completion_ids)[:max_length]
        labels = ([IGNORED] * len(self.prompt_ids) + self.completion_ids)[:max_length]
        return torch.tensor(ids), torch.tensor(labels)


def shuffled_epochs(n: int, seed: str) -> Iterator[int]:
    """Endless indices below `n`.

    One seeded permutation after the other, so every index comes equally often.
    """
    for turn in itertools.count():
        order = list(range(n))
        random.Random(f"{seed}/{turn}").shuffle(order)
        yield from order


def pair_schedule(
    pairs: int, sizes: Mapping[str, int], batch: int, constraint_batch: int, batches: int, seed: int
) -> list[dict[str, Any]]:
    """What each pair row of `batches` batches holds: ``pair`` (an index) and constraint indices by scope.

    Every set is shuffled and repeated by itself, so the sets need not be equal in size.
    """
    order = shuffled_epochs(pairs, f"pairs/{seed}")
    orders = {scope: shuffled_epochs(n, f"{scope}/{seed}") for scope, n in sizes.items() if n}
    rows = []
    for _ in range(batches):
        chosen = {scope: list(itertools.islice(o, constraint_batch)) for scope, o in orders.items()}
        for slot in range(batch):
            rows.append({"pair": next(order), **{scope: chosen[scope][slot::batch] for scope in chosen}})
    return rows


def answer_schedule(
    inside: Sequence[Row], near: Sequence[Row], out: Sequence[Row], batch: int, batches: int, seed: int
) -> list[Row]:
    """Batches of `batch` in-scope rows, plus as many negatives, half near scope and half out of scope.

    Where `batch` is odd, the odd negative is out of scope and near scope in turn.
    """
    sets = {"in": inside} | ({"near": near, "out": out} if near and out else {"negative": near or out})
    orders = {name: shuffled_epochs(len(rows), f"{name}/{seed}") for name, rows in sets.items() if rows}
    schedule = []
    for turn in range(batches):
        close = (batch + turn % 2) // 2
        counts = {"in": batch, "near": close, "out": batch - close, "negative": batch}
        for name, order in orders.items():
            schedule += [sets[name][i] for i in itertools.islice(order, counts[name])]
    return schedule


def pad_rows(
    rows: Sequence[Row], pad_token_id: int, max_length: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, labels and attention mask [rows, longest], padded on the right."""
    tensors = [row.tensors(max_length) for row in rows]
    stack = torch.nn.utils.rnn.pad_sequence
    ids = stack([t[0] for t in tensors], batch_first=True, padding_value=pad_token_id)
    labels = stack([t[1] for t in tensors], batch_first=True, padding_value=IGNORED)
    attention = stack([torch.ones_like(t[0]) for t in tensors], batch_first=True, padding_value=0)
    return ids, labels, attention


def labelled_logits(
    model: Any, input_ids: torch.Tensor, labels: torch.Tensor, **kwargs: Any
) -> tuple[torch.Tensor, Any]:
    """The logits that predict the labelled tokens [tokens, vocabulary], row by row, and the model's output.

    The head runs from the first position that predicts a label on, not over the prompts.
    """
    mask = labels[:, 1:] != IGNORED
    columns = mask.any(dim=0).nonzero()
    first = int(columns[0]) if len(columns) else mask.shape[1] - 1
    kept = input_ids.shape[1] - first
    output = model(input_ids=input_ids, logits_to_keep=kept, use_cache=False, **kwargs)
    logits = output.logits[:, -kept:-1]  # models that ignore logits_to_keep return every position
    return logits[mask[:, first:]], output


def token_kl(reference: torch.Tensor, policy: torch.Tensor) -> torch.Tensor:
    """KL(reference || policy) of each token [tokens], in nats, from logits [tokens, vocabulary]."""
    reference, policy = (logits.float().log_softmax(dim=-1) for logits in (reference, policy))
    return (reference.exp() * (reference - policy)).sum(dim=-1)


def token_fields(
    model: Any,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    fused_lm_head: bool = False,
    use_cache: bool = False,
    **kwargs: Any,
) -> SimpleNamespace:
    """What TRL's losses read of a model's output, by plain logits, in float32.

    With the model bound it stands in for the model in those losses, whose arguments `fused_lm_head` and
    `use_cache` are of no account here.

    Returns:
        Of the labels [rows, length] the fields `log_probs`, `entropy`, `mean_logits` and `is_top1`
        [rows, length - 1], zero where the label is ignored; their `mask`; and the model's `aux_loss`, if any.
    """
    mask = labels[:, 1:] != IGNORED
    logits, output = labelled_logits(model, input_ids, labels, **kwargs)
    logits = logits.float()
    targets = labels[:, 1:][mask]
    log_normalizer = logits.logsumexp(dim=-1)
    log_probs = logits.gather(-1, targets[:, None])[:, 0] - log_normalizer
    with torch.no_grad():
        probabilities = (logits - log_normalizer[:, None]).exp()
        entropy = log_normalizer - (probabilities * logits).sum(dim=-1)
        mean_logits, is_top1 = logits.mean(dim=-1), logits.argmax(dim=-1) == targets

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(mask.shape).masked_scatter(mask, values)

    return SimpleNamespace(
        log_probs=spread(log_probs),
        entropy=spread(entropy),
        mean_logits=spread(mean_logits),
        is_top1=spread(is_top1),
        mask=mask,
        aux_loss=getattr(output, "aux_loss", None),
    )
