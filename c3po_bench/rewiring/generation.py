"""Generation under another pathway: overridden at the last prompt token, or at every written token too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from c3po_bench.errors import UserError
from c3po_bench.rewiring.hook import override
from c3po_bench.rewiring.questions import Question
from c3po_bench.rewiring.states import Prompt

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from c3po_bench.rewiring.lm import RewiredLM

MAX_NEW_TOKENS = 256
IDS = ("prompt_ids", "stop_ids", "written_ids")


def generate(lm: RewiredLM, request: Instance) -> str:
    """Greedy answer to a `generate_until` request.

    `until` and `max_gen_toks` (by any name that lm-eval takes) are honoured.

    One that is not tokenized as lm-eval would brings its ids along (`prompt_ids`), and those that end an
    answer (`stop_ids`). It gets those of the answer back, in the list `written_ids`.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    arguments: Any = request.args
    context, options = arguments
    rewirer, hf = lm.rewirer, lm.tokenizer.lm
    engine = rewirer.engine
    asked: Any = normalize_gen_kwargs(
        {name: value for name, value in options.items() if name not in IDS}, MAX_NEW_TOKENS
    )
    new_tokens, stops = int(asked["max_gen_toks"]), [stop for stop in asked["until"] if stop]
    if new_tokens >= hf.max_length:
        raise UserError(
            f"task {request.task_name}: {new_tokens} tokens to write leave no room for a prompt in {hf.max_length}"
        )
    ids = options.get("prompt_ids") or hf.tok_encode(context)[-(hf.max_length - new_tokens) :]
    ends = options.get("stop_ids") or end_ids(engine.model, hf)
    key = (str(request.task_name), int(request.doc_id or 0))
    prompt = Prompt(tuple(ids), ((hf.eot_token_id,),))
    question = Question(key, request.doc["question"], (prompt,), (), seed_key=request.doc["key"])
    mixture, details = rewirer.mixture_for(question)
    model, layers = engine.model, engine.layers
    tokens = torch.tensor([ids], device=engine.device)
    cache, written = None, []
    with torch.no_grad():
        for step in range(new_tokens):
            inputs: dict[str, Any] = {
                "input_ids": tokens,
                "past_key_values": cache,
                "use_cache": True,
                "logits_to_keep": 1,
            }
            if mixture is not None and (step == 0 or engine.position == "continuation"):
                last = torch.tensor([tokens.shape[1] - 1], device=engine.device)
                with override(engine.family, model, layers, last, mixture):
                    out = model(**inputs)
            else:
                out = model(**inputs)
            cache = out.past_key_values
            tokens = out.logits[:, -1:].argmax(dim=-1)
            if int(tokens) in ends:
                break
            written.append(int(tokens))
            text = hf.tok_decode(written)
            if any(stop in text for stop in stops):
                break
    options.get("written_ids", []).extend(written)
    text = decoded(hf, written) if "prompt_ids" in options else hf.tok_decode(written)
    for stop in stops:
        text = text.split(stop)[0]
    if details:
        lm._details[question.key] = details
    return text


def end_ids(model: Any, hf: Any) -> list[int]:
    """What ends an answer in lm-eval.

    The tokenizer's EOS token and all that the model's generation config names.
    """
    own = getattr(model.generation_config, "eos_token_id", None)
    return [hf.eot_token_id, *(own if isinstance(own, list) else [] if own is None else [own])]


def decoded(hf: Any, ids: list[int]) -> str:
    """The text of written ids, its spaces as they are."""
    return hf.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
