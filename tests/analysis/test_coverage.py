"""How often 95% intervals hold the truth, and how often null experiments are said to show something.

The small form is a part of every test run; the large one, marked slow, prints the smallest coverage of each
kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy import stats

from c3po_bench.analysis import power, statistics
from c3po_bench.analysis.frames import COLUMNS, CONTROL_COLUMNS, typed
from c3po_bench.analysis.measures import Prompts, _interval
from c3po_bench.analysis.seeds import over_seeds
from c3po_bench.analysis.verdict import direction, verdict_sentences
from tests import store_factory as factory

ITEMS = (16, 48, 120, 400)
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
CLUSTERS = (10, 20, 50)
Held = dict[tuple, float]


def held(counts: np.ndarray, truth: float, interval: Callable[..., statistics.Interval]) -> float:
    """How often `interval` of rows of `counts` holds the truth; each kind of row is computed once."""
    kinds, times = np.unique(counts, axis=0, return_counts=True)
    inside = [low <= truth <= high for _, low, high in (interval(*map(int, kind)) for kind in kinds)]
    return float(np.average(inside, weights=times))


def right_or_wrong(draws: int, rng: np.random.Generator) -> Iterator[tuple[tuple, float]]:
    """Every whole percent, by enumeration."""
    for n in ITEMS:
        counts = np.arange(n + 1)
        bounds = np.array([statistics.wilson(int(k), n) for k in counts])
        for rate in np.arange(1, 51) / 100:
            inside = (bounds[:, 1] <= rate) & (rate <= bounds[:, 2])
            yield (n, float(rate)), float(stats.binom.pmf(counts, n, rate) @ inside)


def ternary(draws: int, rng: np.random.Generator) -> Iterator[tuple[tuple, float]]:
    for n in ITEMS:
        for up in RATES[:-1]:
            for down in (0.0, up / 2, up):
                counts = rng.multinomial(n, [up, down, 1 - up - down], draws)[:, :2]
                yield (n, up, down), held(counts, up - down, lambda f, b, n=n: statistics.tango(f, b, n))


def macro(draws: int, rng: np.random.Generator) -> Iterator[tuple[tuple, float]]:
    """Mean of two benchmarks of different size."""
    for n in ITEMS:
        for rate in RATES[:-1]:
            shares = [rate, rate / 3, 1 - rate * 4 / 3]
            counts = np.hstack([rng.multinomial(size, shares, draws)[:, :2] for size in (n, 3 * n)])

            def mean(a: int, b: int, c: int, d: int, n: int = n) -> statistics.Interval:
                return statistics.mean_interval([statistics.tango(a, b, n), statistics.tango(c, d, 3 * n)])

            yield (n, rate), held(counts, rate * 2 / 3, mean)


def clustered(draws: int, rng: np.random.Generator) -> Iterator[tuple[tuple, float]]:
    """Items in groups whose rates vary (beta, intraclass correlation 0.05 and 0.2): right or wrong, and differences."""
    for n in ITEMS[1:]:
        for groups in (g for g in CLUSTERS if 2 * g <= n):
            clusters = np.sort(np.arange(n) % groups)
            for rate in RATES:
                for within in (0.05, 0.2):
                    inside, more = np.zeros(2), 1 / within - 1
                    for _ in range(draws):
                        shares = rng.beta(more * rate, more * (1 - rate), groups)[clusters]
                        changed = rng.random(n) < shares
                        lost = changed & (rng.random(n) < 0.25)
                        scores = changed.astype(float), changed - 2.0 * lost
                        for kind, (values, truth) in enumerate(zip(scores, (rate, rate / 2), strict=True)):
                            _, low, high = statistics.score_interval(values, clusters, signed=bool(kind))
                            inside[kind] += low <= truth <= high
                    for kind, share in zip(("one arm", "difference"), inside / draws, strict=True):
                        yield (kind, n, groups, rate, within), float(share)


def seeds(draws: int, rng: np.random.Generator) -> Iterator[tuple[tuple, float]]:
    """Differences of three and five seeds on the same items, whose mean over seeds is the truth."""
    for n in ITEMS:
        for count in (3, 5):
            inside = 0
            for _ in range(draws):
                items = rng.normal(0.05, 0.3, n)
                gaps = items[:, None] + rng.normal(0, 0.05, count) + rng.normal(0, 0.3, (n, count))
                row = over_seeds(gaps)
                inside += row["diff_low"] <= items.mean() <= row["diff_high"]
            yield (n, count), inside / draws


def graded(draws: int, rng: np.random.Generator) -> Iterator[tuple[tuple, float]]:
    """Judged scores, multiples of a quarter in [-1, 1]."""
    values = np.linspace(-1, 1, 9)
    for n in ITEMS:
        for tilt in (0.0, 0.5, 1.0):
            shares = np.exp(tilt * np.arange(9) / 2)
            shares /= shares.sum()
            inside = 0
            for _ in range(draws):
                prompts = Prompts(rng.choice(values, n, p=shares), np.zeros(n, dtype=int))
                _, low, high = _interval(prompts, True, signed=True)
                inside += low <= float(values @ shares) <= high
            yield (n, tilt), inside / draws


KINDS = {  # the share of draws of a right-or-wrong row, as others cost an interval a draw
    "right or wrong": (right_or_wrong, 1.0),
    "ternary": (ternary, 1.0),
    "mean of benchmarks": (macro, 0.3),
    "clusters": (clustered, 0.05),
    "seeds": (seeds, 0.05),
    "graded": (graded, 0.05),
}
BY_T = ("clusters", "seeds", "graded")


def coverage(kind: str, draws: int) -> Held:
    simulate, share = KINDS[kind]
    return dict(simulate(max(100, int(draws * share)), np.random.default_rng(20261129)))


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_hold_the_truth(kind):
    found = coverage(kind, 3000)
    mean = float(np.mean(list(found.values())))
    assert mean >= 0.935 and (kind not in BY_T or mean <= 0.975)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_intervals_hold_the_truth_at_least_945_times_in_1000(kind, capsys):
    found = coverage(kind, 40_000)
    mean, (where, least) = float(np.mean(list(found.values()))), min(found.items(), key=lambda pair: pair[1])
    with capsys.disabled():
        print(f"\n{kind}: {mean:.1%} on average, smallest {least:.1%} at {where}")  # noqa: T201
    assert mean >= 0.945 and (kind not in BY_T or mean <= 0.97)


def null_family(rng: np.random.Generator, arms: int, items: int, discordance: float) -> list[str]:
    """What is said of `arms` arms that only differ from base by chance, each with a control."""
    base = rng.random(items) < 0.5
    rows, over = [], []
    for place in range(arms):
        change = rng.random((2, items)) < discordance
        arm, control = base ^ change[0], base ^ change[1]
        name = f"method_{place}"
        rows.append(row_of(name, arm, base))
        over.append(
            row_of(name, arm, control) | {"change": "a control", "not_due_to": "it", "control_run_id": "c"}
        )
    frame = typed(
        [row_of("base", base, base) | {"p": float("nan"), "difference": float("nan")}, *rows], COLUMNS
    )
    return verdict_sentences(frame, typed(over, CONTROL_COLUMNS))


def row_of(name: str, arm: np.ndarray, base: np.ndarray) -> dict:
    fixed, broken = statistics.fixed_broken(arm, base)
    gap = statistics.tango(fixed, broken, len(arm))
    row = dict.fromkeys(COLUMNS, float("nan")) | factory.facts(name)
    row |= {
        "label": name,
        "run_id": name,
        "task": "arc",
        "level": "task",
        "scope": "",
        "group": "",
        "over": "items",
    }
    row |= {
        "difference": gap.value,
        "diff_low": gap.low,
        "diff_high": gap.high,
        "n": len(arm),
        "groups": len(arm),
    }
    row |= {
        "p": float(statistics.mid_p(fixed, broken)),
        "fixed": fixed,
        "broken": broken,
        "prompt_differs": False,
    }
    return row | {"margin": 0.01, "p_same": statistics.same_p(arm.astype(float) - base, 0.01)}


CLAIMS = (" beats ", " loses to ", "more than half", " gains, too")


def false_claims(families: int, items: int, discordance: float) -> float:
    """The share of null experiments of eight arms of which anything is claimed."""
    rng = np.random.default_rng(items)
    said = (" ".join(null_family(rng, 8, items, discordance)) for _ in range(families))
    return sum(any(claim in text for claim in CLAIMS) for text in said) / families


def test_null_experiments_are_seldom_said_to_show_anything():
    assert false_claims(200, 120, 0.1) <= 0.08


@pytest.mark.slow
@pytest.mark.parametrize(("items", "discordance"), [(120, 0.1), (400, 0.05), (48, 0.3)])
def test_of_2000_null_experiments_at_most_5_percent_claim_anything(items, discordance, capsys):
    share = false_claims(2000, items, discordance)
    with capsys.disabled():
        print(f"\n{items} items, {discordance:.0%} changed: {share:.2%} of 2,000 null experiments")  # noqa: T201
    assert share <= 0.05


def test_arms_at_the_margin_are_seldom_called_the_same():
    """Eight arms whose truth is a loss of exactly the margin."""
    rng, wrong = np.random.default_rng(7), 0
    for _ in range(300):
        fixed, broken, _ = rng.multinomial(2000, [0.01, 0.02, 0.97], 8).T
        p = [
            statistics.same_p(np.repeat([1.0, -1.0, 0.0], [f, b, 2000 - f - b]), 0.01)
            for f, b in zip(fixed, broken, strict=True)
        ]
        wrong += min(p) * 8 < 0.05
    assert wrong / 300 <= 0.08


@pytest.mark.slow
def test_power_for_five_points_is_within_two_points_of_what_is_promised():
    rng = np.random.default_rng(3)
    fixed, broken, _ = rng.multinomial(400, [0.075, 0.025, 0.9], 40_000).T
    rows = [row_of_counts(int(f), int(b), 400) for f, b in zip(fixed[:4000], broken[:4000], strict=True)]
    shown = np.mean([direction(row) == 1 for row in rows])
    assert shown == pytest.approx(power.power_of(400, 0.05, 0.1), abs=0.02)


def row_of_counts(fixed: int, broken: int, items: int) -> dict:
    _, low, high = statistics.tango(fixed, broken, items)
    p = float(statistics.mid_p(fixed, broken))
    return {"p": p, "p_holm": p, "diff_low": low, "diff_high": high}
