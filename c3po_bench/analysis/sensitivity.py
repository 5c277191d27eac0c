"""How small a gap the methods find on a testbed, and how good their neighbors must be.

`python -m c3po_bench.analysis.sensitivity STORE [STORE ...] FOLDER` composes sets of items from records. An
item is answered alone, so a set with a known gap is made of so many items on which the router is wrong, and
others on which it is right; one with known retrieval of so many whose neighbors are of the right kind. A
method *finds* the gap of a set where it beats base and each of its controls as a verdict would say: interval,
p, and p after Holm's correction agree. The smallest gap from which on it does so in every seed is written to
`smallest.json`. A copy is in this room, from where verdicts print it beside a null of the same testbed.
"""

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from c3po_bench.analysis import families, statistics
from c3po_bench.analysis.arms import BASE, METHODS, arm_of
from c3po_bench.analysis.frames import records
from c3po_bench.errors import UserError, exit_status, unknown
from c3po_bench.store.files import write_json, write_text
from c3po_bench.store.reader import Run, load_runs
from c3po_bench.store.versions import arm_version

SEEDS = 3
"""Draws of items: item i of a task is of seed i % SEEDS. Random neighbors and labels are drawn by item."""
KNOWN = Path(__file__).with_suffix(".json")
SHIFTED = "_shifted"
"""Ending of a task that asks the questions of another task in other words."""


class Testbed(NamedTuple):
    """A model whose gap is known, and how sets of its items are composed.

    Attributes:
        ceiling: the arm whose difference to base is the gap.
        items: of a set.
        tasks: how the names of its tasks begin.
        wrong: shares of items on which the router is wrong, a set each.
        settings: what else differs between sets, in words.
        kind: of an item, by its model and task; items most of whose neighbors are of their own task are of
            the kind with TOLD behind it, too.
        mix: of a share and a setting the shares of items by kind.
    """

    ceiling: str
    items: int
    tasks: str
    wrong: tuple[float, ...]
    settings: tuple[str, ...]
    kind: Callable[[str, str], str]
    mix: Callable[[float, str], dict[str, float]]


RETRIEVAL = {
    "all neighbors of the right kind": 1.0,
    "neighbors of the right kind for 75% of the items": 0.75,
    "neighbors of the right kind for 50% of the items": 0.5,
    "neighbors of the right kind for 25% of the items": 0.25,
}
"""Settings of the planted testbed: the share of items with topic words of the person's own domain."""
TOLD = ", told"
CHANGES = {
    "routers damaged, most neighbors of the right skill": ("right, told", "damaged, told"),
    "routers damaged, neighbors as found": ("right", "damaged"),
    "phrasing shifted, most neighbors of the right skill": ("right, told", "shifted, told"),
    "phrasing shifted, neighbors as found": ("right", "shifted"),
}
"""Settings of `specialists`: the kinds of items on which the router is right and wrong."""


def _planted_mix(wrong: float, setting: str) -> dict[str, float]:
    share = RETRIEVAL[setting]
    topics = {"told": share, "misled": 1 - share}
    names = {"known": 1 - wrong, "rare": wrong}
    return {f"{name}_{topic}": a * b for name, a in names.items() for topic, b in topics.items()}


def _specialists_kind(model: str, task: str) -> str:
    if model.endswith("_damaged"):
        return "damaged"
    return "shifted" if task.endswith(SHIFTED) else "right"


def _specialists_mix(wrong: float, setting: str) -> dict[str, float]:
    right, other = CHANGES[setting]
    return {right: 1 - wrong, other: wrong}


TESTBEDS = {
    "planted": Testbed(
        ceiling="planted_optimum",
        items=600,
        tasks="planted",
        wrong=(0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.045, 0.075, 0.15, 0.3, 0.45, 0.6, 0.75),
        settings=tuple(RETRIEVAL),
        kind=lambda model, task: task.removeprefix("planted_"),
        mix=_planted_mix,
    ),
    "specialists": Testbed(
        ceiling="right_expert",
        items=297,
        tasks="skills",
        wrong=(0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1),
        settings=tuple(CHANGES),
        kind=_specialists_kind,
        mix=_specialists_mix,
    ),
}


