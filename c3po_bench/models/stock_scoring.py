"""Stock scoring: items answered by lm-evaluation-harness' own `HFLM` over a loaded model.

For arms that change the model and nothing else. The only place that turns items back into lm-eval's requests.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from c3po_bench.contract import CHOICES, Answer, Item
from c3po_bench.models.encoding import decoding


class StockScorer:
    """Answers items as `lm_eval --model hf` does."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, max_length: int | None = None):
        """`max_length`: tokens that the model reads of an item; by default what its config says."""
        kind: Any = HFLM
        logger = logging.getLogger("lm_eval.models.huggingface")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it warns that it was given a loaded model, as is meant here
        self.lm = kind(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length)
        logger.setLevel(level)

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """The answers to one chunk of items of one kind, in order."""
        if items[0].kind == CHOICES:
            # two options of one text would differ in the last digits, by their places in a batch, and these would choose
            pairs = list(dict.fromkeys((n, pair) for n, item in enumerate(items) for pair in item.requests))
            requests = [_request(items[n], "loglikelihood", pair) for n, pair in pairs]
            found = dict(zip(pairs, self.lm.loglikelihood(requests, disable_tqdm=True), strict=True))
            scores = {pair: (float(score), bool(greedy)) for pair, (score, greedy) in found.items()}
            return [
                Answer(scores=tuple(scores[n, pair] for pair in item.requests))
                for n, item in enumerate(items)
            ]
        plain = [item for item in items if item.prompt_ids is None]
        requests = [_request(item, "generate_until", (item.prompt, _settings(item))) for item in plain]
        texts = iter(self.lm.generate_until(requests, disable_tqdm=True) if requests else [])
        return [Answer(text=next(texts)) if item.prompt_ids is None else self._write(item) for item in items]

    def _write(self, item: Item) -> Answer:
        """The greedy answer to a rendered chat."""
        prompt, stops = torch.tensor([item.prompt_ids], device=self.lm.device), list(item.stop_ids)
        most = int(item.decoding["max_gen_toks"])
        output = self.lm.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=stops[0],
        )
        written = [i for i in output[0, prompt.shape[1] :].tolist() if i not in stops]
        text = self.lm.tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Answer(text=text, token_ids=tuple(written), finished=len(written) < most)


def _settings(item: Item) -> dict[str, Any]:
    """How an answer is written, in lm-eval's words: what every arm obeys and nothing else."""
    most, stops = decoding(item)
    return {"until": stops, "max_gen_toks": most, "do_sample": False}


def _request(item: Item, kind: Any, arguments: tuple[Any, Any]) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=(*item.id, 1))
