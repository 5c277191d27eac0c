"""Numbers of the findings pages, read from the published studies in `results/`: none is typed by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from c3po_bench.analysis.measures import feedback_measures
from c3po_bench.store.reader import load_runs
from tables import table

RESULTS = Path(__file__).resolve().parents[2] / "results"
NAMES = {
    "ngd": "NGD",
    "icl": "ICL",
    "c3po": "C3PO",
    "scd": "SCD",
    "dpo": "DPO",
    "knn_vote": "kNN vote",
    "ngd_random_neighbors": "NGD, random neighbors",
    "ngd_shuffled_labels": "NGD, shuffled labels",
    "ngd_permuted_experts": "NGD, permuted experts",
    "kernel_regression_random_neighbors": "kernel regression, random neighbors",
    "mode_finding_random_neighbors": "mode finding, random neighbors",
}


def title(arm: str) -> str:
    """How an arm is called in a table for readers."""
    return NAMES.get(arm, arm.replace("_", " "))


@cache
def read(study: str, name: str) -> list[dict[str, str]]:
    """Rows of one table of a study."""
    with (RESULTS / study / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def row(study: str, arm: str, task: str = "", control: str = "") -> dict[str, str]:
    """An arm's row over all items (or of one task), against base or against a control.

    Raises:
        KeyError: there is no such row.
        ValueError: it was recorded with another version than today's, so no sentence may use it.
    """
    rows = [
        row
        for row in read(study, "controls" if control else "comparison")
        if row["arm"] == arm and (not control or row["control"] == control)
    ]
    whole = [row for row in rows if row["level"] == "pooled"] or (rows if len(rows) == 1 else [])
    matches = [row for row in rows if row["task"] == task] if task else whole
    if len(matches) != 1:
        raise KeyError(f"results/{study}: {arm} {control} {task}")
    if matches[0]["outdated"]:
        raise ValueError(f"results/{study}: {arm}: {matches[0]['outdated']}")
    return matches[0]


def number(value: str | float, digits: int, sign: bool = True) -> str:
    """A number with a true minus; -0.0 is 0.0."""
    text = f"{float(value) + 0.0:{'+' if sign else ''}.{digits}f}"
    if not float(text):
        text = f"{0:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", "−")


def points(value: str | float, low: str | float, high: str | float) -> str:
    """A difference in points with its interval."""
    bounds = ", ".join(number(100 * float(bound), 1, sign=False) for bound in (low, high))
    return f"{number(100 * float(value), 1)} [{bounds}]"


def gain(study: str, arm: str, task: str = "", control: str = "") -> str:
    """The difference of an arm to base, or to its control, in points."""
    values = row(study, arm, task, control)
    return points(values["difference"], values["diff_low"], values["diff_high"])


def right_skill(arm: str) -> str:
    """What an arm gains in `specialists` where all references ask for the item's own skill, in points."""
    (pooled,) = (row for row in read("specialists", "right_skill_references") if row["skill"] == "all")
    return points(*(pooled[f"{arm}_{end}"] for end in ("difference", "low", "high")))


def items(study: str, task: str = "") -> str:
    """How many items a study asked."""
    return row(study, "base", task)["n"]


def accuracy(study: str, arm: str, task: str = "") -> str:
    """Accuracy in percent."""
    return number(100 * float(row(study, arm, task)["accuracy"]), 1, sign=False)


def detectable(study: str, arm: str) -> str:
    """The smallest gain that the study finds with 80% power, in points."""
    return number(100 * float(row(study, arm)["mde"]), 1, sign=False)


@cache
def measures(study: str, against: str) -> Any:
    """Every measure of the feedback arms of a study, by piece, against base or another arm."""
    return feedback_measures(load_runs(RESULTS / study), against=against, pieces=True)


def measure(study: str, arm: str, scope: str, name: str, against: str, piece: str, label: str = "") -> Any:
    """One row of `measures`: the piece "" is all of them."""
    frame = measures(study, against)
    keep = (frame["arm"] == arm) & (frame["scope"] == scope) & (frame["measure"] == name)
    keep &= frame["feedback"] == piece
    if label:
        keep &= frame["label"] == label
    (only,) = (values for _, values in frame[keep].iterrows())
    return only