class Records(NamedTuple):
    """What each arm has right, item by item.

    Attributes:
        testbed: the model's name.
        items: kind, task and doc_id of each, sorted.
        led_right: whether most neighbors of an item are of its own task.
        correct: by arm, [items].
        controls: of each method that has any.
        versions: of the arms, when they were recorded.
    """

    testbed: str
    items: list[tuple[str, str, int]]
    led_right: list[bool]
    correct: dict[str, NDArray[np.float64]]
    controls: dict[str, list[str]]
    versions: dict[str, int]

    def gain(self, arm: str, other: str, places: NDArray[np.intp]) -> float:
        """The mean difference of two arms on some items."""
        return float((self.correct[arm] - self.correct[other])[places].mean())


def read(runs: Sequence[Run]) -> Records:
    """The records of stores. An arm may have several runs: on other tasks, or with the model damaged.

    Raises:
        UserError: where it is of no testbed, base or ceiling is missing, or an arm has other items than base.
    """
    name = runs[0].result["model"].removesuffix("_damaged") if runs else "none"
    if name not in TESTBEDS:
        raise unknown("testbed", name, TESTBEDS)
    testbed = TESTBEDS[name]
    rows: dict[str, dict[tuple[str, str, int], float]] = {}
    methods: list[str] = []
    controls: dict[str, list[str]] = {}
    versions: dict[str, int] = {}
    led_right: dict[tuple[str, str, int], bool] = {}
    for run in runs:
        facts = arm_of(run)
        own = rows.setdefault(facts.name, {})
        for row in run.samples():
            kind = testbed.kind(run.result["model"], row["task"])
            item = (kind, row["task"], int(row["doc_id"]))
            own[item] = float(row["correct"])
            if facts.role == "method" and "neighbors" in row:
                near = [neighbor["id"].rpartition("/")[0] for neighbor in row["neighbors"]]
                led_right[item] = near.count(row["task"].removesuffix(SHIFTED)) > len(near) / 2
        versions[facts.name] = int(run.result["versions"]["arm"])
        if facts.role in METHODS:
            methods.append(facts.name)
        elif facts.control_of:
            controls.setdefault(facts.control_of, []).append(facts.name)
    for arm in (BASE, testbed.ceiling):
        if arm not in rows:
            raise UserError(f"no run of {arm} in the store: it is needed to know the gap")
    items = sorted(rows[BASE])
    asked = {method: sorted({*controls[method]}) for method in sorted({*methods}) if method in controls}
    needed = {BASE, testbed.ceiling, *asked, *sum(asked.values(), [])}
    rows = {arm: own for arm, own in rows.items() if arm in needed}
    if other := next((arm for arm, own in rows.items() if own.keys() != rows[BASE].keys()), None):
        raise UserError(f"{other} has other items than base: run the experiment again")
    versions = {arm: versions[arm] for arm in rows}
    correct = {arm: np.array([own[item] for item in items]) for arm, own in rows.items()}
    return Records(name, items, [led_right.get(item, False) for item in items], correct, asked, versions)


def table(found: Records) -> pd.DataFrame:
    """A row a method, setting and share of items with a wrong router.

    `gap`, `gain` (to base) and `over_control` (to the strongest control) are differences of accuracy, means
    over seeds; `found` counts the seeds in which the method beats base and its controls.
    """
    testbed = TESTBEDS[found.testbed]
    pools = [_pool(found, seed) for seed in range(SEEDS)]
    questions = [(task.removesuffix(SHIFTED), number) for _, task, number in found.items]
    rows = []
    for setting in testbed.settings:
        if any(testbed.mix(0.5, setting).keys() - pool.keys() for pool in pools):
            continue  # the stores are without it
        for wrong in testbed.wrong:
            sets = [compose(pool, testbed.mix(wrong, setting), testbed.items, questions) for pool in pools]
            shown = [_shown(found, places) for places in sets]
            gap = np.mean([found.gain(testbed.ceiling, BASE, places) for places in sets])
            for method, controls in found.controls.items():
                over = [min(found.gain(method, c, places) for c in controls) for places in sets]
                row = {"testbed": found.testbed, "method": method, "setting": setting, "wrong": wrong}
                row |= {"gap": gap, "gain": np.mean([found.gain(method, BASE, places) for places in sets])}
                row |= {"over_control": np.mean(over), "found": sum(method in methods for methods in shown)}
                rows.append(row | {"seeds": SEEDS, "items": min(map(len, sets))})
    return pd.DataFrame(rows)


