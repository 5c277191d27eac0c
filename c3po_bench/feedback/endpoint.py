"""OpenAI-compatible endpoints (vLLM, llama.cpp, ``transformers serve``, hosted ones), by way of `openai`.

The library retries what may pass (408, 409, 429, 5xx, time-outs, broken connections, replies that are no
completion) with exponential backoff, or after the server's Retry-After; then the call is a counted gap. What
will not pass (wrong key, unknown model) ends the run with one line; a call refused by a server that answers
others (too long, filtered) is a gap, too.
"""

import asyncio
import json
import logging
import os
import urllib.parse
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import openai

from c3po_bench.errors import UserError
from c3po_bench.feedback.calls import CallCache, Conversation, Reply, call_key
from c3po_bench.feedback.config import ChatConfig
from c3po_bench.feedback.context import SynthesisContext
from c3po_bench.masking import masked, remember
from c3po_bench.runtime import signals

log = logging.getLogger(__name__)
MOST_REFUSALS = 8  # refused calls, and none answered, after which it is the settings that are wrong
CUT = ("length", "content_filter")  # finish reasons of texts that stop in the middle
REFUSALS = (400, 413, 422)  # of one call, which others may not share
HTTP: Any = import_module(openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0])
"""The HTTP library that this version of `openai` is built on: it retries that library's errors."""
MOST_BYTES = 64 << 20  # of one reply
UNREADABLE = 599  # in place of 200, of a reply that is no completion: the library retries 500 and more


class EndpointChat:
    """Calls ``POST {base_url}/chat/completions``, at most `cfg.concurrency` at a time.

    Raises:
        UserError: for an address or a key that can't be one, and where the server's answer will not change.
    """

    def __init__(self, cfg: ChatConfig, context: SynthesisContext) -> None:
        if not cfg.base_url:
            raise UserError("this chat needs an endpoint: set its base_url, such as http://localhost:8000/v1")
        if not cfg.model:
            raise UserError(f"the endpoint {cfg.base_url} needs a model: set the chat's model")
        _check_url(cfg.base_url)
        _key(cfg.api_key_env)
        self.cfg, self.context = cfg, context
        self._reported = self._answered = False
        self._refused = 0

    def complete(self, stage: str, conversations: list[Conversation]) -> list[Reply | None]:
        """One reply for each conversation.

        None where every attempt failed (counted under ``failed_calls``).
        """
        cfg, cache = self.cfg, self.context.call_cache(stage)
        params: dict[str, Any] = {
            "model": cfg.model,
            "temperature": cfg.temperature,
            "top_p": cfg.top_p,
            "max_tokens": cfg.max_tokens,
        }
        keys = [call_key(stage=stage, server=cfg.base_url, messages=c, **params) for c in conversations]
        missing = {key: c for key, c in zip(keys, conversations, strict=True) if key not in cache}
        self._answered |= any(key in cache for key in keys)
        if missing and (reasons := asyncio.run(self._ask_all(missing, params, cache))):
            if self._refused and not self._answered:
                raise self._unusable(reasons[-1])
            self.context.counts["failed_calls"] += len(reasons)
            log.warning(
                "%s: %d of %d calls to %s failed after %d attempts and are left out (last: %s)",
                stage,
                len(reasons),
                len(missing),
                cfg.base_url,
                cfg.retries + 1,
                reasons[-1],
            )
        return [cache.reply(key) for key in keys]

    async def _ask_all(
        self, missing: Mapping[str, Conversation], params: dict[str, Any], cache: CallCache
    ) -> list[str]:
        """Make the calls and cache their replies; returns why some have none."""
        api_key, turn = _key(self.cfg.api_key_env), asyncio.Semaphore(self.cfg.concurrency)
        if not api_key:
            params = {**params, "extra_headers": {"Authorization": openai.Omit()}}

        async def ask(key: str, conversation: Conversation) -> str | None:
            async with turn:
                return await self._ask(client, {**params, "messages": conversation}, cache, key)

        async with openai.AsyncOpenAI(
            api_key=api_key or "none",  # the library wants one; no header carries it then
            base_url=self.cfg.base_url,
            timeout=self.cfg.timeout,
            max_retries=self.cfg.retries,
            http_client=_Connection(self._report, self.cfg.timeout),
        ) as client:
            calls = [asyncio.create_task(ask(*item)) for item in missing.items()]
            try:
                return [reason for reason in await asyncio.gather(*calls) if reason]
            finally:  # after an error or an interrupt nothing more is to be paid for
                for call in calls:
                    call.cancel()

    async def _ask(
        self, client: openai.AsyncOpenAI, body: dict[str, Any], cache: CallCache, key: str
    ) -> str | None:
        """Make one call and cache its reply; returns the reason when it is given up."""
        try:
            completion = await client.chat.completions.create(**body)
        except openai.APIConnectionError as error:
            return self._reason(error.__cause__ or error)
        except openai.APIStatusError as error:
            return self._failure(error)
        self._answered, choice = True, completion.choices[0]
        cache.put({key: Reply(choice.message.content or "", choice.finish_reason not in CUT)._asdict()})
        signals.check()
        return None

    def _failure(self, error: openai.APIStatusError) -> str:
        """Why a call is given up; `UserError` where others would fare no better."""
        code = error.status_code
        if _may_pass(code):
            return _status(error.response)
        reason = f"HTTP {code} to model {self.cfg.model!r}"
        if code in (401, 403):  # what the server says may quote the key
            raise UserError(
                f"{self.cfg.base_url} answered {reason}: put the key into ${self.cfg.api_key_env}"
            )
        reason += _explanation(error.body)
        if code not in REFUSALS:
            raise self._unusable(reason)
        self._report(reason)
        self._refused += 1
        if self._refused >= MOST_REFUSALS and not self._answered:
            raise self._unusable(reason)
        return reason

    def _report(self, failure: str | Exception) -> None:
        """The first failure is logged at once: all attempts of a call may take many minutes."""
        if not self._reported:
            reason = failure if isinstance(failure, str) else self._reason(failure)
            log.warning("%s: %s; up to %d attempts a call", self.cfg.base_url, reason, self.cfg.retries + 1)
        self._reported = True

    def _reason(self, error: BaseException) -> str:
        """Why a server could not be heard."""
        if "Timeout" in type(error).__name__:
            return (
                f"no answer within {self.cfg.timeout:g} s; a slow server needs a larger timeout, a lower max_tokens, or, "
                "where it answers one call at a time, concurrency=1"
            )
        return str(error) or type(error).__name__

    def _unusable(self, reason: str) -> UserError:
        return UserError(f"{self.cfg.base_url} answered {reason}: check base_url and model")


