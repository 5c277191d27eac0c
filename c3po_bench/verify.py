"""`python -m c3po_bench.verify RESULTS_DIR [--items 20]`: for somebody who distrusts a store.

Hashes are computed again, every row is held to what it says itself and to the run's journal, every aggregate,
table and verdict is computed from the records, and where the model can be had some items are drawn and
answered again here.
"""

import argparse
import csv
import html
import io
import logging
import math
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from c3po_bench.analysis.arms import BASE
from c3po_bench.analysis.compare import compare, compare_controls, options_of, trained_on_seeds
from c3po_bench.analysis.gold import gold_probability
from c3po_bench.analysis.overall import conclusion
from c3po_bench.analysis.study import check as check_study
from c3po_bench.errors import DamagedFile, UserError, exit_status
from c3po_bench.feedback.measures import extra_metrics
from c3po_bench.feedback.sentences import find_feedback
from c3po_bench.runtime.console import quiet_libraries
from c3po_bench.store.files import parsed, read_groups
from c3po_bench.store.identity import content_hash, run_id
from c3po_bench.store.reader import Run, load_experiments, load_runs
from c3po_bench.store.schema import SCHEMA_VERSION

log = logging.getLogger("c3po_bench")
SHARED = ("schema", "model", "dtype", "data", "requests", "limit", "shard", "scoring", "versions")
"""Parts of a run's identity that its comparison key is made of (`evaluate.run.shared_identity`)."""
ROUNDED = 2e-5  # sums of log-likelihoods that a record keeps with six decimals
AGAIN = 0.02
"""Nats by which an answer given again may differ: batches and processors move the last digits, and descents let that grow."""
MOST_SHOWN = 20


@dataclass
class Findings:
    """What holds, what does not, and what could not be looked at."""

    checked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The last line: what was checked, and what could not be."""
        found = f"{len(self.wrong)} do not hold" if self.wrong else "all hold"
        line = f"checked: {'; '.join(self.checked)}: {found}"
        return f"{line}; not checked: {'; '.join(dict.fromkeys(self.skipped))}" if self.skipped else line


def verify(results_dir: str | Path, items: int = 20, seed: int = 0, train: bool = False) -> Findings:
    """Look through a store, or a published study.

    Args:
        results_dir: the store.
        items: how many items each arm answers again; 0 for none.
        seed: draws them.
        train: whether arms that train are trained again for it.
    """
    findings, runs = Findings(), load_runs(results_dir)
    if not runs:
        raise UserError(f"no run in {results_dir} has finished yet")
    rows = {run.run_id: _rows_of(run, findings) for run in runs}
    findings.checked.append(f"{len(runs)} runs with their hashes")
    _check_rows(runs, rows, findings)
    for run in runs:
        findings.wrong += _aggregates(run, rows[run.run_id])
    findings.checked.append("aggregates")
    if not findings.wrong:
        _check_tables(Path(results_dir), runs, findings)
    if items:
        _answer_again(results_dir, {run.run_id: run for run in runs}, rows, findings, items, seed, train)
    return findings


def _rows_of(run: Run, findings: Findings) -> list[dict[str, Any]]:
    """A run's rows; what its name, keys and checksums do not fit goes into the findings."""
    identity, name = run.provenance["identity"], run.run_id
    if identity.get("schema") == SCHEMA_VERSION:
        if run_id(run.arm, identity) != name:
            findings.wrong.append(f"{name}: its name is not the hash of its identity")
        if content_hash({k: identity[k] for k in SHARED if k in identity}) != run.result["comparison_key"]:
            findings.wrong.append(f"{name}: its comparison key is not that of its identity")
    else:
        findings.skipped.append("names of runs recorded with an older schema")
    if identity.get("data", run.provenance["data_hashes"]) != run.provenance["data_hashes"]:
        findings.wrong.append(f"{name}: its data hashes are not those of its identity")
    if not run.provenance.get("checksums"):
        findings.skipped.append(f"checksum of {name}, which has none")
    try:
        return run.samples()
    except DamagedFile as error:
        findings.wrong.append(str(error).partition(": put it back")[0])
    path, rows = run.path / "samples.jsonl", []
    with suppress(UserError, OSError):
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            rows.append(parsed(line, f"{path}, line {number}"))
    return rows


