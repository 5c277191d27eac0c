"""The verdict: what has a sentence, what is only counted, what a control allows to be said, and what may not be said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from c3po_bench.analysis.compare import compare, compare_controls
from c3po_bench.analysis.frames import COLUMNS, CONTROL_COLUMNS
from c3po_bench.analysis.verdict import direction, verdict, verdict_sentences
from tests import store_factory as factory

NAN = float("nan")
RANDOM = "ngd_random_neighbors"


def row(arm: str, difference: float = NAN, half: float = 0.01, label: str = "", **more) -> dict:
    """One row of `compare`, shown to differ from base where the interval excludes 0."""
    p = 0.01 if abs(difference) > half else 0.5
    name = label or arm
    common = factory.facts(arm) | {"label": name, "run_id": name, "task": "arc", "level": "task", "scope": ""}
    common |= {"n": 100, "accuracy": 0.5, "mde": 0.02, "fixed": 1, "broken": 1, "p": p, "p_holm": p}
    common |= {"difference": difference, "diff_low": difference - half, "diff_high": difference + half}
    return dict.fromkeys(COLUMNS, NAN) | common | more


def test_a_choice_at_the_edge_is_told():
    frame = frame_of(row("ngd", **GAIN, tuning_edges="learning_rate=10 (highest)"), row("sft", **GAIN))
    (sentence,) = [s for s in verdict_sentences(frame) if "edge" in s]
    assert sentence.startswith(
        "The choice for NGD on held-out references lies at the edge of what was tried: learning_rate=10"
    )


def frame_of(*rows: dict) -> pd.DataFrame:
    return pd.DataFrame([row("base"), *rows], columns=list(COLUMNS))


def sentences_on(*rows: dict) -> list[str]:
    return verdict_sentences(frame_of(*rows))


GAIN = {"difference": 0.021, "diff_low": 0.003, "diff_high": 0.039, "p": 0.01, "p_holm": 0.01}
LOSS = {"difference": -0.02, "diff_low": -0.03, "diff_high": -0.01, "p": 0.01, "p_holm": 0.01}
NOTHING = {"difference": -0.001, "diff_low": -0.01, "diff_high": 0.01, "p": 0.9, "n": 1000}
DISAGREE = {"n": 120, "difference": 0.042, "diff_low": 0.009, "diff_high": 0.094, "p": 0.0625}
DISAGREE |= {"fixed": 5, "broken": 0}
SAME = {"n": 120, "difference": 0.0, "diff_low": -0.031, "diff_high": 0.031, "p": 1.0, "mde": 0.05}
SAME |= {"fixed": 0, "broken": 0}
CEILING = {"difference": 0.2, "diff_low": 0.1, "diff_high": 0.3}


@pytest.mark.parametrize(
    ("arm", "numbers", "words"),
    [
        ("ngd", GAIN, "NGD beats base by 2.1 points [0.3, 3.9] (Holm p 0.01)."),
        ("ngd", GAIN | {"p_holm": 0.2}, "does not hold after correction for the number of tests)"),
        ("ngd", LOSS, "NGD loses to base by 2.0 points [-3.0, -1.0]"),
        (
            "mode_finding",
            NOTHING,
            "Mode finding cannot be told from base: −0.1 points [-1.0, 1.0]; with 1000 items, only",
        ),
        (
            "sft",
            DISAGREE,
            "SFT cannot be told from base: +4.2 points [0.9, 9.4], p 0.062; with 120 items, only",
        ),
        (
            "sft",
            SAME,
            "SFT scores every item as base does; with 120 items, only gains above about 5.0 points are detectable.",
        ),
        ("oracle", CEILING, "Oracle, a ceiling that knows what no method may know: +20.0 points"),
        ("base", {}, "Nothing stands beside base"),
    ],
)
def test_verdict_in_plain_words(arm, numbers, words):
    assert words in verdict(frame_of(row(arm, **numbers)))


def test_controls_that_do_as_well_stand_beside_a_null(tmp_path):
    base = np.repeat([0, 1], 48)
    arms = {"ngd": [0, 1, 2, -1], "random_pathway": [0, 1, 2, 3], "ngd_random_neighbors": [-1]}
    scores = {}
    for name, changed in arms.items():
        scores[name] = base.copy()
        scores[name][changed] = 1 - base[changed]
    runs = factory.store(tmp_path, base=base, **scores)
    (sentence,) = [s for s in verdict_sentences(compare(runs), compare_controls(runs)) if s.startswith("NGD")]
    assert (
        "+2.1 points" in sentence
        and "; control that does as well: random pathway (+4.2); with 96" in sentence
    )


def test_verdict_over_nothing():
    assert "Nothing to compare yet" in verdict(pd.DataFrame(columns=list(COLUMNS)))


def test_five_fixed_and_none_broken_of_120_is_shown_by_interval_and_p_alike(tmp_path):
    base = np.repeat([0, 1], 60)
    arm = base.copy()
    arm[:5] = 1
    frame = compare(factory.store(tmp_path, base=base, sft=arm), draws=500)
    row = frame.iloc[1]
    assert (row["diff_low"], row["diff_high"]) == pytest.approx((0.0094, 0.0938), abs=1e-4)
    assert (row["p"], row["p_mcnemar"]) == (0.03125, 0.0625)
    assert row["mde"] == pytest.approx(0.0512, abs=0.001)
    assert verdict(frame).startswith("SFT beats base by 4.2 points [0.9, 9.4] (Holm p 0.031)")


def test_what_loses_has_a_sentence_however_many_gain():
    gains = [row(f"method_{i}", 0.02 + i / 100) for i in range(5)]
    unclear = [row(f"unclear_{i}", i / 1000) for i in range(3)]
    sentences = sentences_on(*unclear, row("knn_vote", -0.14), *gains)
    assert [s.split(" beats")[0] for s in sentences[:5]] == [f"Method {i}" for i in (4, 3, 2, 1, 0)]
    assert sentences[5].startswith("Unclear 2 cannot be told from base")
    assert sentences[6].startswith("KNN vote loses to base by 14.0 points")
    assert sentences[7:] == ["Of 2 more: 2 cannot be told from base."]


def test_a_baseline_is_spoken_of_as_a_method_is_and_a_control_not():
    baseline, control = row("icl", 0.05), row(RANDOM, 0.05)
    assert sentences_on(baseline, control) == ["ICL beats base by 5.0 points [4.0, 6.0] (Holm p 0.01)."]


def test_the_rest_is_counted_by_what_it_shows():
    arms = [row("icl", 0.5 - i / 100, label=f"icl ({i})") for i in range(3)]
    arms += [row(f"method_{i}", 0.3, label=f"method_{i} (k={k})") for i in range(2) for k in range(3)]
    assert sentences_on(*arms)[-1] == "Of 3 more: 3 beat base."


def test_the_best_of_a_sweep_is_named_whatever_its_label():
    runs = [row("ngd", k / 100, label=f"ngd (k={k}) [e8d54f]") for k in range(4)]
    (sentence,) = sentences_on(*runs)
    assert "with k=3 [e8d54f], was picked after the fact." in sentence


def test_of_a_sweep_only_what_holds_after_correction_is_counted():
    gains = [(0.3, 0.01), (0.2, 0.01), (0.1, 0.2), (-0.1, 0.01), (-0.2, 0.2), (-0.3, 0.01), (-0.4, 0.04)]
    runs = [row("ngd", gain, label=f"ngd (k={k})", p_holm=p) for k, (gain, p) in enumerate(gains)]
    (sentence,) = sentences_on(*runs)
    assert sentence.startswith("NGD under 7 settings: 2 beat base after correction for all of them, 3 lose;")


def test_every_ceiling_is_named():
    runs = [row("oracle", gain, label=f"oracle (model={model})") for gain, model in ((0.1, "a"), (0.45, "b"))]
    starts = [sentence.split(", a ceiling")[0] for sentence in sentences_on(*runs)]
    assert starts == [f"Oracle (model={model})" for model in "ab"]


def test_a_difference_without_p_is_not_shown():
    assert direction(row("ngd", 0.1)) == 1
    assert direction(row("ngd", 0.1, p=NAN)) == 0


def with_control(over: dict, gain=(0.05, 0.02, 0.08), own=(0.005, -0.02, 0.03, 0.7)) -> str:
    """The verdict on NGD, which gains `gain` over base, with `over` against its control, which itself gains `own`."""
    names = ("difference", "diff_low", "diff_high", "p")
    arms = {"ngd": (*gain, 0.001), RANDOM: own}
    rows = [row(arm, **dict(zip(names, n, strict=True)), p_holm=0.001, n=1000) for arm, n in arms.items()]
    control = dict.fromkeys(CONTROL_COLUMNS, NAN) | {"arm": "ngd", "run_id": "ngd", "task": "arc"}
    control |= {"control": RANDOM, "control_run_id": RANDOM}
    control |= {name: factory.arm_row(RANDOM)[name] for name in ("change", "not_due_to")}
    return verdict(frame_of(*rows), pd.DataFrame([control | over], columns=list(CONTROL_COLUMNS)))


def gap(difference, low, high, p) -> dict:
    return {"difference": difference, "diff_low": low, "diff_high": high, "p": p, "p_holm": p}


def test_not_significant_against_a_control_is_no_evidence_that_it_does_as_well():
    words = with_control(gap(0.045, -0.001, 0.091, 0.06))
    assert "it cannot be told from random neighbors (difference +4.5 points [-0.1, 9.1])" in words
    assert "retrieval" not in words
    disagreeing = with_control(gap(0.045, 0.001, 0.091, 0.06))  # interval and p disagree
    assert "cannot be told from random neighbors" in disagreeing


def test_what_beats_its_control_and_what_loses_to_it():
    beats, loses = with_control(gap(0.02, 0.01, 0.03, 0.01)), with_control(gap(-0.02, -0.03, -0.01, 0.01))
    assert "; beats random neighbors by 2.0 [1.0, 3.0] (Holm p 0.01)." in beats
    assert "; loses to random neighbors by 2.0 [-3.0, -1.0]" in loses


def test_a_control_gains_too_only_where_that_is_shown():
    tight, wide = gap(0.001, -0.008, 0.009, 0.9), gap(0.01, -0.02, 0.04, 0.5)
    half = (
        "with random neighbors it gains more than half as much (difference +0.1 points [-0.8, 0.9], p 0.01): "
    )
    assert half + "most is not retrieval." in with_control(tight | {"p_half_holm": 0.01})
    assert "cannot be told from random neighbors" in with_control(tight | {"p_half_holm": 0.06})
    assert "cannot be told from random neighbors" in with_control(wide)
    too = "with random neighbors it gains, too (+4.0 points [1.0, 7.0] over base; difference +1.0 points [-2.0, 4.0]): "
    assert too in with_control(wide, own=(0.04, 0.01, 0.07, 0.01))
    assert "need not be retrieval" in with_control(wide, own=(0.04, 0.01, 0.07, 0.01))


def feedback(arm: str, gain: float, half: float = 0.05) -> list[dict]:
    scopes = (("in", gain), ("near", 0.0), ("out", 0.0))
    return [row(arm, d, half, scope=scope, task=f"feedback_{scope}") for scope, d in scopes]


def test_following_is_said_where_it_is_shown():
    rows = [*feedback("sft", 0.0), *feedback("c3po", 0.5), *feedback("dpo", -0.2)]
    starts = [s.split(", against base")[0] for s in sentences_on(*rows)]
    assert starts == [
        "C3PO follows the feedback",
        "SFT is not shown to follow the feedback",
        "DPO goes against the feedback",
    ]


def test_a_leak_is_named_where_it_is_shown():
    both = [
        row("dpo", gain, scope=scope, task=f"feedback_{scope}") for scope, gain in (("in", 0.5), ("out", 0.1))
    ]
    (kept,) = sentences_on(both[0], row("dpo", 0.005, scope="out", task="feedback_out"))
    (leaks,) = sentences_on(*both)
    assert leaks.endswith("out of scope: it leaks where it should not apply.") and "leaks" not in kept


def test_the_best_feedback_arms_have_a_sentence_and_the_rest_is_counted():
    sentences = sentences_on(*(one for i in range(9) for one in feedback(f"arm_{i}", i / 10)))
    assert sentences[0].startswith("Arm 8 follows") and len(sentences) == 7
    assert sentences[-1] == "Of 3 more: 2 follow the feedback, 1 not shown to follow the feedback."


def test_a_feedback_store_is_spoken_of_by_scope(tmp_path):
    assert "in scope" in verdict(compare(factory.feedback_store(tmp_path), draws=500))


def test_no_judgement_at_all_ends_in_a_row_without_numbers(tmp_path):
    runs = []
    for arm in ("base", "c3po"):
        rows = factory.feedback_rows(arm, "in", 12)
        rows = [one | ({"score": None} if arm == "c3po" else {}) for one in rows]
        runs.append(factory.write_run(tmp_path, arm, rows, backend="feedback"))
    frame = compare(runs, draws=100)
    unjudged = frame[frame["arm"] == "c3po"]
    assert unjudged["n"].item() == 0 and unjudged[["accuracy", "difference"]].isna().all(axis=None)
    assert verdict_sentences(frame)[0].startswith("Nothing stands beside base")
