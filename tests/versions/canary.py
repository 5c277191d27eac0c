"""Small fixed numbers of every arm, scoring rule and metric. `python -m tests.versions.canary` records them anew.

Numbers that change without a raised version (`c3po_bench/store/versions.py`) are what the canary is there for, so
record them only together with a raise. They are held to tolerances, and predictions only where they are clear, since
processors and libraries differ in the last digits.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from c3po_bench.config import Config
from c3po_bench.evaluate.run import run
from c3po_bench.feedback.arms import ARMS as FEEDBACK_ARMS
from c3po_bench.feedback.arms import PROMPT_VARIANTS
from c3po_bench.feedback.measures import degeneration, similarity
from c3po_bench.feedback.sentences import find_feedback
from c3po_bench.feedback.training.recipes import RECIPES
from c3po_bench.rewiring.arms import ARMS
from c3po_bench.store.versions import METRICS, SCORERS
from tests.feedback.conftest import make_tiny
from tests.feedback.test_arms import config

RECORDED = Path(__file__).parent / "canary.json"
CLEAR = 0.1  # nats between the two likeliest choices, below which a prediction is not held to
STEPS = ("soft_prompt", "prefix_tuning", "router_tuning", "sft")
TEXT = "Ahoy! The ship leaves at noon. The ship leaves at noon, and the ship leaves at noon and"
OTHER = "Hello. The ship leaves at noon."


PLANTED_ARMS = [name for name in ARMS if name != "right_expert"]
"""All but the arm that only the specialists have; `tests/models/test_specialists.py` holds it to the experts themselves."""


def rewiring_numbers(folder: Path) -> dict[str, Any]:
    """Of every rewiring arm its version, and of six planted questions p_gold, predictions and their margins."""
    cfg = Config(name="canary", results_dir=str(folder), limit=6, batch_size=6, log_level="error", threads=1)
    cfg.tracking.mode, cfg.model.name, cfg.model.kind, cfg.model.device = (
        "disabled",
        "planted",
        "planted",
        "cpu",
    )
    cfg.tasks, cfg.references.tasks, cfg.references.limit = ["planted"], ["planted"], 120
    cfg.embedder.name, cfg.method.layers, cfg.method.steps = "minilm", "last:3", 4
    cfg.arms, cfg.arm_options = PLANTED_ARMS, {name: {"steps": 3} for name in STEPS}
    return {r.arm: {"version": r.result["versions"]["arm"], **answers(r.samples())} for r in run(cfg)}


def scorer_numbers(folder: Path) -> dict[str, Any]:
    """Of every scoring rule its version, and the base's answers to six of our facts on the embedded model."""
    numbers = {}
    for rule, version in SCORERS.items():
        cfg = Config(
            name="canary", results_dir=str(folder), limit=6, batch_size=6, log_level="error", threads=1
        )
        cfg.tracking.mode, cfg.model.device, cfg.scoring.rule = "disabled", "cpu", rule
        cfg.tasks, cfg.arms = ["facts_capitals"], ["base"]
        numbers[rule] = {"version": version, **answers(run(cfg)[0].samples())}
    return numbers


def answers(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is held to of the answers to questions with choices."""
    ranked = [sorted(row["loglikelihoods"])[-2:] for row in rows]
    return {
        "p_gold": [round(row["p_gold"], 4) for row in rows],
        "predictions": [row["prediction"] for row in rows],
        "clear": [high - low > CLEAR for low, high in ranked],
    }


def recipe_numbers(folder: Path) -> dict[str, Any]:
    """Of every recipe of training its version, and the curves of two steps on a random model."""
    cfg = config(
        make_tiny(folder / "tiny"), folder / "feedback", list(RECIPES), limit=1, log_level="error", threads=1
    )
    cfg.feedback.pieces = ["ahoy_greeting"]
    return {r.arm: recipe_record(r.result) for r in run(cfg) if r.arm != "base"}


def recipe_record(result: dict[str, Any]) -> dict[str, Any]:
    """What is held to of a training."""
    curves = {name: [round(v, 4) for v in curve] for name, curve in sorted(result["curves"].items())}
    return {"version": result["versions"]["arm"], "curves": curves}


def metric_numbers() -> dict[str, Any]:
    """Of every metric that is ours and needs no model its version and what it says of two fixed texts."""
    feedback = find_feedback(["ahoy_greeting", "lower_case_chat", "hashtag_tweets"], [])
    values = {
        "score": [
            float(one.holds(text)) for one in feedback for text in (TEXT, OTHER, TEXT.lower() + " #ship")
        ],
        "similarity": [round(similarity(TEXT, OTHER), 6)],
        "degeneration": [float(v) for v in degeneration(TEXT, True, 30, 20).values()],
    }
    return {name: {"version": METRICS[name], "values": value} for name, value in values.items()}


def prompt_numbers() -> dict[str, Any]:
    """Of every prompt variant its version, how it asks and how it reads: no model is asked."""
    feedback = find_feedback(["ahoy_greeting"], [])[0]
    numbers = {}
    for name, variant in PROMPT_VARIANTS.items():
        asks = variant.wrap(feedback, "Write to Ann.") if variant.wrap else "Write to Ann."
        reads = variant.read("It applies. ANSWER: Ahoy!") if variant.read else "ANSWER"
        version = FEEDBACK_ARMS[name].version
        numbers[name] = {"version": version, "asks": [asks, reads, variant.length, variant.stored]}
    return numbers


def main() -> None:
    """Record."""
    with tempfile.TemporaryDirectory() as folder:
        numbers = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
        numbers |= {"rewiring": rewiring_numbers(Path(folder)), "scorers": scorer_numbers(Path(folder))}
        numbers |= {"metrics": metric_numbers(), "prompts": prompt_numbers()}
        numbers |= {"recipes": recipe_numbers(Path(folder))}
    parts = (
        f' "{part}": {{\n'
        + ",\n".join(f'  "{name}": {json.dumps(own)}' for name, own in each.items())
        + "\n }"
        for part, each in numbers.items()
    )
    RECORDED.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