def _check_rows(runs: Sequence[Run], rows: dict[str, list[dict[str, Any]]], findings: Findings) -> None:
    """Hold every row to what it says itself, and to the journal of its run where there is one."""
    journals = 0
    for run in runs:
        known = _journal(run)
        journals += known is not None
        for row in rows[run.run_id]:
            place = f"{run.run_id}: {row.get('task')}/{row.get('doc_id')}"
            with suppress(KeyError, TypeError):
                findings.wrong += [f"{place}: {why}" for why in _row_faults(run, row)]
                if known is not None and (answer := _answer_of(row)) is not None and answer not in known:
                    findings.wrong.append(f"{place}: its answer is none of its run's journal")
    count = sum(map(len, rows.values()))
    findings.checked.append(f"{count:,} rows by themselves, of {journals} runs also by their journals")


def _journal(run: Run) -> set[Any] | None:
    """All answers in the journals of a run: log-likelihoods, and texts."""
    paths = sorted(run.path.glob("journal*.jsonl"))
    if not paths:
        return None
    answers: set[Any] = set()
    for row in (row for path in paths for row in read_groups(path)):
        kept = row["answers"]
        if kept and isinstance(kept[0], list):
            scores = [round(float(score), 6) for score, _ in kept]
            answers |= {tuple(scores[:n]) for n in range(1, len(scores) + 1)}
        else:
            answers |= set(kept)
    return answers


def _answer_of(row: dict[str, Any]) -> Any:
    if row.get("loglikelihoods"):
        return tuple(round(score, 6) for score in row["loglikelihoods"])
    return row.get("response")


def _row_faults(run: Run, row: dict[str, Any]) -> Iterator[str]:
    """What does not fit within one row."""
    if row.get("scope"):
        score = row["score"]
        signed = score or 0.0
        if row["correct"] != (signed if row["scope"] == "in" else abs(signed)):
            yield f"correct {row['correct']:g} is not its score {score}"
        texts = row.get("response"), row.get("baseline_response")
        if score is not None and None not in texts and (rules := _rules_of(row["feedback_id"])):
            ruled = float(rules.holds(texts[0])) - float(rules.holds(texts[1]))
            if ruled != row.get("rule_score", score):
                yield f"the feedback's rules say {ruled:g}, the row {row.get('rule_score', score)}"
        return
    scores, gold = row.get("loglikelihoods"), row.get("gold")
    plain = "acc" in run.result.get("versions", {}) and "acc_norm" not in run.result.get("versions", {})
    if not scores or not isinstance(gold, int) or not plain:
        return
    best = max(scores)
    if scores[row["prediction"]] < best - ROUNDED:
        yield f"prediction {row['prediction']} is not its likeliest choice"
    share = gold_probability(scores, [gold])
    several = row.get("p_gold", share) > share + 1e-4  # several choices are right
    if row.get("p_gold", share) < share - 1e-4:
        yield f"p_gold {row['p_gold']} is not what its log-likelihoods say ({share:.6f})"
    clear = sorted(scores)[-2:][0] < best - ROUNDED
    if clear and not several and row["correct"] in (0, 1) and row["correct"] != (row["prediction"] == gold):
        yield f"correct {row['correct']:g}, and its prediction is {row['prediction']}, the right choice {gold}"


def _rules_of(feedback_id: str) -> Any:
    """The piece of our library with these rules; None where there is none."""
    with suppress(UserError):
        piece = find_feedback([feedback_id], [])[0]
        return piece if piece.checkable else None
    return None


