"""The arms of the feedback backend: who answers, with which adapters, to which wording of the prompt.

An arm's name is a key of `VOICES`, or a recipe's name, which may end in ``_joint`` (one adapter trained on
all pieces at once) or ``_mix`` (the pieces' adapters, concatenated). A new prompt-only arm is one line of
`VOICES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from c3po_bench.errors import UserError, unknown
from c3po_bench.feedback import instructions
from c3po_bench.feedback.config import FeedbackConfig
from c3po_bench.feedback.records import Feedback
from c3po_bench.feedback.tasks import SCOPE_OF
from c3po_bench.feedback.training.recipes import RECIPES, Plan, make_plan

JOINT, MIX = "_joint", "_mix"
UNPARSED = (
    "unparsed_reasoning"  # in the rows of answers that are scored with their reasoning, for want of a marker
)


@dataclass(frozen=True)
class Voice:
    """`wrap` words the prompt, `longer` multiplies the token limit.

    `read` takes the answer out of what was generated, or says None where it can't be told from the rest.

    `stored` says which text is looked up instead of generated: ``baseline`` or ``revised``.
    """

    wrap: Callable[[Feedback, str], str] | None = None
    read: Callable[[str], str | None] | None = None
    longer: int = 1
    stored: str | None = None
    about: str = ""


def read_reasoned(text: str) -> str | None:
    """What stands behind the marker, if the model wrote it."""
    return instructions.behind(text, instructions.ANSWER)


VOICES: dict[str, Voice] = {
    "base": Voice(stored="baseline", about="the model being tuned, without feedback"),
    "in_context": Voice(
        wrap=instructions.with_feedback, about="the feedback in every prompt (RLVF, section 5)"
    ),
    "in_context_cot": Voice(
        wrap=instructions.with_reasoning,
        read=read_reasoned,
        longer=2,
        about="decides first whether it applies",
    ),
    "revised": Voice(stored="revised", about="the ceiling: revised answers in scope, baseline elsewhere"),
}


def split_name(name: str) -> tuple[str, str]:
    """Recipe and way of several pieces (``""``, ``_joint`` or ``_mix``) of a tuned arm's name."""
    for suffix in (JOINT, MIX):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def arm_names() -> list[str]:
    """Every valid arm name."""
    return [*VOICES, *(f"{recipe}{suffix}" for recipe in RECIPES for suffix in ("", JOINT, MIX))]


def check_arms(
    names: list[str], cfg: FeedbackConfig, options: Mapping[str, Mapping[str, Any]], pieces: int
) -> None:
    """`UserError` for unknown arms, unknown options, options of arms not run, lone joint arms and what can't be mixed."""
    for name in names:
        if name not in arm_names():
            raise unknown("arm", name, arm_names())
        if split_name(name)[1] and pieces < 2:
            raise UserError(f"arm {name!r} is about several pieces: name at least two in feedback.pieces")
    for name, chosen in options.items():
        if name not in names:
            raise unknown("arm with options", name, names)
        if name in VOICES and chosen:
            raise UserError(f"arm {name!r} takes no options")
        if name not in VOICES:
            make_plan(split_name(name)[0], cfg, chosen)
    for name in names:
        plan = plan_of(name, cfg, options)
        if plan and split_name(name)[1] == MIX and (plan.cfg.lora.experts or plan.cfg.lora.routers):
            key = "experts" if plan.cfg.lora.experts else "routers"
            raise UserError(
                f"arm {name!r}: PEFT can't mix adapters of {key}: set feedback.lora.{key}=false, or take _joint"
            )


def plan_of(name: str, cfg: FeedbackConfig, options: Mapping[str, Mapping[str, Any]]) -> Plan | None:
    """How a tuned arm is trained; None for the others."""
    return None if name in VOICES else make_plan(split_name(name)[0], cfg, options.get(name))


def unworded(name: str, tasks: Iterable[str]) -> list[str]:
    """A note on the tasks whose prompts an arm that words prompts leaves as they are.

    Stock ones, which are no chats.
    """
    stock = [task for task in tasks if task not in SCOPE_OF]
    if name not in VOICES or VOICES[name].wrap is None or not stock:
        return []
    return [
        f"{name} answers {', '.join(stock)} without the feedback in the prompt: these scores are the base model's"
    ]
