"""The arms of the feedback backend: with which adapters they answer, and to which variant of the prompt.

An arm's name is a key of `PROMPT_VARIANTS`, or a recipe's name, which may end in ``_joint`` (one adapter
trained on all pieces at once) or ``_mix`` (the pieces' adapters, concatenated). A new prompt-only arm is one
line of `PROMPT_VARIANTS`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from c3po_bench.contract import ArmRow
from c3po_bench.errors import UserError, unknown
from c3po_bench.feedback.calls import text_after
from c3po_bench.feedback.config import FeedbackConfig
from c3po_bench.feedback.sentences import Feedback
from c3po_bench.feedback.training.recipes import RECIPES, Plan, make_plan
from c3po_bench.registry import Registry
from c3po_bench.store.versions import arm_version

JOINT, MIX = "_joint", "_mix"
UNPARSED = "unparsed_reasoning"
"""In the rows of answers that are scored with their reasoning, for want of a marker."""
"""The phase in which the base model's answers are written, which all arms share and none is charged for."""
ANSWER = "ANSWER:"  # the answer of the chain-of-thought arm follows


@dataclass(frozen=True)
class PromptVariant:
    """How an arm is asked, and where its answer comes from.

    Attributes:
        wrap: puts the feedback into the prompt.
        read: takes the answer out of what was generated, or says None where it can't be told from the rest.
        length: multiplies the token limit.
        stored: the text that is looked up instead of generated, ``baseline`` or ``revised``.
        about: one line for the docs.
    """

    wrap: Callable[[Feedback, str], str] | None = None
    read: Callable[[str], str | None] | None = None
    length: int = 1
    stored: str | None = None
    about: str = ""


def with_feedback(feedback: Feedback, prompt: str) -> str:
    """The in-context arm: the prompt, and the feedback to be followed where it applies."""
    return f"{prompt}\n\n(A standing wish of mine, to be followed only if it applies to this message: {feedback.content})"


def with_reasoning(feedback: Feedback, prompt: str) -> str:
    """The chain-of-thought arm: decide first whether the feedback applies."""
    return (
        f"A standing wish of mine: {feedback.content}\n\nMy message: {prompt}\n\n"
        "First decide in one sentence whether the wish applies to this message. Then write "
        f"{ANSWER} and your answer, which follows the wish if it applies and ignores it if it does not."
    )


def read_reasoned(text: str) -> str | None:
    """What stands behind the marker, if the model wrote it."""
    return text_after(text, ANSWER)


PROMPT_VARIANTS: dict[str, PromptVariant] = {
    "base": PromptVariant(stored="baseline", about="the model being tuned, without feedback"),
    "base_again": PromptVariant(about="the same, written once more in other batches: what changes is noise"),
    "in_context": PromptVariant(wrap=with_feedback, about="the feedback in every prompt (RLVF, section 5)"),
    "in_context_cot": PromptVariant(
        wrap=with_reasoning,
        read=read_reasoned,
        length=2,
        about="decides first whether it applies",
    ),
    "revised": PromptVariant(
        stored="revised", about="the ceiling: revised answers in scope, baseline elsewhere"
    ),
}


def split_name(name: str) -> tuple[str, str]:
    """Recipe and way of several pieces (``""``, ``_joint`` or ``_mix``) of a tuned arm's name."""
    for suffix in (JOINT, MIX):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


def _title(name: str) -> str:
    """What a reader calls a recipe: its name, known abbreviations in capitals."""
    words = {"c3po": "C3PO", "dpo": "DPO", "scd": "SCD", "sft": "SFT", "kl": "with KL", "nll": "+ NLL"}
    title = " ".join(words.get(word, word) for word in name.split("_"))
    return {
        "SCD negatives": "SCD with negatives",
        "C3PO no near": "C3PO without near scope",
        "C3PO no out": "C3PO without out of scope",
        "in context cot": "in context, chain of thought",
    }.get(title, title)


def _rows() -> Iterator[ArmRow]:
    roles = {"base": "base", "base_again": "repeat", "revised": "ceiling"}
    for name, variant in PROMPT_VARIANTS.items():
        again = name == "base_again"
        role = roles.get(name, "baseline")
        yield ArmRow(name, _title(name), role, variant.about, passes=0.0, other_batches=again)
    for name, recipe in RECIPES.items():
        role = "method" if name.startswith("c3po") else "baseline"
        row = ArmRow(name, _title(name), role, recipe.source, builds="recipe", passes=0.0)
        yield row
        for suffix in (JOINT, MIX):
            yield replace(row, name=name + suffix, title=f"{row.title} {suffix[1:]}")


ARMS: Registry[ArmRow] = Registry(
    "arm", {row.name: replace(row, version=arm_version(row.name)) for row in _rows()}
)


def check_arms(
    names: list[str], cfg: FeedbackConfig, options: Mapping[str, Mapping[str, Any]], n_feedbacks: int
) -> None:
    """Refuse what cannot be run.

    Raises:
        UserError: for unknown arms and options, options of arms that are not run, joint arms of one piece,
            and adapters that can't be mixed.
    """
    for name in options:
        if name not in names:
            raise unknown("arm with options", name, names)
    for name in names:
        ARMS.check(name)
        if split_name(name)[1] and n_feedbacks < 2:
            raise UserError(f"arm {name!r} is about several pieces: name at least two in feedback.pieces")
        if name in PROMPT_VARIANTS and options.get(name):
            raise UserError(f"arm {name!r} takes no options")
        plan = plan_of(name, cfg, options)
        if plan and split_name(name)[1] == MIX and (plan.cfg.lora.experts or plan.cfg.lora.routers):
            key = "experts" if plan.cfg.lora.experts else "routers"
            raise UserError(
                f"arm {name!r}: PEFT can't mix adapters of {key}: set feedback.lora.{key}=false, or take _joint"
            )


def plan_of(name: str, cfg: FeedbackConfig, options: Mapping[str, Mapping[str, Any]]) -> Plan | None:
    """How a tuned arm is trained; None for the others."""
    return None if name in PROMPT_VARIANTS else make_plan(split_name(name)[0], cfg, options.get(name))
