"""From texts to token ids, by the tokenizer's own chat template and nothing else.

The prompt is tokenized with the generation prompt, the completion on its own behind it: these are exactly the
ids that the model sees when it answers, so training, scoring and generation agree token by token.
"""

from __future__ import annotations

from typing import Any

_SENTINEL = "sentinel17"


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The ids of one user turn, ready for the answer.

    A tokenizer without chat template gets the plain text and a newline.
    """
    if not tokenizer.chat_template:
        return list(tokenizer(prompt + "\n").input_ids)
    messages = [{"role": "user", "content": prompt}]
    return list(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True).input_ids
    )


def turn_end_ids(tokenizer: Any) -> list[int]:
    """The ids that end an answer.

    What the template puts behind it up to its first special token, else the EOS token.
    """
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SENTINEL}]
        tail = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(_SENTINEL)[2]
        ids = list(tokenizer(tail, add_special_tokens=False).input_ids)
        for position, token in enumerate(ids):
            if token in tokenizer.all_special_ids:
                return ids[: position + 1]
    return [tokenizer.eos_token_id]


def completion_ids(tokenizer: Any, completion: str, finished: bool = True) -> list[int]:
    """The ids of an answer; an answer that was cut at the token limit gets no end, so that no model learns to stop there."""
    ids = list(tokenizer(completion, add_special_tokens=False).input_ids)
    return ids + (turn_end_ids(tokenizer) if finished else [])


def stop_ids(tokenizer: Any, model: Any) -> list[int]:
    """The ids at which generation stops: the model's own and the one that ends a turn."""
    own = getattr(model.generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    return sorted({i for i in [*own, tokenizer.eos_token_id, turn_end_ids(tokenizer)[-1]] if i is not None})
