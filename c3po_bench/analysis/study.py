"""`python -m c3po_bench.analysis.study STORE FOLDER`.

Publish a store as a study that anybody can check without a model.

A study keeps of each run its result, its provenance and what statistics need of its samples, no text of any
question or answer; the tables beside them are computed from exactly that, and `check` computes them again.
"""

import argparse
import io
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from c3po_bench.analysis.compare import compare, compare_controls, named_groups
from c3po_bench.analysis.frames import plain_cells
from c3po_bench.analysis.judging import judge_measures
from c3po_bench.analysis.measures import feedback_measures
from c3po_bench.errors import UserError, exit_status
from c3po_bench.store.files import write_json, write_jsonl, write_text
from c3po_bench.store.reader import Run, load_runs
from c3po_bench.store.records import file_checksum

KEPT = ("arm", "task", "doc_id", "doc_hash", "prompt_hash", "correct", "prediction", "cluster")
KEPT += ("scope", "feedback_id", "score", "rule_score", "drift", "similarity", "degeneration")
KEPT += ("gold", "loglikelihoods", "p_gold", "neighbors", "losses", "pathway_change", "votes")
FILES = {"samples.jsonl", "provenance.json", "result.json"}  # of each run
TABLES = ("comparison.csv", "controls.csv", "feedback.csv", "judges.csv")
FACTS = ["title", "role", "change", "not_due_to"]  # of arms: they stand in each run's result
MOVED = ["moved", "natural_spread", "tuning_edges"]  # as does this
DIGITS = 6


def tables(runs: Sequence[Run]) -> dict[str, str]:
    """CSV text by file name.

    The comparison, that with controls and, where there is feedback, its measures by piece.
    """
    frames = {"comparison.csv": compare(runs)}
    if len(controls := compare_controls(runs)):
        frames["controls.csv"] = controls
    if any(frames["comparison.csv"]["scope"]):
        frames["feedback.csv"] = feedback_measures(runs, pieces=True)
    if len(judges := judge_measures(runs)):
        frames["judges.csv"] = judges
    return {
        name: plain_cells(frame.drop(columns=FACTS + MOVED, errors="ignore")).to_csv(
            index=False, float_format=f"%.{DIGITS}g"
        )
        for name, frame in frames.items()
    }


def kept(row: dict[str, Any]) -> dict[str, Any]:
    """What a study keeps of a sample row: what claims can be checked by, and no text of a question or its answer.

    Of neighbors it is which and how near, of what is right its place among the choices.
    """
    row = {key: row[key] for key in KEPT if key in row}
    if not isinstance(row.get("gold"), int):
        row.pop("gold", None)
    if "neighbors" in row:
        row["neighbors"] = [{"id": n["id"], "similarity": n["similarity"]} for n in row["neighbors"]]
    return row


def publish(store: str | Path, folder: Path) -> None:
    """Write the study of a store into `folder`; its README is for a person to write.

    Runs and tables that were published from the store before and are no longer of it go away.
    """
    runs = load_runs(store)
    for run in runs:
        path = folder / "runs" / run.run_id
        write_jsonl(samples := path / "samples.jsonl", map(kept, run.samples()))
        # whose folders, whose machine: left out
        command = re.sub(r"=[~/]\S+", "=DIR", run.provenance["command"])
        provenance = {name: value for name, value in run.provenance.items() if name != "hardware"}
        provenance |= {"command": command, "checksums": {samples.name: file_checksum(samples)}}
        write_json(path / "provenance.json", provenance)
        write_json(path / "result.json", run.result | {"groups": named_groups(run)})
    for path in sorted((folder / "runs").iterdir()):
        # a run as `publish` writes one; a store's has more files and is not to be lost
        published = path.is_dir() and {file.name for file in path.iterdir()} == FILES
        if published and path.name not in {run.run_id for run in runs}:
            shutil.rmtree(path)
    texts = tables(load_runs(folder))
    for name in TABLES:
        if name in texts:
            write_text(folder / name, texts[name])
        else:
            (folder / name).unlink(missing_ok=True)


def check(folder: Path) -> None:
    """Compute a study's tables again from its runs.

    Raises:
        UserError: naming the first table that differs, and where.
    """
    for name, text in tables(load_runs(folder)).items():
        path = folder / name
        if not path.exists():
            raise UserError(
                f"{path} is missing: python -m c3po_bench.analysis.study STORE {folder} writes it"
            )
        ours, theirs = (pd.read_csv(io.StringIO(t)) for t in (text, path.read_text(encoding="utf-8")))
        if marks := unmarked(ours, theirs):
            raise UserError(
                f"{path} does not mark {marks}: write the study again, or record these runs again"
            )
        try:
            pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4)
        except AssertionError as error:
            raise UserError(f"{path} is not what its runs say: {' '.join(str(error).split())}") from None


def unmarked(ours: pd.DataFrame, theirs: pd.DataFrame) -> str:
    """The rows of a table computed now that have another version than today's, and are not so marked in a file's."""
    if "outdated" not in ours:
        return ""
    old: Any = ours["outdated"].notna()
    marked: Any = theirs.reindex(index=ours.index, columns=["outdated"])["outdated"]
    rows: Any = ours[old & (ours["outdated"] != marked)]
    names = dict(zip(rows["run_id"], rows["outdated"], strict=True))
    return ", ".join(f"{run_id} ({why})" for run_id, why in names.items())


def stamp(folder: Path, versions: dict[str, int]) -> None:
    """Write versions into the results of a study recorded before results had them.

    Args:
        folder: of the study.
        versions: of arms that were not at version 1 when they were recorded. Numbers stay as they are.
    """
    for run in load_runs(folder):
        if "versions" not in run.result:
            names = (
                ["score", "drift", "similarity", "degeneration"]
                if "feedback" in run.result["metrics"]
                else []
            )
            if stock := set(run.result["tasks"]) - {"in_scope", "near_scope", "out_of_scope"}:
                names += [
                    "acc_norm" if run.result["scoring"]["rule"] == "length_normalized" else "acc"
                ] * bool(stock)
            shared = dict.fromkeys([run.result["scoring"]["rule"], *names], 1)
            recorded = {"arm": versions.get(run.arm, 1), **shared}
            write_json(run.path / "result.json", run.result | {"versions": recorded})


def main() -> int:
    """Publish, then check; or stamp versions into an older study first."""
    parser = argparse.ArgumentParser(prog="python -m c3po_bench.analysis.study", description=__doc__)
    parser.add_argument("store", help="results_dir of finished experiments")
    parser.add_argument("folder", type=Path, help="the study's folder, such as results/NAME")
    parser.add_argument(
        "--stamp",
        nargs="*",
        metavar="ARM=VERSION",
        help="STORE is an older study: give its results versions, 1 but for the arms named",
    )
    arguments = parser.parse_args()

    def work() -> None:
        if arguments.stamp is not None:
            named = (word.partition("=") for word in arguments.stamp)
            stamp(Path(arguments.store), {arm: int(version) for arm, _, version in named})
        publish(arguments.store, arguments.folder)
        check(arguments.folder)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