def _aggregates(run: Run, rows: list[dict[str, Any]]) -> Iterator[str]:
    """What of a result its rows do not say."""
    with suppress(KeyError):
        judged = [row for row in rows if row.get("score", row["correct"]) is not None]
        numbers = Counter(row["task"] for row in judged)
        for task, n in numbers.items():
            stored = run.result["metrics"].get(task, {})
            acc = fmean(row["correct"] for row in judged if row["task"] == task)
            if stored.get("n") != n or not math.isclose(stored.get("acc", math.nan), acc, abs_tol=1e-9):
                claimed = f"{stored.get('acc')} of {stored.get('n')}"
                yield f"{run.run_id}: {task} has acc {acc:.6f} of {n}, result.json says {claimed}"
        for task, more in extra_metrics(rows).items():
            for name, value in more.items():
                stored = run.result["metrics"].get(task, {}).get(name)
                if stored is None or not math.isclose(stored, value, abs_tol=1e-6):
                    yield f"{run.run_id}: {name} of {task} is {value:.6f}, result.json says {stored}"
        if run.result["cost"]["items"] != len(rows):
            yield f"{run.run_id}: {len(rows)} rows, result.json says {run.result['cost']['items']} items"


def _check_tables(folder: Path, runs: Sequence[Run], findings: Findings) -> None:
    """The published tables, or the report's; and the verdict."""
    seeds, refused = trained_on_seeds(folder), dict[str, str]()
    compared = compare(runs, **options_of(folder), one_row=seeds, refused=refused)
    controls = compare_controls(runs, refused=refused)
    if (folder / "comparison.csv").exists():
        try:
            check_study(folder)
        except UserError as error:
            findings.wrong.append(str(error))
        findings.checked.append("the study's tables")
    elif (table := folder / "tables" / "comparison.csv").exists():
        against = _base_of(table, runs)  # of a report with differences to another arm
        ours = (
            compared
            if against == BASE
            else compare(runs, **options_of(folder), against=against, one_row=seeds, refused=dict[str, str]())
        )
        findings.wrong += _table_faults(table, ours.to_csv(index=False))
        findings.checked.append("the report's comparison")
    if (page := folder / "report.html").exists():
        text = html.unescape(page.read_text(encoding="utf-8"))
        absent = [line for line in conclusion(folder, runs, compared, controls) if line not in text]
        findings.wrong += [f"{page} does not say: {line}" for line in absent]
        findings.checked.append("the report's verdict")
    sys.stdout.write(f"verdict: {' '.join(conclusion(folder, runs, compared, controls))}\n")
    findings.checked.append("the verdict from the records")


def _base_of(table: Path, runs: Sequence[Run]) -> str:
    """The arm that a written table has differences to: the one that all rows name as theirs.

    Base where they name several.
    """
    arms = {run.run_id: run.arm for run in runs}
    rows = csv.DictReader(io.StringIO(table.read_text(encoding="utf-8")))
    named = {arms.get(row.get("base_run_id", ""), BASE) for row in rows}
    return named.pop() if len(named) == 1 else BASE


def _place(row: dict[str, str]) -> tuple[str, ...]:
    """What tells a row of a comparison from the others: tables are written in several orders."""
    return tuple(row.get(name, "") for name in ("run_id", "task", "level", "scope"))


def _table_faults(path: Path, text: str) -> Iterator[str]:
    """Cells of a written table that are not those computed now."""
    ours, theirs = (list(csv.DictReader(io.StringIO(t))) for t in (text, path.read_text(encoding="utf-8")))
    there = {_place(row): row for row in theirs}
    expected = [row for row in ours if _place(row) in there or not row["scope"]]  # a report has scopes apart
    if len(expected) != len(theirs):
        yield f"{path}: {len(theirs)} rows, the records give {len(expected)}"
    for new in expected:
        old = there.get(_place(new), {})
        for name, value in old.items():
            if name in new and not _same(new[name], value):
                yield f"{path}: {old.get('run_id')} on {old.get('task')}: {name} is {new[name]}, the table says {value}"


def _same(ours: str, theirs: str) -> bool:
    try:
        return math.isclose(float(ours), float(theirs), rel_tol=1e-4, abs_tol=1e-9)
    except ValueError:
        return ours == theirs