def score(study: str, arm: str, scope: str, name: str = "score", label: str = "") -> str:
    """The mean of a measure with its interval, where it has one."""
    values = measure(study, arm, scope, name, "base", "", label)
    if name != "score":
        return number(values["mean"], 2, sign=False)
    return f"{number(values['mean'], 2, False)} [{number(values['low'], 2, False)}, {number(values['high'], 2, False)}]"


def versus(
    study: str, arm: str, against: str, scope: str, name: str = "score", piece: str = "", digits: int = 2
) -> str:
    """The paired difference of a measure between two arms."""
    values = measure(study, arm, scope, name, against, piece)
    bounds = ", ".join(number(values[bound], digits, sign=False) for bound in ("diff_low", "diff_high"))
    return f"{number(values['difference'], digits)} [{bounds}]"


def holm(study: str, arm: str, against: str, scope: str, name: str = "score") -> str:
    """Holm's p of that difference."""
    p = float(measure(study, arm, scope, name, against, "")["p_holm"])
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def prompts(study: str) -> int:
    """Test prompts of each scope."""
    return int(measure(study, "base", "in", "score", "base", "")["n"])


def bullets(*lines: str) -> str:
    """A list; every line is one finding."""
    return "\n".join(f"- {line}" for line in lines)


def rewiring() -> str:
    """What is known of rewiring, for docs/findings.md."""
    known, big = "planted", "smolmoe_arc_surrogates"
    unknown = ("specialists", "ngd", "skills_shifted")
    return bullets(
        f"**The program finds a benefit that is there.** On the planted testbed (`{known}`, n {items(known)}) NGD gains "
        f"{gain(known, 'ngd')} points over base. It beats itself with random neighbors by "
        f"{gain(known, 'ngd', control='ngd_random_neighbors')}, with shuffled labels by "
        f"{gain(known, 'ngd', control='ngd_shuffled_labels')}.",
        f"**On SmolMoE no gain is shown.** On {items(big)} ARC questions (`{big}`) NGD changes accuracy by "
        f"{gain(big, 'ngd')} points. Against random neighbors it has "
        f"{gain(big, 'ngd', control='ngd_random_neighbors')}, against shuffled labels "
        f"{gain(big, 'ngd', control='ngd_shuffled_labels')}, against a random move "
        f"{gain(big, 'ngd', control='random_pathway')}. Kernel regression: {gain(big, 'kernel_regression')}; "
        f"mode finding: {gain(big, 'mode_finding')}. Gains from {detectable(big, 'ngd')} points on were detectable.",
        f"**Better routings exist there.** The oracle takes the same steps with the true answer and gains "
        f"{gain(big, 'oracle')} points (n {items(big)}). It is a ceiling for these steps, and no method.",
        f"**The oracle's gap need not be room for knowledge.** On lettered options (`smolmoe_letters`, n "
        f"{items('smolmoe_letters')}) the oracle reaches {accuracy('smolmoe_letters', 'oracle')}%, from "
        f"{accuracy('smolmoe_letters', 'base')}%: ten steps make any letter the likeliest. NGD: "
        f"{gain('smolmoe_letters', 'ngd')} points; with the neighbors' options permuted: "
        f"{gain('smolmoe_letters', 'ngd_permuted_options')}.",
        f"**Tuning shows none either.** With settings chosen on held-out references (`smolmoe_tuned`, n "
        f"{items('smolmoe_tuned')}) NGD has {gain('smolmoe_tuned', 'ngd')} points over base, and "
        f"{gain('smolmoe_tuned', 'ngd', control='ngd_random_neighbors')} over random neighbors.",
        f"**Six benchmarks show none either.** On `smolmoe_six` (n {items('smolmoe_six')}, most of it MMLU) NGD has "
        f"{gain('smolmoe_six', 'ngd')} points, and {gain('smolmoe_six', 'ngd', control='ngd_shuffled_labels')} over "
        f"shuffled labels.",
        f"**Retrieval decides.** In `specialists` each of nine skills has an expert, and the router meets a phrasing that "
        f"it does not know (n {items('specialists', 'skills_shifted')}). The right expert gains "
        f"{gain('specialists', 'right_expert', 'skills_shifted')} points, NGD {gain(*unknown)}. It does better than with "
        f"random neighbors ({gain(*unknown, 'ngd_random_neighbors')}), but cannot be told from a random move "
        f"({gain(*unknown, 'random_pathway')}). With references of the item's own skill alone it gains "
        f"{right_skill('ngd')}. Where the router is right, NGD breaks answers: {gain('specialists', 'ngd', 'skills')}.",
    )


