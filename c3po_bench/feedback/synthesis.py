"""From one piece to training and test data, stage by stage.

Every finished call is cached and never made again.

Stages (RLVF, arXiv 2402.10893, section 4): categories, in-scope prompts, near-scope prompts, out-of-scope
prompts, the answers of the model being tuned, and revised answers for the prompts in scope. Failed calls are
counted and left out.
"""

import hashlib
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from c3po_bench.errors import UserError
from c3po_bench.feedback.answering import Answer, answer_all, prompt_ids, settings
from c3po_bench.feedback.calls import CallCache, call_key
from c3po_bench.feedback.context import SynthesisContext, bare
from c3po_bench.feedback.generators import GENERATORS, general_prompts
from c3po_bench.feedback.revisers import Draft, open_reviser
from c3po_bench.feedback.sentences import Feedback
from c3po_bench.runtime.console import Progress

log = logging.getLogger(__name__)
SCOPES = ("in", "near", "out")


@dataclass(frozen=True)
class Example:
    """One prompt with the base model's answer. `split` is ``train``, ``validation`` or ``test``.

    `revised` is there in scope only, and only where the revision worked.
    """

    scope: str
    category: str
    split: str
    prompt: str
    baseline: Answer | None = None
    revised: str | None = None
    revised_finished: bool = True


@dataclass(frozen=True)
class FeedbackDataset:
    """Everything made from one piece."""

    feedback: Feedback
    examples: tuple[Example, ...]

    def select(self, scope: str, split: str) -> list[Example]:
        """The examples of one scope and split, in a fixed order."""
        return [e for e in self.examples if e.scope == scope and e.split == split]

    def digest(self) -> str:
        """A hash of what training sees."""
        seen = [asdict(e) for e in self.examples if e.split != "test"]
        return hashlib.sha256(json.dumps([self.feedback.id, seen], sort_keys=True).encode()).hexdigest()[:16]


def synthesize(
    feedbacks: Sequence[Feedback], context: SynthesisContext, tests: bool = True
) -> list[FeedbackDataset]:
    """The data of every piece.

    Prompts first, so that the model answers all pieces' together, those of the test first. Without `tests`
    the test prompts are neither answered nor revised: trainings see none of them.
    """
    drafts = write_all(feedbacks, context)
    everything = [e for examples in drafts for e in examples]
    answers: dict[str, Answer] = {}
    for tested in (True, False) if tests else (False,):
        prompts = [e.prompt for e in everything if (e.split == "test") is tested]
        answers |= answer_prompts(prompts, context, Progress())
    datasets = []
    for feedback, examples in zip(feedbacks, drafts, strict=True):
        answered = [replace(e, baseline=answers.get(e.prompt)) for e in examples]
        datasets.append(FeedbackDataset(feedback, tuple(revise(feedback, answered, context))))
    return datasets


def write_tests(feedbacks: Sequence[Feedback], context: SynthesisContext) -> list[FeedbackDataset]:
    """The test examples alone, unanswered: all that tasks need, and arms that are not trained."""
    drafts = zip(feedbacks, write_all(feedbacks, context), strict=True)
    return [FeedbackDataset(f, tuple(e for e in examples if e.split == "test")) for f, examples in drafts]


def write_all(feedbacks: Sequence[Feedback], context: SynthesisContext) -> list[list[Example]]:
    """The prompts of every piece, made to agree, written once a context.

    Adapters may be trained on several pieces, or answer for several: what is in scope of one piece is a
    negative of none, and a prompt of two pieces is in the split of the first.
    """
    key = "/".join(["all", *(feedback.digest() for feedback in feedbacks)])
    return context.once(key, lambda: _agree(feedbacks, context))


def _agree(feedbacks: Sequence[Feedback], context: SynthesisContext) -> list[list[Example]]:
    drafts = [write_prompts(feedback, context) for feedback in feedbacks]
    inside = {e.prompt for examples in drafts for e in examples if e.scope == "in"}
    splits: dict[str, str] = {}
    agreed = []
    for feedback, examples in zip(feedbacks, drafts, strict=True):
        kept = [e for e in examples if e.scope == "in" or e.prompt not in inside]
        context.counts["duplicate_prompts"] += len(examples) - len(kept)
        agreed.append([replace(e, split=splits.setdefault(e.prompt, e.split)) for e in kept])
        _check_tested(feedback, agreed[-1])
    return agreed


def write_prompts(feedback: Feedback, context: SynthesisContext) -> list[Example]:
    """Prompts of all three scopes with their splits, written once a context.

    A call that fails now and works later would move prompts between splits, and gaps would be counted twice.
    """
    return context.once(feedback.digest(), lambda: _write(feedback, context))


def _write(feedback: Feedback, context: SynthesisContext) -> list[Example]:
    """The prompts; one that is in scope is never used as near scope."""
    cfg = context.cfg
    generator = GENERATORS[cfg.generator.kind](context)
    categories = generator.categories(feedback, cfg.n_categories)
    if not categories:
        raise UserError(f"no categories for feedback piece {feedback.id!r}: {_barren(context)}")
    inside = generator.prompts(feedback, "in", _shares(categories, cfg.n_in))
    near = generator.prompts(feedback, "near", _shares(categories, cfg.n_near))
    in_scope = {prompt for prompts in inside.values() for prompt in prompts}
    kept = {c: [p for p in prompts if p not in in_scope] for c, prompts in near.items()}
    context.counts["duplicate_prompts"] += sum(map(len, near.values())) - sum(map(len, kept.values()))
    general = general_prompts(cfg.out_of_scope, cfg.n_out, context.seed)
    examples = []
    for scope, by_category in (("in", inside), ("near", kept), ("out", {"general": general})):
        examples += _split(scope, by_category, context)
    for scope, written, n in (("in", inside, cfg.n_in), ("near", near, cfg.n_near)):
        if n and not any(written.values()):
            raise UserError(
                f"no {scope}-scope prompts for feedback piece {feedback.id!r}: {_barren(context)}"
            )
    _check_tested(feedback, examples)
    return examples


