"""From one piece to training and test data, stage by stage.

Every finished call is cached and never made again.

Stages (RLVF, arXiv 2402.10893, section 4): categories, in-scope prompts, near-scope prompts, out-of-scope
prompts, the answers of the model being tuned, and revised answers for the prompts in scope. Failed calls are
counted and left out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from c3po_bench.errors import UserError
from c3po_bench.feedback.answering import Answer, answer_all, is_answer, settings
from c3po_bench.feedback.call_cache import CallCache, call_key
from c3po_bench.feedback.chat import prompt_ids
from c3po_bench.feedback.general import general_prompts
from c3po_bench.feedback.generators import open_generator
from c3po_bench.feedback.records import Feedback
from c3po_bench.feedback.revisers import Draft, open_reviser
from c3po_bench.feedback.workshop import Workshop, bare
from c3po_bench.runtime.console import Progress

log = logging.getLogger(__name__)
SCOPES = ("in", "near", "out")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """One prompt with the base model's answer.

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
class Material:
    """Everything made from one piece; `seconds` is what making it took in this process."""

    piece: Feedback
    examples: tuple[Example, ...]
    seconds: float = 0.0

    def select(self, scope: str, split: str) -> list[Example]:
        """The examples of one scope and split, in a fixed order."""
        return [e for e in self.examples if e.scope == scope and e.split == split]

    def digest(self) -> str:
        """A hash of what training sees."""
        seen = [asdict(e) for e in self.examples if e.split != "test"]
        return hashlib.sha256(json.dumps([self.piece.id, seen], sort_keys=True).encode()).hexdigest()[:16]


def synthesize(pieces: Sequence[Feedback], workshop: Workshop, tests: bool = True) -> list[Material]:
    """The material of every piece.

    Prompts first, so that the model answers all pieces' together, those of the test first.

    Without `tests` the test prompts are neither answered nor revised: trainings see none of them.
    """
    started = time.perf_counter()
    drafts = write_all(pieces, workshop)
    by_split = {True: [], False: []}
    for example in (e for examples in drafts for e in examples):
        by_split[example.split == "test"].append(example.prompt)
    answers: dict[str, Answer] = answer_prompts(by_split[True], workshop, Progress()) if tests else {}
    answers |= answer_prompts(by_split[False], workshop, Progress())
    made = []
    for piece, examples in zip(pieces, drafts, strict=True):
        answered = [replace(e, baseline=answers.get(e.prompt)) for e in examples]
        made.append(Material(piece, tuple(revise(piece, answered, workshop))))
    seconds = (time.perf_counter() - started) / len(pieces)
    return [replace(material, seconds=seconds) for material in made]


def write_tests(pieces: Sequence[Feedback], workshop: Workshop) -> list[Material]:
    """The test examples alone, unanswered: all that tasks need, and arms that are not trained."""
    drafts = zip(pieces, write_all(pieces, workshop), strict=True)
    return [Material(piece, tuple(e for e in examples if e.split == "test")) for piece, examples in drafts]


def write_all(pieces: Sequence[Feedback], workshop: Workshop) -> list[list[Example]]:
    """The prompts of every piece, made to agree.

    Adapters may be trained on several pieces, or answer for several.

    What is in scope of one piece is a negative of none, and a prompt of two pieces is in the split of the
    first.
    """
    key = "/".join(["all", *(piece.digest() for piece in pieces)])
    if key not in workshop.written:
        workshop.written[key] = _agree(pieces, workshop)
    return list(workshop.written[key])


def _agree(pieces: Sequence[Feedback], workshop: Workshop) -> list[list[Example]]:
    drafts = [write_prompts(piece, workshop) for piece in pieces]
    inside = {e.prompt for examples in drafts for e in examples if e.scope == "in"}
    splits: dict[str, str] = {}
    agreed = []
    for piece, examples in zip(pieces, drafts, strict=True):
        kept = [e for e in examples if e.scope == "in" or e.prompt not in inside]
        workshop.count("duplicate_prompts", len(examples) - len(kept))
        agreed.append([replace(e, split=splits.setdefault(e.prompt, e.split)) for e in kept])
        _check_tested(piece, agreed[-1])
    return agreed


def write_prompts(piece: Feedback, workshop: Workshop) -> list[Example]:
    """Prompts of all three scopes with their splits, written once a workshop.

    A call that fails now and works later would move prompts between splits, and gaps would be counted twice.
    """
    key = piece.digest()
    if key not in workshop.written:
        workshop.written[key] = _write(piece, workshop)
    return list(workshop.written[key])


def _write(piece: Feedback, workshop: Workshop) -> list[Example]:
    """The prompts; one that is in scope is never used as near scope."""
    cfg = workshop.cfg
    generator = open_generator(workshop)
    categories = generator.categories(piece, cfg.n_categories)
    if not categories:
        raise UserError(f"no categories for feedback piece {piece.id!r}: {_barren(workshop)}")
    inside = generator.prompts(piece, "in", _shares(categories, cfg.n_in))
    near = generator.prompts(piece, "near", _shares(categories, cfg.n_near))
    taken = {prompt for prompts in inside.values() for prompt in prompts}
    kept = {c: [p for p in prompts if p not in taken] for c, prompts in near.items()}
    workshop.count("duplicate_prompts", sum(map(len, near.values())) - sum(map(len, kept.values())))
    general = general_prompts(cfg.out_of_scope, cfg.n_out, workshop.seed)
    examples = []
    for scope, by_category in (("in", inside), ("near", kept), ("out", {"general": general})):
        examples += _split(scope, by_category, workshop)
    for scope, written, wanted in (("in", inside, cfg.n_in), ("near", near, cfg.n_near)):
        if wanted and not any(written.values()):
            raise UserError(f"no {scope}-scope prompts for feedback piece {piece.id!r}: {_barren(workshop)}")
    _check_tested(piece, examples)
    return examples