def feedback() -> str:
    """What is known of feedback, for docs/findings.md."""
    dense, moe, both = "smollm_feedback", "smolmoe_feedback", "smolmoe_both"
    n = prompts(dense)
    low, high = "c3po (lambda_near=0.1, lambda_out=0.0)", "c3po (lambda_near=0.1, lambda_out=0.2)"
    return bullets(
        f"**C3PO changes the model less than DPO.** Over three sentences (`{dense}`, n {n} prompts a scope) its "
        f"drift differs from DPO's by {versus(dense, 'c3po', 'dpo', 'near', 'drift')} nats a token near scope, and by "
        f"{versus(dense, 'c3po', 'dpo', 'out', 'drift')} out of scope.",
        f"**It leaks less out of scope.** There S_out differs from DPO's by {versus(dense, 'c3po', 'dpo', 'out')} (n {n}, Holm p "
        f"{holm(dense, 'c3po', 'dpo', 'out')}).",
        f"**Near scope less leaking is not shown.** S_near is {score(dense, 'c3po', 'near')}; the difference to DPO is "
        f"{versus(dense, 'c3po', 'dpo', 'near')} (n {n}).",
        f"**S_overall is not shown to beat DPO or SCD.** It is {score(dense, 'c3po', 'overall')}. The difference to DPO is "
        f"{versus(dense, 'c3po', 'dpo', 'overall', digits=3)} (Holm p {holm(dense, 'c3po', 'dpo', 'overall')}), to SCD, plain "
        f"distillation without negatives, {versus(dense, 'c3po', 'scd', 'overall')}. Over the sentence in the prompt it is "
        f"{versus(dense, 'c3po', 'in_context', 'overall')}.",
        f"**The out-of-scope weight works, the near-scope weight does not.** On one sentence (`feedback_lambdas`, n "
        f"{prompts('feedback_lambdas')} a scope) S_out falls from {score('feedback_lambdas', 'c3po', 'out', label=low)} to "
        f"{score('feedback_lambdas', 'c3po', 'out', label=high)} with weight 0.2. S_near stays at "
        f"{score('feedback_lambdas', 'c3po', 'near', label=high)}.",
        f"**On the Mixture of Experts there is less of everything.** C3PO's S_overall is {score(moe, 'c3po', 'overall')}, and "
        f"{versus(moe, 'c3po', 'dpo', 'overall')} from DPO's (`{moe}`, n {prompts(moe)} a scope).",
        f"**Rewiring undoes the feedback.** In scope the tuned model has S_in {score(both, 'c3po', 'in')}; rewired by NGD "
        f"after tuning, {score(both, 'c3po_then_ngd', 'in')} (`{both}`, n {prompts(both)}). The difference is "
        f"{versus(both, 'c3po_then_ngd', 'c3po', 'in')}. Its controls must be recorded again, so no cause is named.",
    )


def arms(study: str, *names: str, task: str = "") -> str:
    """Accuracy, difference, fixed and broken of some arms of a study, over all items or those of a task."""
    rows = [[title("base"), accuracy(study, "base", task), "", "", ""]]
    for name in names:
        values = row(study, name, task)
        cells = [accuracy(study, name, task), gain(study, name, task), values["fixed"], values["broken"]]
        rows.append([title(name), *cells])
    return table(["arm", "accuracy (%)", "difference to base", "fixed", "broken"], rows)


def ours() -> str:
    """Our rows for the rewiring paper's Table 1, for docs/reproducing.md."""
    chosen = {
        "smolmoe_arc": (
            "limit=60",
            ("icl", "prefix_tuning", "soft_prompt", "mode_finding", "kernel_regression", "ngd", "oracle"),
        ),
        "smolmoe_arc_surrogates": ("limit=200", ("mode_finding", "kernel_regression", "ngd", "oracle")),
        "smolmoe_six": ("limit=4", ("kernel_regression", "ngd", "oracle")),
    }
    rows = []
    for study, (limit, names) in chosen.items():
        for name in ("base", *names):
            first = f"`{study}`, `{limit}`" if name == "base" else ""
            rows.append(
                [
                    first,
                    title(name),
                    items(study),
                    accuracy(study, name),
                    gain(study, name) if first == "" else "",
                ]
            )
    return table(["study", "arm", "n", "accuracy (%)", "difference to base"], rows)