def _pool(found: Records, seed: int) -> dict[str, list[int]]:
    """The places of a seed's items by kind; tasks of a kind in turn, so that any beginning is balanced."""
    pool: dict[str, list[int]] = {}
    for place in sorted(range(len(found.items)), key=lambda place: found.items[place][::-1]):
        kind, _, number = found.items[place]
        if number % SEEDS == seed:
            pool.setdefault(kind, []).append(place)
            if found.led_right[place]:
                pool.setdefault(kind + TOLD, []).append(place)
    return pool


def compose(
    pool: Mapping[str, Sequence[int]], shares: Mapping[str, float], items: int, questions: Sequence[Any]
) -> NDArray[np.intp]:
    """The places of a set with these shares of each kind in `pool`.

    A question that two kinds share, asked in two phrasings or of two models, is in a set once.

    Args:
        pool: places by kind.
        shares: by kind.
        items: how many in all; fewer where the pool has not as many of a kind.
        questions: what is asked in each place.
    """
    size = min([items, *(len(pool[kind]) / share for kind, share in shares.items() if share)])
    chosen: dict[Any, int] = {}
    for kind in sorted(shares, key=lambda kind: len(pool[kind])):  # scarce ones first: others can give way
        places = [place for place in pool[kind] if questions[place] not in chosen]
        chosen |= {questions[place]: place for place in places[: round(size * shares[kind])]}
    return np.array([*chosen.values()], dtype=np.intp)


def _shown(found: Records, places: NDArray[np.intp]) -> set[str]:
    """The methods that beat base and each of their controls on these items."""
    arms = [arm for arm in found.correct if arm != BASE]
    over_base = _beats(found, [(arm, BASE) for arm in arms], places)
    pairs = [(method, control) for method, controls in found.controls.items() for control in controls]
    over_controls = _beats(found, pairs, places)
    return {
        method
        for method, controls in found.controls.items()
        if (method, BASE) in over_base and all((method, control) in over_controls for control in controls)
    }


def _beats(
    found: Records, pairs: Sequence[tuple[str, str]], places: NDArray[np.intp]
) -> set[tuple[str, str]]:
    """The pairs of arms whose first is shown to be better, after Holm's correction for all of them."""
    changed = [statistics.fixed_broken(*(found.correct[arm][places] for arm in pair)) for pair in pairs]
    p = [float(statistics.mid_p(*counts)) for counts in changed]
    return {
        pair
        for pair, (fixed, broken), corrected in zip(pairs, changed, families.holm(p), strict=True)
        if corrected < statistics.ALPHA and statistics.tango(fixed, broken, len(places)).low > 0
    }


