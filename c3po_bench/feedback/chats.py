"""Who writes free text: a chat model behind an endpoint, or a local one.

A chat is a class with ``complete(stage, conversations) -> list[Reply | None]`` (None is a counted gap). A new
one is one line of `CHATS`.
"""

import contextlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from c3po_bench.errors import UserError
from c3po_bench.feedback.answering import Answer, answer_all, chat_ids, settings
from c3po_bench.feedback.calls import Conversation, Reply, call_key
from c3po_bench.feedback.config import ChatConfig, GenerationConfig
from c3po_bench.feedback.context import SynthesisContext
from c3po_bench.models.cache import folder_hash
from c3po_bench.registry import Registry


class Chat(Protocol):
    """Answers conversations, remembering every reply in the cache of its stage."""

    def complete(self, stage: str, conversations: list[Conversation]) -> list[Reply | None]:
        """One reply for each conversation, in order."""
        ...


class LocalChat:
    """A local transformers model, in batches.

    `cfg.model` null means the model being tuned (without any adapter).
    """

    def __init__(self, cfg: ChatConfig, context: SynthesisContext) -> None:
        self.cfg, self.context = cfg, context

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        """Model and tokenizer, loaded at the first use."""
        subject = self.context.subject
        if not self.cfg.model:
            return subject.model, subject.tokenizer
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.cfg.model, trust_remote_code=False)
            model: Any = AutoModelForCausalLM.from_pretrained(
                self.cfg.model, dtype="auto", trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"the chat model {self.cfg.model!r} can't be loaded: {str(error).splitlines()[0][:120]}"
            ) from error
        return model.to(subject.model.device).eval(), tokenizer

    @cached_property
    def _identity(self) -> str:
        """What identifies the model: the files of a folder, wherever it is; the name of one from the hub."""
        if not self.cfg.model:
            return self.context.subject.hash
        folder = Path(self.cfg.model)
        return folder_hash(folder) if folder.is_dir() else self.cfg.model

    def complete(self, stage: str, conversations: list[Conversation]) -> list[Reply | None]:
        """One reply for each conversation."""
        cache, seed = self.context.call_cache(stage), self.context.seed
        generation = GenerationConfig(
            max_new_tokens=self.cfg.max_tokens,
            temperature=self.cfg.temperature,
            top_p=self.cfg.top_p,
            batch_size=self.context.cfg.answers.batch_size,
        )
        params = settings(generation) | ({"seed": seed} if self.cfg.temperature > 0 else {})
        keys = [call_key(stage=stage, model=self._identity, messages=c, params=params) for c in conversations]
        if any(key not in cache for key in keys):
            model, tokenizer = self._model
            known = [r and Answer(r.text, r.finished, 0) for r in map(cache.reply, keys)]

            def keep(answers: dict[int, Answer]) -> None:
                cache.put((keys[i], Reply(a.text, a.finished)._asdict()) for i, a in answers.items())

            with contextlib.nullcontext() if self.cfg.model else self.context.subject.unadapted():
                prompts = [chat_ids(tokenizer, c) for c in conversations]
                answer_all(model, tokenizer, prompts, generation, seed, known, keep)
        return [cache.reply(key) for key in keys]


CHATS: Registry[Callable[[ChatConfig, SynthesisContext], Chat]] = Registry(
    "chat kind",
    # few runs need an endpoint, whose library is slow to import
    {"openai": "c3po_bench.feedback.endpoint:EndpointChat", "transformers": LocalChat},
)


def open_chat(cfg: ChatConfig, context: SynthesisContext) -> Chat:
    """The chat that `cfg.kind` names."""
    return CHATS[cfg.kind](cfg, context)
