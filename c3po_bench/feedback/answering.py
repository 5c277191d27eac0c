"""How a local model is asked and answers: token ids in, texts out, the same at every run.

Texts become ids by the tokenizer's own chat template and nothing else. The prompt is tokenized with the
generation prompt, the completion on its own behind it: these are exactly the ids that the model sees when it
answers, so training, scoring and generation agree token by token.

Batches are laid out from the whole list of prompts, not from what is still missing, so a killed and resumed
run pads each prompt exactly as an uninterrupted one does. Each row of a batch draws from random numbers of
its own, so what a prompt is answered does not depend on the prompts beside it.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from c3po_bench.errors import UserError, cause
from c3po_bench.feedback.config import GenerationConfig
from c3po_bench.runtime.resources import in_halves

_SENTINEL = "sentinel17"
TOP_K = 50  # RLVF, appendix A


def chat_ids(tokenizer: Any, conversation: Sequence[dict[str, str]]) -> list[int]:
    """The ids of a conversation, ready for the answer.

    A tokenizer without chat template gets the plain texts, a line each.
    """
    if not tokenizer.chat_template:
        return list(tokenizer("\n".join(turn["content"] for turn in conversation) + "\n").input_ids)
    return list(_templated(tokenizer, conversation, add_generation_prompt=True, return_dict=True).input_ids)


def _templated(tokenizer: Any, conversation: Sequence[dict[str, str]], **settings: Any) -> Any:
    """What the tokenizer's chat template makes of a conversation.

    Raises:
        UserError: if the template refuses it or fails.
    """
    try:
        return tokenizer.apply_chat_template(conversation, **settings)
    except Exception as error:  # a template is code, and raises what it likes
        turns = ", ".join(turn["role"] for turn in conversation)
        raise UserError(
            f"the model's chat template (chat_template.jinja or tokenizer_config.json) fails at a conversation of the turns "
            f"{turns} ({cause(error)}): mend the template, or take it out to be asked in plain text"
        ) from error


def check_chat(tokenizer: Any) -> None:
    """`UserError` for a tokenizer that can't ask: its template fails or drops what is said, or nothing ends an answer."""
    question = [{"role": "user", "content": _SENTINEL}]
    if tokenizer.chat_template and _SENTINEL not in _templated(tokenizer, question, tokenize=False):
        raise UserError(
            "the model's chat template (chat_template.jinja or tokenizer_config.json) leaves out what is asked"
        )
    if turn_end_ids(tokenizer)[-1] is None:
        raise UserError(
            "the model's tokenizer has no EOS token, which ends an answer: name it in tokenizer_config.json"
        )


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The ids of one user turn, ready for the answer."""
    return chat_ids(tokenizer, [{"role": "user", "content": prompt}])


def turn_end_ids(tokenizer: Any) -> list[int]:
    """The ids that end an answer.

    What the template puts behind it up to its first special token, else the EOS token.
    """
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SENTINEL}]
        tail = _templated(tokenizer, messages, tokenize=False).rpartition(_SENTINEL)[2]
        ids = list(tokenizer(tail, add_special_tokens=False).input_ids)
        for position, token in enumerate(ids):
            if token in tokenizer.all_special_ids:
                return ids[: position + 1]
    return [tokenizer.eos_token_id]


def completion_ids(tokenizer: Any, completion: str, finished: bool = True) -> list[int]:
    """The ids of an answer.

    One that was cut at the token limit gets no end, so that no model learns to stop there.
    """
    ids = list(tokenizer(completion, add_special_tokens=False).input_ids)
    return ids + (turn_end_ids(tokenizer) if finished else [])


def stop_ids(tokenizer: Any, model: Any) -> list[int]:
    """The ids at which generation stops: the model's own and the one that ends a turn."""
    own = getattr(model.generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    return sorted({i for i in [*own, tokenizer.eos_token_id, turn_end_ids(tokenizer)[-1]] if i is not None})


@dataclass(frozen=True)
class Answer:
    """One answer: `finished` is false when it was cut at the token limit.

    `tokens` counts what was generated.
    """

    text: str
    finished: bool
    tokens: int


def batches(prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Indices of the prompts, batched by length (longest first)."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), list(prompts[i]), i))
    return [order[start : start + size] for start in range(0, len(order), size)]


def answer_batch(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], cfg: GenerationConfig, seed: int = 0
) -> list[Answer]:
    """The answers to one batch of prompts (token ids), padded on the left.

    Sampling draws from `seed` and the prompt.
    """
    import torch
    from transformers import LogitsProcessorList

    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    stops = stop_ids(tokenizer, model)
    draws = LogitsProcessorList([_check_scores, *(_draws(prompts, cfg, seed) if cfg.temperature > 0 else [])])
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=cfg.max_new_tokens,
            eos_token_id=stops,
            pad_token_id=pad,
            do_sample=False,
            logits_processor=draws,
        )
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
    """The answers to all prompts.

    Batches with nothing missing in `known` are skipped; `done` is called with the new answers of each
    finished one.
    """
    answers: list[Answer | None] = list(known) if known is not None else [None] * len(prompts)
    for batch in batches(prompts, cfg.batch_size):
        if all(answers[i] is not None for i in batch):
            continue
        fresh = in_halves(
            lambda part: answer_batch(model, tokenizer, part, cfg, seed),
            [prompts[i] for i in batch],
            "prompts",
            lambda prompt: f"{len(prompt)} tokens, {cfg.max_new_tokens} more to write",
        )
        new = {i: answer for i, answer in zip(batch, fresh, strict=True) if answers[i] is None}
        for i, answer in new.items():
            answers[i] = answer
        if done is not None:
            done(new)
    return [answer for answer in answers if answer is not None]


def settings(cfg: GenerationConfig) -> dict[str, Any]:
    """What of `cfg` decides an answer: everything but the batches; and how a sampled one is drawn."""
    return {k: v for k, v in asdict(cfg).items() if k != "batch_size"} | (
        {"draws": "by row"} if cfg.temperature > 0 else {}
    )


def _check_scores(input_ids: Any, scores: Any) -> Any:
    """The scores of the next token as they are.

    Raises:
        UserError: where one is NaN: the highest of such scores is no answer.
    """
    if scores.isnan().any():
        step = input_ids.shape[1]
        raise UserError(
            f"the model's logits are NaN (at token {step} of a prompt and its answer): try model.dtype=float32"
        )
    return scores


def _draws(prompts: Sequence[Sequence[int]], cfg: GenerationConfig, seed: int) -> list[Any]:
    """Processors after which the highest score is a sample.

    Gumbel noise, from each row's own generator, does that.
    """
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    generators = [torch.Generator().manual_seed(_draw_seed(prompt, seed)) for prompt in prompts]

    def add_noise(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        waits = torch.stack([torch.empty(scores.shape[-1]).exponential_(generator=g) for g in generators])
        return scores - waits.log().to(scores)

    return [
        TemperatureLogitsWarper(cfg.temperature),
        TopKLogitsWarper(TOP_K),
        TopPLogitsWarper(cfg.top_p),
        add_noise,
    ]


def _draw_seed(prompt: Sequence[int], seed: int) -> int:
    return int(hashlib.sha256(repr((seed, list(prompt))).encode()).hexdigest()[:8], 16)