def _check_tested(feedback: Feedback, examples: Sequence[Example]) -> None:
    for scope in SCOPES:
        if not any(e.scope == scope and e.split == "test" for e in examples):
            raise UserError(
                f"no {scope}-scope test prompts for piece {feedback.id!r}: raise feedback.n_{scope} or feedback.test_share"
            )


def _barren(context: SynthesisContext) -> str:
    """Why a generator wrote nothing, and what to do about it."""
    if context.counts["failed_calls"]:
        return "calls to the generator failed for good, see above; the same command asks them again"
    return "the generator answered nothing that is a list: name a stronger model in feedback.generator.model"


def _shares(categories: Sequence[str], total: int) -> dict[str, int]:
    """`total` spread evenly over the categories."""
    size, rest = divmod(total, len(categories))
    return {c: size + (i < rest) for i, c in enumerate(categories) if size + (i < rest)}


def _split(scope: str, by_category: dict[str, list[str]], context: SynthesisContext) -> list[Example]:
    """Test, validation and train within each category.

    The shares hold over all categories (cumulative rounding).
    """
    cfg, examples = context.cfg, []
    seen = test_before = validation_before = 0
    known: set[str] = set()
    for category, prompts in by_category.items():
        order = sorted(set(prompts) - known)  # a prompt belongs to its first category, so to one split
        context.counts["duplicate_prompts"] += len(prompts) - len(order)
        known |= set(order)
        random.Random(f"split/{context.seed}/{scope}/{category}").shuffle(order)
        seen += len(order)
        test = round(seen * cfg.test_share) - test_before
        validation = round(seen * (1 - cfg.test_share) * cfg.validation_share) - validation_before
        test_before, validation_before = test_before + test, validation_before + validation
        for i, prompt in enumerate(order):
            split = "test" if i < test else "validation" if i < test + validation else "train"
            examples.append(Example(scope, category, split, prompt))
    return examples


def answer_prompts(
    prompts: Sequence[str], context: SynthesisContext, progress: Progress | None = None
) -> dict[str, Answer]:
    """What the model being tuned answers to each prompt, batch by batch, from the cache where it is known."""
    prompts = list(dict.fromkeys(prompts))
    known = known_answers(prompts, context)
    if len(known) == len(prompts):
        return known
    log.info("answering %d prompts with the base model", len(prompts) - len(known))
    subject, cache = context.subject, _answers(context)

    def keep(answers: dict[int, Answer]) -> None:
        cache.put((_answer_key(prompts[i], context), asdict(answer)) for i, answer in answers.items())
        known.update((prompts[i], answer) for i, answer in answers.items())
        if progress is not None:
            progress("answering with the base model", len(known), len(prompts))

    answers = answer_all(
        bare(subject.model, switched_off=True),
        subject.tokenizer,
        [prompt_ids(subject.tokenizer, prompt) for prompt in prompts],
        context.cfg.answers,
        context.seed,
        [known.get(prompt) for prompt in prompts],
        keep,
    )
    return dict(zip(prompts, answers, strict=True))


def known_answers(prompts: Sequence[str], context: SynthesisContext) -> dict[str, Answer]:
    """Those answers of `answer_prompts` that are cached."""
    cache, keys = _answers(context), {prompt: _answer_key(prompt, context) for prompt in prompts}
    return {prompt: Answer(**cache[key]) for prompt, key in keys.items() if key in cache}


def _answers(context: SynthesisContext) -> CallCache:
    return context.call_cache(f"answers-{context.subject.hash}", Answer)


def _answer_key(prompt: str, context: SynthesisContext) -> str:
    cfg = context.cfg.answers
    params = settings(cfg) | ({"seed": context.seed} if cfg.temperature > 0 else {})
    return call_key(model=context.subject.hash, prompt=prompt, params=params)


def revise(feedback: Feedback, examples: Sequence[Example], context: SynthesisContext) -> list[Example]:
    """The examples, those in scope with their revised answers.

    Revisions that miss the rule are left out and counted.
    """
    inside = [(i, e) for i, e in enumerate(examples) if e.scope == "in" and e.baseline is not None]
    drafts = [Draft(e.prompt, e.baseline.text, e.baseline.finished) for _, e in inside if e.baseline]
    revised = list(examples)
    for (i, example), result in zip(
        inside, open_reviser(feedback, context).revise(feedback, drafts), strict=True
    ):
        if result is None:
            context.counts["missing_revisions"] += 1
        elif context.cfg.reviser.filter and feedback.checkable and not feedback.holds(result[0]):
            context.counts["filtered_revisions"] += 1
        else:
            revised[i] = replace(example, revised=result[0], revised_finished=result[1])
    if not any(e.revised is not None and e.split == "train" for e in revised):
        raise UserError(
            f"no revision of piece {feedback.id!r} worked: use a stronger feedback.reviser.writer, or "
            "feedback.reviser.filter=false"
        )
    return revised
