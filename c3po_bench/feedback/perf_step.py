"""One training step of C3PO, ours against the official way: same batch, loss and gradients.

The official step (TRL 0.7.10 and its subclass) makes three policy forwards (pairs, near scope, out of scope)
and as many reference forwards, whose result it throws away for the constraint terms, with logits at every
position. Ours has the reference log-probabilities of the pairs precomputed, one forward for both constraint
sets, and logits at answer tokens only.
"""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn.functional import logsigmoid
from transformers import LlamaConfig, LlamaForCausalLM

from c3po_bench.feedback.training.losses import (
    CHECKPOINTING,
    ConstrainedDPOConfig,
    ConstrainedDPOTrainer,
)
from c3po_bench.feedback.training.rows import Row
from c3po_bench.models.tiny import tiny_tokenizer

WIDTHS = {"short answers": (24, 16), "long answers": (24, 64)}  # tokens of prompt, of answer
PAIRS, KEPT = 4, 4
LAMBDA_NEAR, LAMBDA_OUT, BETA = 0.1, 0.2, 0.1


def run(options: Any) -> Iterator[dict[str, Any]]:
    """A record a setting; `ratio` is official over ours, `max_abs_diff` compares losses.

    The headline comes last.
    """
    for name in ["short answers"] if options.quick else reversed(WIDTHS):
        with tempfile.TemporaryDirectory(prefix="c3po-step-") as scratch:
            yield {"name": "feedback_step", "setting": name, **_measure(WIDTHS[name], scratch, options)}


def _measure(widths: tuple[int, int], scratch: str, options: Any) -> dict[str, Any]:
    trainer = _trainer(widths, scratch, small=options.quick)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    weights = [p for p in trainer.model.parameters() if p.requires_grad]
    for i, weight in enumerate(weights):  # away from the start, where every margin is 0
        torch.nn.init.normal_(weight, std=0.01, generator=torch.Generator().manual_seed(i))

    steps: dict[str, Callable[[], Any]] = {
        "ours": lambda: trainer.compute_loss(trainer.model, dict(batch)),
        "official": lambda: official_loss(trainer.model, batch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    values: dict[str, float] = {}
    gradients: dict[str, list[Any]] = {}
    for turn in range(options.rounds + 1):
        for name, step in itertools.islice(itertools.cycle(steps.items()), turn % 2, turn % 2 + 2):
            trainer.model.zero_grad()
            began = time.perf_counter()
            loss = step()
            loss.backward()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - began)
            values[name] = loss.item()
            gradients[name] = [weight.grad.clone() for weight in weights]
    apart = [
        (a - b).abs().max().item() for a, b in zip(gradients["ours"], gradients["official"], strict=True)
    ]
    return {
        "ratio": median(o / u for o, u in zip(seconds["official"], seconds["ours"], strict=True)),
        "max_abs_diff": abs(values["ours"] - values["official"]),
        "gradient_max_abs_diff": max(apart),
        "ours_seconds": median(seconds["ours"]),
        "official_seconds": median(seconds["official"]),
    }


def _trainer(widths: tuple[int, int], scratch: str, small: bool) -> Any:
    """Our trainer on random rows of a random Llama, with LoRA, reference log-probabilities precomputed."""
    hidden, layers, words = (64, 2, 512) if small else (384, 8, 8192)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    draw = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(5, words, (n,), generator=draw).tolist()

    prompt, answer = widths
    pairs = [
        {"prompt_ids": ids(prompt), "chosen_ids": ids(answer + 2), "rejected_ids": ids(answer)}
        for _ in range(PAIRS)
    ]
    kept = {scope: [Row(ids(prompt), ids(answer)) for _ in range(KEPT)] for scope in ("near", "out")}
    checkpointing: dict[str, Any] = {CHECKPOINTING: False}
    args = ConstrainedDPOConfig(
        output_dir=scratch,
        beta=BETA,
        lambda_near=LAMBDA_NEAR,
        lambda_out=LAMBDA_OUT,
        constraint_batch_size=KEPT,
        per_device_train_batch_size=PAIRS,
        max_steps=1,
        precompute_ref_log_probs=True,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **checkpointing,
    )
    return ConstrainedDPOTrainer(
        model=LlamaForCausalLM(config),
        args=args,
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        train_dataset=Dataset.from_list(pairs),
        **kept,
    )


def official_loss(model: Any, batch: dict[str, Any]) -> Any:
    """RLVF eq. 5 with three policy and three reference forwards, full logits everywhere."""

    def logits(ids: Any, attention: Any, reference: bool) -> Any:
        off = model.disable_adapter() if reference else contextlib.nullcontext()
        with torch.set_grad_enabled(not reference), off:
            return model(input_ids=ids, attention_mask=attention, use_cache=False).logits

    def log_probs(values: Any, ids: Any, mask: Any) -> Any:
        labelled = values[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        return labelled * mask[:, 1:]

    ids, attention, mask = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    policy = log_probs(logits(ids, attention, False), ids, mask).sum(-1)
    reference = log_probs(logits(ids, attention, True), ids, mask).sum(-1)
    chosen, rejected = (policy - reference).chunk(2)
    loss = -logsigmoid(BETA * (chosen - rejected)).mean()
    for index, weight in enumerate((LAMBDA_NEAR, LAMBDA_OUT)):
        rows = batch["keep_scope"] == index
        ids, attention, labels = (batch[f"keep_{name}"][rows] for name in ("ids", "attention", "labels"))
        mask = (labels != -100).long()
        student = log_probs(logits(ids, attention, False), ids, mask)
        logits(ids, attention, True)  # the official code runs the teacher also where its weight is 0
        loss = loss - weight * student.sum() / mask[:, 1:].sum()
    return loss
