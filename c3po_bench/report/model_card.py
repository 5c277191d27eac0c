"""The model card of a tuned arm: what it was taught, how well it keeps to it, where it leaks (from the store)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from c3po_bench import __version__
from c3po_bench.analysis.frames import known, records
from c3po_bench.analysis.measures import feedback_measures
from c3po_bench.errors import UserError
from c3po_bench.store.reader import Run

MEASURED = (
    ("in", "score", "S_in", "how far answers follow the feedback where it applies, -1 to 1"),
    ("near", "score", "S_near", "leaks near its scope, 0 (none) to 1"),
    ("out", "score", "S_out", "leaks elsewhere, 0 (none) to 1"),
    ("overall", "score", "S_overall", "all three in one, 0.5 for the base model, 1 at best"),
    ("out", "drift", "drift", "nats a token from the base model's answers outside the scope"),
)
PLAN = ("rank", "alpha", "lr", "steps", "epochs", "batch_size", "beta", "train_prompts")
LEAK, LONGEST, EXAMPLES = 1.0, 400, 2


@dataclass(frozen=True)
class Shipped:
    """What is written beside the card.

    Attributes:
        base: hub id of the model that was tuned; None where it has none.
        revision: of the base, where it is pinned.
        merged: whether the weights are of a whole model, or of an adapter.
        licence: as the hub names it; None where it was not given.
        feedbacks: the taught sentences, by id.
    """

    base: str | None
    revision: str | None
    merged: bool
    licence: str | None
    feedbacks: Mapping[str, str]


def model_card(runs: Sequence[Run], run: Run, shipped: Shipped) -> ModelCard:
    """The card of `run`, a feedback arm that tuned the model; `runs` are its store's.

    Raises:
        UserError: where the run answered no prompts about feedback, so that nothing is known of it.
    """
    measured = records(feedback_measures(runs))
    rows = {(row["scope"], row["measure"]): row for row in measured if row["run_id"] == run.run_id}
    if ("in", "score") not in rows:
        raise UserError(
            f"{run.path} answered no prompts about its feedback, so nothing can be said of it: run it with task feedback"
        )
    name = f"{run.result['model']}-{run.arm}"
    results = [
        EvalResult(
            "text-generation",
            "feedback prompts",
            "c3po-bench-feedback",
            key,
            rows[scope, measure]["mean"],
            text,
        )
        for scope, measure, key, text in MEASURED
        if (scope, measure) in rows and known(rows[scope, measure]["mean"])
    ]
    data = ModelCardData(
        language="en",
        license=shipped.licence,
        library_name="transformers" if shipped.merged else "peft",
        pipeline_tag="text-generation",
        base_model=shipped.base,
        tags=["c3po-bench", "verbal-feedback", *([] if shipped.merged else ["lora"])],
        model_name=name,
        eval_results=results,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(name, rows, run, shipped)}")


def _body(name: str, rows: Mapping[tuple[str, str], dict[str, Any]], run: Run, shipped: Shipped) -> str:
    kind = "A language model" if shipped.merged else "A LoRA adapter"
    taught = "\n".join(f"> {sentence}" for sentence in shipped.feedbacks.values())
    lines = [
        f"# {name}\n",
        f"{kind}, trained to follow this feedback where it applies and to change nothing elsewhere:\n\n{taught}\n",
        _origin(shipped),
        "## How well it does\n",
        "| measure | what it says | value | 95% interval | prompts |\n| --- | --- | --- | --- | --- |",
    ]
    for scope, measure, key, text in MEASURED:
        if row := rows.get((scope, measure)):
            interval = f"[{row['low']:.2f}, {row['high']:.2f}]" if known(row["low"]) else "no variance"
            lines.append(f"| {key} | {text} | {row['mean']:.2f} | {interval} | {row['n']} |")
    lines.append(
        f"\nIntervals are over {rows['in', 'score']['over']}. The prompts were held out from training. These numbers are "
        "about this feedback alone and say nothing of other abilities.\n"
    )
    lines += [_leaks(run), _recipe(run), _loading(shipped)]
    licence = shipped.licence or "not stated; that of the base model applies"
    lines.append(f"Licence: {licence}. Made by c3po_bench {__version__}, run `{run.run_id}`.\n")
    return "\n".join(lines)


def _origin(shipped: Shipped) -> str:
    if not shipped.base:
        return "The base model has no hub id: it is the one named in the run's provenance.\n"
    at = f" at revision `{shipped.revision}`" if shipped.revision else ""
    return f"The base model is `{shipped.base}`{at}.\n"


def _leaks(run: Run) -> str:
    """Where the feedback is followed though it does not apply, with examples."""
    samples = [row for row in run.samples() if row.get("scope") in ("near", "out")]
    leaks = [row for row in samples if (row.get("score") or 0) >= LEAK]
    text = (
        f"## Where it leaks\n\n{len(leaks)} of {len(samples)} answers outside the scope follow the feedback."
    )
    for row in sorted(leaks, key=lambda row: row["scope"] != "out")[:EXAMPLES]:
        where = {"near": "near the scope", "out": "out of scope"}[row["scope"]]
        text += f"\n\nAsked {where}:\n\n{_quoted(row['prompt'])}\n\nAnswered:\n\n{_quoted(row['response'])}"
    return text + "\n"


def _quoted(text: str) -> str:
    """An indented block, which no markup in the text can leave."""
    cut = text if len(text) <= LONGEST else text[:LONGEST] + " ..."
    return "\n".join("    " + line for line in cut.splitlines() or [""])


def _recipe(run: Run) -> str:
    settings = run.result["settings"]
    values = [f"| {key} | {settings[key]} |" for key in settings if key in PLAN or key.startswith("weight")]
    table = "\n".join(["| setting | value |", "| --- | --- |", f"| recipe | {run.arm} |", *values])
    return f"## How it was made\n\n{table}\n"


def _loading(shipped: Shipped) -> str:
    if shipped.merged:
        made = 'model = AutoModelForCausalLM.from_pretrained("FOLDER")'
        names = "AutoModelForCausalLM, AutoTokenizer"
        text = f"from transformers import {names}\n\n{made}\n"
    elif shipped.base:
        text = (
            "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
            'model = AutoPeftModelForCausalLM.from_pretrained("FOLDER")\n'
        )
    else:
        text = (
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE"), "FOLDER")\n'
        )
    return f'## How to load it\n\n```python\n{text}tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n```\n'