def _answer_again(
    results_dir: str | Path,
    runs: dict[str, Run],
    rows: dict[str, list[dict[str, Any]]],
    findings: Findings,
    items: int,
    seed: int,
    train: bool,
) -> None:
    """Have the arms of each recorded experiment answer some items again, in a folder of its own."""
    experiments = load_experiments(results_dir)
    if not experiments:
        findings.skipped.append("answers: no configuration is kept with these records")
        return
    seen: set[str] = set()
    totals = Counter[str]()
    for experiment in reversed(experiments):
        if set(experiment["runs"]) <= seen:
            continue
        try:
            with tempfile.TemporaryDirectory() as folder:
                _again(experiment, Path(folder), runs, rows, findings, items, seed, train, seen, totals)
        except (UserError, ModuleNotFoundError) as error:
            findings.skipped.append(f"answers of {experiment['name']}: {' '.join(str(error).split())}")
    if totals["arms"]:
        findings.checked.append(
            f"{totals['answers']} answers of {totals['arms']} arms given again on this machine, {totals['alike']} alike"
        )


def _again(
    experiment: dict[str, Any],
    folder: Path,
    runs: dict[str, Run],
    rows: dict[str, list[dict[str, Any]]],
    findings: Findings,
    items: int,
    seed: int,
    train: bool,
    seen: set[str],
    totals: Counter[str],
) -> None:
    # the room is entered here: without a model to ask nothing of torch and lm-eval is needed
    from c3po_bench.evaluate.run import identity_of, open_backend, set_up, shared_identity
    from c3po_bench.launch.sweep_folder import typed_config

    cfg = replace(typed_config(experiment["config"]), results_dir=str(folder), log_level="error", shard=None)
    set_up(cfg)
    backend = open_backend(cfg)
    shared = shared_identity(cfg, backend.tasks, backend)
    drawn = list(backend.tasks.items(cfg.limit, labelled=True))
    drawn = sorted(random.Random(seed).sample(drawn, min(items, len(drawn))), key=lambda item: item.id)
    for arm in backend.arms():
        name = run_id(arm.row.name, identity_of(cfg, arm, shared))
        if name in seen:
            continue
        if name not in runs:
            findings.skipped.append(
                f"answers of {arm.row.name}: its identity is another today, on this machine"
            )
            continue
        seen.add(name)
        if not train and (arm.row.builds == "recipe" or arm.row.references == "training"):
            findings.skipped.append(f"answers of {arm.row.name}, which would train (--train)")
            continue
        totals["arms"] += 1
        known = {(row["task"], row["doc_id"]): row for row in rows[name]}
        try:
            arm.prepare()
            for item in drawn:
                if (row := known.get(item.id)) is None:
                    findings.wrong.append(f"{name}: {item.id[0]}/{item.id[1]} has no row")
                    continue
                answer = arm.answer([arm.row.visible(item)])[0]
                totals["answers"] += 1
                if why := _differs(answer, row):
                    findings.wrong.append(
                        f"{name}: {item.id[0]}/{item.id[1]} is answered otherwise here: {why}"
                    )
                else:
                    totals["alike"] += 1
        finally:
            arm.close()
    backend.close()


def _differs(answer: Any, row: dict[str, Any]) -> str:
    """How an answer given again differs from its row; nothing where it does not."""
    if row.get("loglikelihoods"):
        pairs = zip((score for score, _ in answer.scores), row["loglikelihoods"], strict=False)
        largest = max(abs(ours - theirs) for ours, theirs in pairs)
        return f"a log-likelihood is {largest:.3g} off" if largest > AGAIN else ""
    text = str(row.get("response", row.get("prediction")))
    return "" if text in str(answer.text) else f"{str(answer.text)[:40]!r}"


def main(argv: list[str] | None = None) -> int:
    """Verify; 2 where something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m c3po_bench.verify", description=__doc__)
    parser.add_argument("results_dir", help="a store, or the folder of a published study")
    parser.add_argument(
        "--items", type=int, default=20, help="how many items each arm answers again (default: 20)"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the items")
    parser.add_argument("--train", action="store_true", help="also train again the arms that train")
    arguments = parser.parse_args(argv)
    quiet_libraries()

    def work() -> None:
        findings = verify(arguments.results_dir, arguments.items, arguments.seed, arguments.train)
        for line in findings.wrong[:MOST_SHOWN]:
            sys.stdout.write(f"wrong: {line}\n")
        sys.stdout.write(findings.line() + "\n")
        sys.stdout.flush()
        if findings.wrong:
            raise UserError(f"{len(findings.wrong)} things do not hold, first: {findings.wrong[0]}")

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
