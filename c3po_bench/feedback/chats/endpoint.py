"""Any OpenAI-compatible endpoint: vLLM, llama.cpp, ``transformers serve``, hosted services.

Failures that may pass (429, 5xx, time-outs, broken connections, answers that are no JSON) are retried with
exponential backoff and jitter, or after the server's Retry-After; then the call is a counted gap. Failures
that will not pass (wrong key, unknown model) end the run with one line; a call refused by a server that
answers others (too long, filtered) is a gap, too.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import random
import threading
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from c3po_bench.errors import UserError
from c3po_bench.feedback.call_cache import Reply, call_key

if TYPE_CHECKING:
    from c3po_bench.feedback.chats import Conversation
    from c3po_bench.feedback.config import ChatConfig
    from c3po_bench.feedback.workshop import Workshop

log = logging.getLogger(__name__)
LONGEST_WAIT = 60.0  # seconds
PATIENCE = 8  # refused calls, and none answered, after which it is the settings that are wrong
CUT = ("length", "content_filter")  # finish reasons of texts that stop in the middle


class PassingFailure(Exception):
    """A failure that may pass; `wait` is what the server asked for (seconds), if anything."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Refused(Exception):
    """One call that the server will not answer (too long, filtered), while it answers others."""


class EndpointChat:
    """Calls ``POST {base_url}/chat/completions``.

    `calls` counts requests sent, `gaps` calls that were given up.
    """

    def __init__(self, cfg: ChatConfig, workshop: Workshop) -> None:
        if not cfg.base_url:
            raise UserError("this chat needs an endpoint: set its base_url, such as http://localhost:8000/v1")
        if not cfg.model:
            raise UserError(f"the endpoint {cfg.base_url} needs a model: set the chat's model")
        _check_url(cfg.base_url)
        _key(cfg.api_key_env)
        self.cfg, self.workshop = cfg, workshop
        self.calls = 0
        self._said = self._answered = False
        self._refused = 0
        self._stop = threading.Event()
        self._count = threading.Lock()

    def complete(self, stage: str, conversations: list[Conversation]) -> list[Reply | None]:
        """One reply for each conversation.

        None where every attempt failed (counted under ``failed_calls``).
        """
        cache = self.workshop.call_cache(stage)
        params = self._parameters()
        keys = [call_key(stage=stage, server=self.cfg.base_url, messages=c, **params) for c in conversations]
        missing = list(dict.fromkeys(k for k in keys if k not in cache))
        self._answered |= any(k in cache for k in keys)
        if missing:
            asked = dict(zip(keys, conversations, strict=True))
            self._stop.clear()
            with ThreadPoolExecutor(max(1, min(self.cfg.concurrency, len(missing)))) as pool:
                jobs = {key: pool.submit(self._once, asked[key], params, cache, key) for key in missing}
                try:
                    failed = [f for f in (job.result() for job in jobs.values()) if f]
                    if failed and self._refused and not self._answered:
                        raise self._unusable(failed[-1])
                except BaseException:  # an interrupt, too: nothing more is to be paid for
                    self._stop.set()
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            if failed:
                self.workshop.count("failed_calls", len(failed))
                log.warning(
                    "%s: %d of %d calls to %s failed after %d attempts and are left out (last: %s)",
                    stage,
                    len(failed),
                    len(missing),
                    self.cfg.base_url,
                    self.cfg.retries + 1,
                    failed[-1],
                )
        return [cache.reply(key) for key in keys]

    def _parameters(self) -> dict[str, Any]:
        cfg = self.cfg
        return {
            "model": cfg.model,
            "temperature": cfg.temperature,
            "top_p": cfg.top_p,
            "max_tokens": cfg.max_tokens,
        }

    def _once(self, conversation: Conversation, params: dict[str, Any], cache: Any, key: str) -> str | None:
        """Make one call and record its answer; returns the last failure's reason when it is given up."""
        reason = ""
        for attempt in range(self.cfg.retries + 1):
            if self._stop.is_set():
                break
            try:
                reply = self._post({**params, "messages": conversation})
            except PassingFailure as failure:
                reason = str(failure)
                self._say_once(reason)
                if attempt < self.cfg.retries:
                    self._stop.wait(self._wait(attempt, failure.wait))
                continue
            except Refused as refusal:
                self._say_once(str(refusal))
                self._refused += 1
                if self._refused >= PATIENCE and not self._answered:
                    self._stop.set()
                    raise self._unusable(str(refusal)) from None
                return str(refusal)
            except UserError:
                self._stop.set()
                raise
            self._answered = True
            cache.put({key: reply._asdict()})
            return None
        return reason

    def _say_once(self, reason: str) -> None:
        """The first failure is told at once: all attempts of a call may take many minutes."""
        with self._count:
            first, self._said = not self._said, True
        if first:
            log.warning("%s: %s; up to %d attempts a call", self.cfg.base_url, reason, self.cfg.retries + 1)

    def _wait(self, attempt: int, asked: float | None) -> float:
        wait = self.cfg.backoff * 2**attempt * random.uniform(0.5, 1.5)
        return min(LONGEST_WAIT, wait if asked is None else max(asked, 0.0))

    def _post(self, body: dict[str, Any]) -> Reply:
        """One completion."""
        headers = {"Content-Type": "application/json"}
        if key := _key(self.cfg.api_key_env):
            headers["Authorization"] = f"Bearer {key}"
        url = f"{str(self.cfg.base_url).rstrip('/')}/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with self._count:
            self.calls += 1
        try:
            with urllib.request.urlopen(request, timeout=self.cfg.timeout) as response:
                raw = response.read()
        except urllib.error.HTTPError as error:
            raise self._http_failure(error) from None
        except TimeoutError:
            raise PassingFailure(
                f"no answer within {self.cfg.timeout:g} s; a slow server needs a larger timeout, a lower max_tokens, or, "
                "where it answers one call at a time, concurrency=1"
            ) from None
        except (OSError, http.client.HTTPException) as error:  # the latter: an answer that was cut off
            raise PassingFailure(str(getattr(error, "reason", error)) or type(error).__name__) from None
        try:
            choice = json.loads(raw)["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise PassingFailure(f"malformed answer {raw[:60]!r}") from None
        if not isinstance(text, str):
            raise PassingFailure("an answer without text")
        return Reply(text, choice.get("finish_reason") not in CUT)

    def _http_failure(self, error: urllib.error.HTTPError) -> Exception:
        if error.code in (408, 409, 425, 429) or error.code >= 500:
            wait = error.headers.get("Retry-After") if error.headers else None
            seconds = float(wait) if wait and wait.replace(".", "", 1).isdigit() else None
            return PassingFailure(f"HTTP {error.code}", seconds)
        said = f"HTTP {error.code} to model {self.cfg.model!r}"
        if error.code in (401, 403):  # what the server says may quote the key
            return UserError(f"{self.cfg.base_url} answered {said}: put the key into ${self.cfg.api_key_env}")
        reason = _reason(error)
        said += f" ({reason})" if reason else ""
        return Refused(said) if error.code in (400, 413, 422) else self._unusable(said)

    def _unusable(self, said: str) -> UserError:
        return UserError(f"{self.cfg.base_url} answered {said}: check base_url and model")


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
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"${variable} holds what no API key has (a line break, or a letter that is not ASCII): set it anew"
        )
    return key


def _reason(refusal: urllib.error.HTTPError) -> str:
    """What a refusal says in one line.

    ``error.message`` of the protocol, ``detail`` of FastAPI servers, or nothing.
    """
    try:
        body = json.loads(refusal.read())
        error = body.get("error", body)
        said = error if isinstance(error, str) else error.get("message") or error.get("detail")
    except (ValueError, AttributeError, OSError, http.client.HTTPException):
        return ""
    return " ".join(str(said or "").split())[:200]