def smallest(frame: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """By method and setting the smallest gap that is found in every seed, as all larger ones are.

    None where not even the largest is.
    """
    sets: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in records(frame):
        sets.setdefault((row["method"], row["setting"]), []).append(row)
    result: dict[str, dict[str, float | None]] = {}
    for (method, setting), own in sets.items():
        gap = None
        for row in sorted(own, key=lambda row: -row["gap"]):
            if row["found"] < row["seeds"]:
                break
            gap = round(float(row["gap"]), 4)
        result.setdefault(method, {})[setting] = gap
    return result


def summary(found: Records, frame: pd.DataFrame) -> dict[str, Any]:
    """What verdicts need of a testbed's table."""
    return {
        "largest": round(max(float(row["gap"]) for row in records(frame)), 4),
        "smallest": smallest(frame),
        "controls": found.controls,
        "versions": found.versions,
    }


def publish(stores: Sequence[str], folder: Path) -> None:
    """Write `items_TESTBED.csv`, `sensitivity.csv` and `smallest.json` of the stores into `folder`."""
    runs: dict[str, list[Run]] = {}
    for run in (run for store in stores for run in load_runs(store)):
        runs.setdefault(run.result["model"].removesuffix("_damaged"), []).append(run)
    measured = [read(own) for own in runs.values()]
    frames = [table(found) for found in measured]
    for found in measured:
        write_text(folder / f"items_{found.testbed}.csv", items_text(found))
    write_text(folder / "sensitivity.csv", pd.concat(frames).to_csv(index=False, float_format="%.4f"))
    write_json(
        folder / "smallest.json",
        {found.testbed: summary(found, frame) for found, frame in zip(measured, frames, strict=True)},
    )


def items_text(found: Records) -> str:
    """What each arm has right, a line an item, as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["kind", "task", "doc_id", "led_right", *found.correct])
    for place, item in enumerate(found.items):
        writer.writerow(
            [*item, int(found.led_right[place]), *(int(own[place]) for own in found.correct.values())]
        )
    return out.getvalue()


def read_items(folder: Path, name: str) -> Records:
    """The records of a published testbed, as `publish` has written them."""
    about = json.loads((folder / "smallest.json").read_text(encoding="utf-8"))[name]
    text = (folder / f"items_{name}.csv").read_text(encoding="utf-8")
    head, *lines = csv.reader(io.StringIO(text))
    items = [(kind, task, int(number)) for kind, task, number, *_ in lines]
    correct = {arm: np.array([float(line[4 + i]) for line in lines]) for i, arm in enumerate(head[4:])}
    led_right = [line[3] == "1" for line in lines]
    return Records(name, items, led_right, correct, about["controls"], about["versions"])


@cache
def _known() -> dict[str, Any]:
    return json.loads(KNOWN.read_text(encoding="utf-8")) if KNOWN.exists() else {}


def add_sensitivity(rows: Sequence[dict[str, Any]]) -> None:
    """Put `sensitivity` into rows of `compare` on a testbed: a clause on what gap would have been found.

    It is the arm's own smallest gap; of an arm that was not measured, that of the best arm. Nothing is said
    elsewhere than on a testbed with its own tasks, or where an arm has another version than when measured.
    """
    tasks: dict[str, set[str]] = {}
    for row in rows:
        if row["level"] == "task":
            tasks.setdefault(row["run_id"], set()).add(row["task"])
    for row in rows:
        about = _known().get(row["model"])
        if about is None or any(arm_version(arm) != version for arm, version in about["versions"].items()):
            continue
        if all(task.startswith(TESTBEDS[row["model"]].tasks) for task in tasks.get(row["run_id"], [""])):
            row["sensitivity"] = _clause(row["arm"], about)


def _clause(arm: str, about: Mapping[str, Any]) -> str:
    """The smallest gap that `arm` finds, or the best arm where it was not measured, and in which setting."""
    gaps = {
        (name, setting): math.inf if gap is None else gap
        for name, settings in about["smallest"].items()
        for setting, gap in settings.items()
        if name == arm or arm not in about["smallest"]
    }
    name, setting = min(gaps, key=lambda key: gaps[key])
    who = "" if name == arm else f" by {name.replace('_', ' ')}"
    if math.isinf(gaps[name, setting]):
        return f"; on this testbed no gap up to {100 * about['largest']:.2g} points is found in three of three seeds"
    found = f"; on this testbed a gap of {100 * gaps[name, setting]:.2g} points would have been found{who}"
    return f"{found} in three of three seeds ({setting})"


def main() -> int:
    """Publish what stores say about the sensitivity of testbeds."""
    parser = argparse.ArgumentParser(prog="python -m c3po_bench.analysis.sensitivity", description=__doc__)
    parser.add_argument(
        "stores", nargs="+", help="results_dir of +experiment=sensitivity; of +experiment=specialists"
    )
    parser.add_argument("folder", type=Path, help="results/sensitivity")
    arguments = parser.parse_args()
    return exit_status(lambda: publish(arguments.stores, arguments.folder))


if __name__ == "__main__":
    sys.exit(main())
