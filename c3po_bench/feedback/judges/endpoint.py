"""A model as judge, asked in both orders at temperature 0.

The two scores are averaged and their disagreement is reported.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from c3po_bench.feedback import instructions
from c3po_bench.feedback.chats import open_chat
from c3po_bench.feedback.judges import Case

if TYPE_CHECKING:
    from c3po_bench.feedback.workshop import Workshop

_MARKER = re.compile(r"(?<![^\W_])score[\s*_`]*:[\s*_`\"(\[]*(?=[-+]?\d)", re.IGNORECASE)
_WHOLE = re.compile(  # neither 15 nor 1.5, on no other scale (4/10), and no range (4-5)
    r"([1-5])(?![\w%]|[.,]\d)(?!\W{0,3}(?:/|of|out of) *(?!5\b)\d)(?! *(?:[-\u2013 ]|or|to) *\d)",
    re.IGNORECASE,
)


def parse_score(text: str | None) -> int | None:
    """The whole number, 1 to 5, behind the last marker.

    None for anything else, since a guess could turn the sign.
    """
    *before, said = _MARKER.split(text or "")
    whole = _WHOLE.match(said) if before else None
    return int(whole[1]) if whole else None


def _key(case: Case) -> tuple[str, ...]:
    return case.piece.id, case.prompt, case.response, case.baseline


class EndpointJudge:
    """g(x, y, baseline) = (score - 3) / 2 with the baseline first; the other order has its sign turned."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        self.chat = open_chat(workshop.cfg.judge.chat, workshop)
        self._known: dict[tuple[str, ...], float | None] = {}  # judged by this process: a gap is counted once
        self._second: list[
            float
        ] = []  # by comparison: how much better the second answer came out, over both orders

    def scores(self, cases: Sequence[Case]) -> list[float | None]:
        """Scores in [-1, 1]; equal answers score 0 unasked, an order without a number leaves the other one."""
        differing = {_key(c): c for c in cases if c.response.strip() != c.baseline.strip()}
        asked = {key: c for key, c in differing.items() if key not in self._known}
        if asked:
            forward = [instructions.judge(c.piece, c.prompt, c.baseline, c.response) for c in asked.values()]
            backward = [instructions.judge(c.piece, c.prompt, c.response, c.baseline) for c in asked.values()]
            replies = self.chat.complete("judge", forward + backward)
            numbers = [parse_score(reply.text if reply else None) for reply in replies]
            self.workshop.count("unparsed_judgements", sum(n is None for n in numbers))
            pairs = zip(numbers[: len(asked)], numbers[len(asked) :], strict=True)
            self._known |= {key: self._combine(*pair) for key, pair in zip(asked, pairs, strict=True)}
        return [self._known[_key(c)] if _key(c) in differing else 0.0 for c in cases]

    def _combine(self, forward: int | None, backward: int | None) -> float | None:
        signed = [] if forward is None else [(forward - 3) / 2]
        signed += [] if backward is None else [-(backward - 3) / 2]
        if forward is not None and backward is not None:
            self._second.append((forward + backward - 6) / 4)
        return sum(signed) / len(signed) if signed else None

    def report(self) -> dict[str, float]:
        """``judge_position_bias`` in [-1, 1]: how much the second place is favored, 0 is fair."""
        if not self._second:
            return {}
        return {"judge_position_bias": sum(self._second) / len(self._second)}