def _check_tested(piece: Feedback, examples: Sequence[Example]) -> None:
    for scope in SCOPES:
        if not any(e.scope == scope and e.split == "test" for e in examples):
            raise UserError(
                f"no {scope}-scope test prompts for piece {piece.id!r}: raise feedback.n_{scope} or feedback.test_share"
            )


def _barren(workshop: Workshop) -> str:
    """Why a generator wrote nothing, and what to do about it."""
    if workshop.counts["failed_calls"]:
        return "calls to the generator failed for good, see above; the same command asks them again"
    return "the generator answered nothing that is a list: name a stronger model in feedback.generator.model"


def _shares(categories: Sequence[str], total: int) -> dict[str, int]:
    """`total` spread evenly over the categories."""
    size, rest = divmod(total, len(categories))
    return {c: size + (i < rest) for i, c in enumerate(categories) if size + (i < rest)}


def _split(scope: str, by_category: dict[str, list[str]], workshop: Workshop) -> list[Example]:
    """Test, validation and train within each category.

    The shares hold over all categories (cumulative rounding).
    """
    cfg, examples = workshop.cfg, []
    seen = test_before = validation_before = 0
    known: set[str] = set()
    for category, prompts in by_category.items():
        order = sorted(set(prompts) - known)  # a prompt belongs to its first category, so to one split
        workshop.count("duplicate_prompts", len(prompts) - len(order))
        known |= set(order)
        random.Random(f"split/{workshop.seed}/{scope}/{category}").shuffle(order)
        seen += len(order)
        test = round(seen * cfg.test_share) - test_before
        validation = round(seen * (1 - cfg.test_share) * cfg.validation_share) - validation_before
        test_before, validation_before = test_before + test, validation_before + validation
        for i, prompt in enumerate(order):
            split = "test" if i < test else "validation" if i < test + validation else "train"
            examples.append(Example(scope, category, split, prompt))
    return examples


def answer_prompts(
    asked: Sequence[str], workshop: Workshop, progress: Progress | None = None
) -> dict[str, Answer]:
    """What the model being tuned answers to each prompt, batch by batch, from the cache where it is known."""
    prompts = list(dict.fromkeys(asked))
    known = known_answers(prompts, workshop)
    if len(known) == len(prompts):
        return known
    log.info("answering %d prompts with the base model", len(prompts) - len(known))
    subject, cache = workshop.subject, _answers(workshop)

    def keep(found: dict[int, Answer]) -> None:
        cache.put((_answer_key(prompts[i], workshop), answer.record()) for i, answer in found.items())
        known.update((prompts[i], answer) for i, answer in found.items())
        if progress is not None:
            progress("answering with the base model", len(known), len(prompts))

    answers = answer_all(
        bare(subject.model),
        subject.tokenizer,
        [prompt_ids(subject.tokenizer, prompt) for prompt in prompts],
        workshop.cfg.answers,
        workshop.seed,
        [known.get(prompt) for prompt in prompts],
        keep,
    )
    return dict(zip(prompts, answers, strict=True))


def known_answers(prompts: Sequence[str], workshop: Workshop) -> dict[str, Answer]:
    """Those answers of `answer_prompts` that are cached."""
    cache, keys = _answers(workshop), {prompt: _answer_key(prompt, workshop) for prompt in prompts}
    return {prompt: Answer(**cache[key]) for prompt, key in keys.items() if key in cache}


def _answers(workshop: Workshop) -> CallCache:
    return workshop.call_cache(f"answers-{workshop.subject.hash}", is_answer)


def _answer_key(prompt: str, workshop: Workshop) -> str:
    cfg = workshop.cfg.answers
    params = settings(cfg) | ({"seed": workshop.seed} if cfg.temperature > 0 else {})
    return call_key(model=workshop.subject.hash, prompt=prompt, params=params)


def revise(piece: Feedback, examples: Sequence[Example], workshop: Workshop) -> list[Example]:
    """The in-scope examples with their revised answers.

    Revisions that miss the rule are left out and counted.
    """
    inside = [e for e in examples if e.scope == "in" and e.baseline is not None]
    drafts = [Draft(e.prompt, e.baseline.text, e.baseline.finished) for e in inside if e.baseline is not None]
    revised = {}
    for example, result in zip(inside, open_reviser(piece, workshop).revise(piece, drafts), strict=True):
        if result is None:
            workshop.count("missing_revisions")
        elif workshop.cfg.reviser.filter and piece.checkable and not piece.holds(result[0]):
            workshop.count("filtered_revisions")
        else:
            revised[example.prompt] = result
    if not any(e.prompt in revised and e.split == "train" for e in inside):
        raise UserError(
            f"no revision of piece {piece.id!r} worked: use a stronger feedback.reviser.writer, or "
            "feedback.reviser.filter=false"
        )
    done = []
    for e in examples:
        text, finished = revised.get(e.prompt, (None, True)) if e.scope == "in" else (None, True)
        done.append(replace(e, revised=text, revised_finished=finished))
    return done