class _Connection(openai.DefaultAsyncHttpxClient):
    """The library's HTTP client, which reports failures and follows no redirect, as it may lead elsewhere.

    An attempt ends after `seconds` in all: the library's own limit is between two bytes, and an endpoint that
    drips keeps within it for ever. A reply that does not end is cut off at `MOST_BYTES`.
    """

    def __init__(self, report: Callable[[str | Exception], None], seconds: float) -> None:
        super().__init__(follow_redirects=False)
        self._report_failure, self._seconds = report, seconds

    async def _whole(self, *args: Any, **kwargs: Any) -> Any:
        """The response with all of its bytes, in time."""
        try:
            async with asyncio.timeout(self._seconds):
                response = await super().send(*args, **{**kwargs, "stream": True})
                response._content = await _bounded(response)  # as `aread` does, however many there are
                return response
        except TimeoutError as error:
            raise HTTP.ReadTimeout(f"no whole answer within {self._seconds:g} s") from error

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        """The response to one attempt, with another status where it is no completion."""
        try:
            response = await self._whole(*args, **kwargs)
        except Exception as error:  # whose class depends on the library's version
            self._report_failure(error)
            raise
        if response.is_success and not _is_completion(response.content):
            response.status_code = UNREADABLE
        if _may_pass(response.status_code):
            self._report_failure(_status(response))
        return response


async def _bounded(response: Any) -> bytes:
    """The bytes of a reply; a broken connection where they are too many."""
    parts, size = [], 0
    try:
        async for part in response.aiter_bytes():
            parts.append(part)
            if (size := size + len(part)) > MOST_BYTES:
                raise HTTP.ReadError(f"a reply of more than {MOST_BYTES >> 20} MiB")
    finally:
        await response.aclose()
    return b"".join(parts)


def _may_pass(code: int) -> bool:
    return code in (408, 409, 429) or code >= 500


def _status(response: Any) -> str:
    malformed = response.status_code == UNREADABLE
    return (
        f"malformed answer {masked(repr(response.content[:200]))[:64]}"
        if malformed
        else f"HTTP {response.status_code}"
    )


def _is_completion(content: bytes) -> bool:
    """Whether a reply has a text where the protocol puts it."""
    try:
        return isinstance(json.loads(content)["choices"][0]["message"]["content"], str)
    except (ValueError, LookupError, TypeError):
        return False


def _check_url(url: str) -> None:
    """`UserError` unless `url` says how to reach whom."""
    try:
        parts = urllib.parse.urlsplit(url)
        reachable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        reachable = False
    if not reachable or not url.isascii() or any(c.isspace() for c in url):
        raise UserError(
            f"base_url={url!r} is no address of an endpoint, such as http://localhost:8000/v1 or https://host/v1"
        )


def _key(variable: str) -> str:
    """The key without the blanks that a file leaves around it.

    `UserError`, which never shows it, for what no header takes.
    """
    key = os.environ.get(variable, "").strip()
    remember(key)
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"${variable} holds what no API key has (a line break, or a letter that is not ASCII): set it anew"
        )
    return key


def _explanation(body: object) -> str:
    """What a refusal says in one line: the protocol's ``message``, a FastAPI server's ``detail``, or nothing."""
    fields = body if isinstance(body, dict) else {"message": body}
    message = masked(" ".join(str(fields.get("message") or fields.get("detail") or "").split()))[:200]
    return f" ({message})" if message else ""