def scores(study: str, *names: str) -> str:
    """S and drift of feedback arms."""
    scopes = ("in", "near", "out", "overall")
    rows = [
        [
            title(name),
            *(score(study, name, scope) for scope in scopes),
            *(score(study, name, scope, "drift") for scope in scopes[:3]),
        ]
        for name in names
    ]
    heads = ["S_in", "S_near", "S_out", "S_overall", "drift in", "drift near", "drift out"]
    return table(["arm", *heads], rows)


def pieces(study: str, arm: str, against: str) -> str:
    """One arm against another by piece of feedback."""
    frame = measures(study, against)
    ids = [piece for piece in dict.fromkeys(frame["feedback"]) if piece]
    rows = []
    for piece in [*ids, ""]:
        both = " and ".join(
            number(measure(study, name, "overall", "score", "base", piece)["mean"], 2, sign=False)
            for name in (arm, against)
        )
        rows.append(
            [
                f"`{piece}`" if piece else f"all {len(ids)}",
                both,
                versus(study, arm, against, "overall", "score", piece, digits=3),
                versus(study, arm, against, "near", "drift", piece),
                versus(study, arm, against, "out", "drift", piece),
            ]
        )
    heads = [
        f"S_overall of {title(arm)} and {title(against)}",
        "difference",
        "drift near scope",
        "drift out of scope",
    ]
    return table(["piece", *heads], rows)


def lambdas() -> str:
    """The nine cells of the sweep over the weights of the constraint."""
    study = "feedback_lambdas"
    labels = sorted({str(label) for label in measures(study, "base")["label"] if "lambda" in str(label)})
    rows = []
    for label in labels:
        near, out = (part.split("=")[1] for part in label.split("(")[1].rstrip(")").split(", "))
        values = [score(study, "c3po", scope, label=label) for scope in ("in", "near", "out", "overall")]
        rows.append([near, out, *values, score(study, "c3po", "near", "drift", label)])
    return table(["λ near", "λ out", "S_in", "S_near", "S_out", "S_overall", "drift near"], rows)


def sensitivity(testbed: str) -> str:
    """The smallest gaps, in points, that methods find on a testbed in three of three seeds."""
    about = json.loads((RESULTS / "sensitivity" / "smallest.json").read_text(encoding="utf-8"))[testbed]
    frame = [row for row in read("sensitivity", "sensitivity") if row["testbed"] == testbed]

    def smallest(method: str, setting: str) -> str:
        if (gap := about["smallest"][method][setting]) is not None:
            return f"{100 * gap:.2g}"
        return f"none up to {max(100 * float(row['gap']) for row in frame if row['setting'] == setting):.2g}"

    rows = [
        [setting, *(smallest(method, setting) for method in SURROGATES)]
        for setting in dict.fromkeys(row["setting"] for row in frame)
    ]
    return table(["setting", *map(title, SURROGATES)], rows)


SURROGATES = ("mode_finding", "kernel_regression", "ngd")
MAKERS: dict[str, Callable[[], str]] = {
    "findings-rewiring": rewiring,
    "findings-feedback": feedback,
    "ours": ours,
    "arc-60": lambda: arms(
        "smolmoe_arc",
        *SURROGATES,
        "ngd_shuffled_labels",
        "oracle",
        "routing_temperature",
        "icl",
        "router_tuning",
        "soft_prompt",
        "prefix_tuning",
    ),
    "arc-200": lambda: arms("smolmoe_arc_surrogates", *SURROGATES, "ngd_shuffled_labels", "oracle"),
    "specialists": lambda: arms(
        "specialists",
        *SURROGATES,
        "mode_finding_random_neighbors",
        "kernel_regression_random_neighbors",
        "ngd_random_neighbors",
        "ngd_shuffled_labels",
        "ngd_permuted_experts",
        "random_pathway",
        "knn_vote",
        "right_expert",
        "oracle",
        task="skills_shifted",
    ),
    "sensitivity-planted": lambda: sensitivity("planted"),
    "sensitivity-specialists": lambda: sensitivity("specialists"),
    "smollm-feedback": lambda: scores("smollm_feedback", "in_context", "scd", "dpo", "c3po"),
    "smollm-pieces": lambda: pieces("smollm_feedback", "c3po", "dpo"),
    "feedback-lambdas": lambdas,
}
