"""A local transformers model as chat, in batches: the model being tuned itself, or another one by path."""

from __future__ import annotations

import contextlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c3po_bench.errors import UserError
from c3po_bench.feedback.answering import Answer, answer_all, settings
from c3po_bench.feedback.call_cache import Reply, call_key
from c3po_bench.feedback.config import GenerationConfig
from c3po_bench.models.loading import folder_hash

if TYPE_CHECKING:
    from c3po_bench.feedback.chats import Conversation
    from c3po_bench.feedback.config import ChatConfig
    from c3po_bench.feedback.workshop import Workshop


class LocalChat:
    """`cfg.model` null means the model being tuned (without any adapter)."""

    def __init__(self, cfg: ChatConfig, workshop: Workshop) -> None:
        self.cfg, self.workshop = cfg, workshop
        self._loaded: tuple[Any, Any] | None = None

    def _model(self) -> tuple[Any, Any]:
        """Model and tokenizer, loaded at the first use."""
        if self._loaded is None and not self.cfg.model:
            self._loaded = self.workshop.subject.model, self.workshop.subject.tokenizer
        if self._loaded is None and self.cfg.model:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(self.cfg.model)
                model = AutoModelForCausalLM.from_pretrained(self.cfg.model, dtype="auto")
            except (OSError, ValueError) as error:
                raise UserError(
                    f"the chat model {self.cfg.model!r} can't be loaded: {str(error).splitlines()[0][:120]}"
                ) from error
            self._loaded = model.to(self.workshop.subject.model.device).eval(), tokenizer
        assert self._loaded is not None
        return self._loaded

    @cached_property
    def _who(self) -> str:
        """What identifies the model: the files of a folder, wherever it is; the name of one from the hub."""
        if not self.cfg.model:
            return self.workshop.subject.hash
        folder = Path(self.cfg.model)
        return folder_hash(folder) if folder.is_dir() else self.cfg.model

    def complete(self, stage: str, conversations: list[Conversation]) -> list[Reply | None]:
        """One reply for each conversation."""
        cache = self.workshop.call_cache(stage)
        generation = GenerationConfig(
            max_new_tokens=self.cfg.max_tokens,
            temperature=self.cfg.temperature,
            top_p=self.cfg.top_p,
            batch=self.workshop.cfg.answers.batch,
        )
        params = settings(generation) | ({"seed": self.workshop.seed} if self.cfg.temperature > 0 else {})
        keys = [call_key(stage=stage, model=self._who, messages=c, params=params) for c in conversations]
        if any(key not in cache for key in keys):
            model, tokenizer = self._model()
            prompts = [_ids(tokenizer, c) for c in conversations]
            known = [Answer(r.text, r.finished, 0) if (r := cache.reply(k)) else None for k in keys]
            with contextlib.nullcontext() if self.cfg.model else self.workshop.subject.unadapted():
                answer_all(
                    model,
                    tokenizer,
                    prompts,
                    generation,
                    self.workshop.seed,
                    known,
                    lambda found: cache.put(
                        (keys[i], Reply(a.text, a.finished)._asdict()) for i, a in found.items()
                    ),
                )
        return [cache.reply(key) for key in keys]


def _ids(tokenizer: Any, conversation: Conversation) -> list[int]:
    if not tokenizer.chat_template:
        return list(tokenizer("\n".join(turn["content"] for turn in conversation) + "\n").input_ids)
    return list(
        tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True).input_ids
    )
