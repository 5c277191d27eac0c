"""The report's files: what they hold, that untrusted text stays text, what a large store costs and shows of itself."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from c3po_bench.errors import UserError
from c3po_bench.report.__main__ import main
from tests import store_factory as factory

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
from c3po_bench.analysis.compare import compare  # noqa: E402
from c3po_bench.analysis.measures import feedback_measures  # noqa: E402
from c3po_bench.analysis.overall import arms_frame  # noqa: E402
from c3po_bench.report import page  # noqa: E402
from c3po_bench.report.build import MOST_RUNS, select, write_report  # noqa: E402
from c3po_bench.store.reader import load_runs  # noqa: E402


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    factory.rewiring_store(root, items=30, hostile=factory.HOSTILE)
    return root, write_report(root, root / "out")


def block(html: str, name: str):
    """The JSON block `name` of a page, unpacked where it is packed."""
    match = re.search(rf'<script type="([^"]+)" id="data-{re.escape(name)}">(.*?)</script>', html, re.S)
    assert match, f"no block {name}"
    kind, text = match.groups()
    return json.loads(text if kind == "application/json" else gzip.decompress(base64.b64decode(text)))


@pytest.mark.security
def test_untrusted_text_is_never_markup(hostile):
    _, path = hostile
    html = path.read_text()
    assert "window.pwned" not in re.sub(r'<script type="text/plain".*?</script>', "", html, flags=re.S)
    assert html.count("<script") == html.count("</script>")
    questions = [item[2] for item in block(html, "items-index")["items"]]
    assert any(factory.HOSTILE in question for question in questions)


@pytest.mark.security
def test_json_blocks_hold_no_markup_and_no_nan():
    text = str(page.embed({"a": "</script><b>&", "n": float("nan"), "s": "\u2028"}))
    assert "<" not in text and "&" not in text and "\u2028" not in text
    assert json.loads(text) == {"a": "</script><b>&", "n": None, "s": "\u2028"}


@pytest.mark.security
def test_page_loads_nothing_and_scripts_are_the_two_it_allows(hostile):
    html = hostile[1].read_text()
    markup = re.sub(r"(<script[^>]*>).*?</script>", r"\1", html, flags=re.S)
    assert not re.search(r"<(?:script|img|link|iframe|object)[^>]*\b(?:src|href|data)=", markup)
    policy = unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1])
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and policy.count("sha256-") == 2
    assert "unsafe-inline" not in policy.split("style-src")[0]


@pytest.mark.security
def test_hostile_names_are_escaped(tmp_path):
    scores = factory.scores_of("base", 12, 0.5)
    for arm in ("base", "<b>ngd"):
        factory.write_run(
            tmp_path, arm.replace("/", ""), factory.sample_rows(arm, "<i>arc", scores, details=False)
        )
    html = write_report(tmp_path, tmp_path / "out").read_text()
    assert "<b>ngd" not in html and "&lt;b&gt;ngd" in html
    assert "<i>arc" not in html and "&lt;i&gt;arc" in html


def test_verdict_command_and_tables_are_there(hostile):
    root, path = hostile
    html = path.read_text()
    assert "cannot be told from base" in html or "beats base" in html
    assert "python -m c3po_bench +experiment=quickstart" in html
    comparison = pd.read_parquet(root / "out" / "tables" / "comparison.parquet")
    assert len(comparison) == 6 * 4
    assert len(pd.read_csv(root / "out" / "tables" / "ablation.csv")) == len(comparison)
    figures = {p.name for p in (root / "out" / "figures").iterdir()}
    assert {"effects.svg", "effects.png", "cost.svg", "cost.png"} <= figures
    effects = (root / "out" / "figures" / "effects.svg").read_text(encoding="utf-8")
    assert ">0</text>" in effects, "the axis of differences has a zero, as a figure of its own, too"


def test_all_items_are_listed_and_flips_have_details(hostile):
    html = hostile[1].read_text()
    meta, index = block(html, "explorer"), block(html, "items-index")
    assert len(index["items"]) == 60 and len(meta["arms"]) == 6
    assert {a["label"] for a in meta["arms"] if a["tries"]} == {"kernel regression"}, (
        "whose losses are of shares, not steps"
    )
    arm = next(i for i, a in enumerate(meta["arms"]) if a["label"] == "NGD")
    details = {k: v for _, chunk in meta["arms"][arm]["chunks"] for k, v in block(html, chunk).items()}
    scores, base = index["scores"][arm], index["scores"][meta["arms"][arm]["base"]]
    flipped = [i for i, (a, b) in enumerate(zip(scores, base, strict=True)) if a != b]
    assert flipped and all(str(i) in details for i in flipped)
    assert {"neighbors", "losses", "pathway_before", "pathway_after"} <= details[str(flipped[0])].keys()


def test_report_of_a_feedback_store_says_follows_and_leaks_and_never_accuracy(tmp_path):
    factory.feedback_store(tmp_path)
    html = write_report(tmp_path).read_text()
    markup = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", html, flags=re.S)
    assert 'id="feedback-table"' in markup and "Leaks near" in markup and 'id="figure-feedback"' in markup
    assert 'id="comparison-table"' not in markup
    assert not re.search("accura", markup.split('id="provenance"')[0], re.I)
    measured = pd.read_parquet(tmp_path / "tables" / "feedback.parquet")
    assert set(measured["feedback"]) == {"", *(f"emoji-{i}" for i in range(5))}
    arms = pd.read_csv(tmp_path / "tables" / "feedback_arms.csv")
    assert {"follows", "leaks_near", "leaks_out", "s_overall", "drift", "s_overall_low"} <= set(arms.columns)
    assert arms["arm"][0] == "base" and list(arms["s_overall"][1:]) == sorted(
        arms["s_overall"][1:], reverse=True
    )
    assert len(pd.read_csv(tmp_path / "tables" / "comparison.csv")) == 0
    ablation = pd.read_csv(tmp_path / "tables" / "ablation.csv")
    assert {"follows", "leaks_near", "leaks_out"} <= set(ablation["metric"]) and "acc" not in set(
        ablation["metric"]
    )


def test_comparison_begins_with_the_rows_over_everything(tmp_path):
    factory.rewiring_store(tmp_path, items=10)
    write_report(tmp_path)
    levels = list(pd.read_csv(tmp_path / "tables" / "comparison.csv")["level"])
    assert levels == ["pooled"] * 6 + ["macro"] * 6 + ["task"] * 12


def test_against_another_arm_differences_are_to_it_and_sentences_stay_about_base(tmp_path, capsys):
    factory.rewiring_store(tmp_path, items=40)
    plain = write_report(tmp_path, tmp_path / "plain").read_text()
    assert main([str(tmp_path), "--output", str(tmp_path / "out"), "--against", "ngd"]) == 0
    html = (tmp_path / "out" / "report.html").read_text()
    assert "Each arm against NGD on the same items" in html and "difference to NGD, points" in html
    verdict = re.compile(r'<div class="verdict">(.*?)</div>', re.S)
    assert verdict.search(html)[1] == verdict.search(plain)[1]
    own = pd.read_csv(tmp_path / "out" / "tables" / "comparison.csv").set_index(["arm", "task"])["difference"]
    to_base = pd.read_csv(tmp_path / "plain" / "tables" / "comparison.csv").set_index(["arm", "task"])[
        "difference"
    ]
    assert own["base", "facts"] == pytest.approx(-to_base["ngd", "facts"]) and np.isnan(own["ngd", "facts"])
    assert own["oracle", "facts"] == pytest.approx(to_base["oracle", "facts"] - to_base["ngd", "facts"])
    capsys.readouterr()
    assert main([str(tmp_path), "--against", "nqd"]) == 2
    said = capsys.readouterr().err
    assert "no run of arm nqd" in said and "oracle" in said


def test_a_small_store_is_described_in_words_that_fit_it(tmp_path):
    """Each control has a line of its own, costs are whole numbers, and what is green says what that means."""
    arms = ("base", "ngd", "ngd_random_neighbors", "ngd_shuffled_labels", "random_pathway")
    for arm in arms:
        rows = factory.sample_rows(
            arm, "arc", factory.scores_of(arm, 20, 1.0 if arm == "ngd" else 0.0), details=False
        )
        for row in rows:  # written answers: guessing has no chance of being right
            row.update(
                choices=None, loglikelihoods=None, gold="18", prediction="18" if row["correct"] else "19"
            )
        factory.write_run(tmp_path, arm, rows, seconds=2500.0)
    html = write_report(tmp_path).read_text()
    (cell,) = re.findall(
        r'class="wide up">\+100.0 <span class="range">([^<]*random neighbors[^<]*)</span>', html
    )
    assert [line.split("] ")[1] for line in cell.splitlines()] == [
        "random neighbors",
        "shuffled labels",
        "a random pathway",
    ]
    assert '<td data-value="125.0" class="num">125</td>' in html
    assert "Green and red: the interval excludes 0 and p is below 0.05" in html
    factory.write_run(tmp_path / "one", "base", factory.sample_rows("base", "arc", [1], details=False))
    html = write_report(tmp_path / "one").read_text()
    assert "1 task · 1 item · 1 run ·" in html and "Green and red" not in html and "1e+03</td>" not in html


def test_refused_runs_are_named_not_hidden(tmp_path):
    runs = factory.rewiring_store(tmp_path, items=10)
    factory.edit(runs[3], lambda row: row.update(prompt_hash="other"))
    html = write_report(tmp_path).read_text()
    assert "Not compared:" in html and "prompts differ" in html


def test_command_line(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "holds no results" in capsys.readouterr().err
    (tmp_path / "empty" / "runs").mkdir(parents=True)
    assert main([str(tmp_path / "empty")]) == 2
    assert "no run in" in capsys.readouterr().err
    factory.rewiring_store(tmp_path / "store", items=5, tasks=("arc",))
    assert main([str(tmp_path / "store"), "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.html")


def test_a_store_without_base_gives_a_report_that_says_so(tmp_path):
    scores = factory.scores_of("ngd", 10, 0.5)
    factory.write_run(tmp_path, "ngd", factory.sample_rows("ngd", "arc", scores, details=True))
    html = write_report(tmp_path).read_text()
    assert "no base run beside it" in html and "Nothing to compare yet" in html


def test_a_report_says_what_its_arms_are(tmp_path):
    runs = factory.store(tmp_path, base=[0, 1], ngd=[1, 1])
    about = runs[1].result["arm_row"] | {"about": "down <the> slope"}
    (tmp_path / "more").mkdir()
    rows = factory.sample_rows("ngd", "arc", np.array([1, 1]), details=False)
    for arm, row in (("base", {}), ("ngd", {"arm_row": about})):
        factory.write_run(tmp_path / "more", arm, rows, **row)
    assert "What the arms are" not in write_report(tmp_path).read_text()  # of older runs nothing is known
    html = write_report(tmp_path / "more").read_text()
    assert "What the arms are" in html and "<dt>NGD</dt><dd>down &lt;the&gt; slope</dd>" in html


def test_large_sweeps_show_the_best_and_say_that_they_were_picked(tmp_path):
    factory.sweep_store(tmp_path, cells=40, items=30, skip=9)
    with pytest.raises(UserError):
        write_report(tmp_path / "elsewhere")
    html = write_report(tmp_path).read_text()
    assert "picked after the scores were known" in html
    assert "the sweep is incomplete" in html
    assert len(block(html, "explorer")["arms"]) == 4


def test_a_setting_of_very_many_values_lies_on_a_scale_and_names_stand_in_the_table_alone(tmp_path):
    """Side by side, 2,000 of them were more than the drawing library could sort."""
    base = factory.sample_rows("base", "arc", np.array([0, 1, 0, 1]), details=False)
    rows = factory.sample_rows("ngd", "arc", np.array([1, 1, 0, 1]), details=False)
    factory.write_run(tmp_path, "base", base)
    for number in range(400):
        method = {"learning_rate": 0.05 + number * 1e-4, "plugin_option": f"named {number}"}
        factory.write_run(tmp_path, "ngd", rows, settings=method)
    write_report(tmp_path)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert "curve_learning_rate.svg" in names
    assert not any("plugin_option" in name or name.startswith("heat") for name in names)


def test_a_sweep_of_scoring_rules_has_figures_and_rows_that_differ(tmp_path):
    for rule in ("cloze", "letters"):
        for shots in (0, 5):
            for arm in ("base", "ngd"):
                rows = factory.sample_rows(arm, "arc", factory.scores_of(arm, 10, 0.5), details=False)
                scoring = {"rule": rule, "num_fewshot": shots, "permute_options": False}
                factory.write_run(tmp_path, arm, rows, key=f"{rule} {shots}", scoring=scoring)
    table = block(write_report(tmp_path).read_text(), "ablation")
    assert [(c["title"], c["numeric"]) for c in table["columns"][:3]] == [
        ("arm", False),
        ("num fewshot", True),
        ("rule", False),
    ]
    assert len({tuple(row[:3]) for row in table["rows"]}) == 8
    assert (tmp_path / "figures" / "heat_num_fewshot_rule.svg").exists()


def test_figures_of_settings_with_any_name_are_files(tmp_path):
    factory.write_run(
        tmp_path,
        "base",
        factory.sample_rows("base", "arc", factory.scores_of("base", 10, 0.5), details=False),
    )
    for cell in range(4):
        rows = factory.sample_rows("ngd", "arc", factory.scores_of("ngd", 10, 0.5), details=False)
        factory.write_run(tmp_path, "ngd", rows, settings={"../my opt/ion": cell % 2, "z": cell // 2})
    write_report(tmp_path)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"heat__my_opt_ion_z.svg", "curve__my_opt_ion.svg", "curve_z.png"} <= names


PROBE = """
import sys, time
from c3po_bench.report.build import write_report
from c3po_bench.runtime.resources import peak_resident
write_report(sys.argv[1], sys.argv[2])
print(time.process_time(), peak_resident())
"""


@pytest.mark.slow
def test_report_of_2000_runs_takes_less_than_30_seconds_and_2_gib(tmp_path):
    factory.sweep_store(tmp_path / "store", cells=2000, items=1000)
    command = [sys.executable, "-c", PROBE, str(tmp_path / "store"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    seconds, memory = map(float, done.stdout.split())
    assert seconds < 30 and memory < 2 << 30


def test_runs_under_several_seeds_are_set_side_by_side(tmp_path):
    for seed in range(3):
        base = factory.scores_of("base", 30, 0.5, seed=seed)
        for arm in ("base", "ngd"):
            rows = factory.sample_rows(arm, "arc", base, details=False)
            factory.write_run(tmp_path, arm, rows, seed=seed, key=f"seed {seed}")
    html = write_report(tmp_path).read_text()
    assert "Agreement across seeds" in html
    assert len(pd.read_csv(tmp_path / "tables" / "seeds.csv")) == 2


def test_a_later_report_leaves_no_file_of_an_earlier_one_and_all_else(tmp_path):
    scores = factory.scores_of("base", 20, 0.5)
    runs = [
        factory.write_run(
            tmp_path,
            arm,
            factory.sample_rows(arm, "arc", scores, details=False),
            settings=settings,
            seed=seed,
        )
        for arm, settings, seed in [("base", {}, 0), ("base", {}, 1), ("ngd_random_neighbors", {"k": 1}, 0)]
        + [("ngd", {"k": k}, 0) for k in (1, 3)]
    ]
    write_report(tmp_path)
    tables, figures = tmp_path / "tables", tmp_path / "figures"
    assert {"controls.csv", "controls.parquet", "seeds.csv", "seeds.parquet"} < {
        path.name for path in tables.iterdir()
    }
    assert {"effects.svg", "effects.png", "curve_neighbors.svg"} < {path.name for path in figures.iterdir()}
    mine = {tables / "mine.csv", tables / "seeds.txt", figures / "mine.png", figures / "effects.pdf"}
    for path in mine:
        path.write_text("mine")
    for run in runs[1:]:
        shutil.rmtree(run.path)
    write_report(tmp_path)
    written = {
        tables / f"{name}.{kind}" for name in ("comparison", "ablation") for kind in ("csv", "parquet")
    }
    assert {*tables.iterdir(), *figures.iterdir()} == written | mine


def followed(arm, follows, leaks):
    """Rows of an arm that follows the feedback on so many of 20 prompts in scope, and on as many elsewhere as it leaks."""
    rows = [row for scope in ("in", "near", "out") for row in factory.feedback_rows(arm, scope, 20)]
    for row in rows:
        row["correct"] = row["score"] = int(row["doc_id"] < (follows if row["scope"] == "in" else leaks))
    return rows


def feedback_sweep(root, arms, runs=13):
    """Of each arm some runs, each following the feedback on one prompt more; its first leaks most."""
    factory.write_run(root, "base", followed("base", 0, 0), backend="feedback", key="feedback")
    for arm in arms:
        for i in range(runs):
            rows = followed(arm, 3 + i, 19 if i == 0 else 0)
            factory.write_run(root, arm, rows, backend="feedback", key="feedback", settings={"beta": i})


def chosen(root):
    runs = load_runs(root)
    arms = arms_frame(runs, feedback_measures(runs, draws=50))
    selection = select(runs, compare(runs, draws=50), arms)
    assert set(selection.rows["run_id"]) == {run.run_id for run in selection.runs}
    return selection, sorted(
        (run.arm, run.result["settings"].get("beta")) for run in selection.runs if run.arm != "base"
    )


def test_feedback_is_ranked_by_s_overall_not_by_what_leaks(tmp_path):
    feedback_sweep(tmp_path, ("c3po", "dpo"))
    selection, others = chosen(tmp_path)
    assert others == [(arm, beta) for arm in ("c3po", "dpo") for beta in (10, 11, 12)]
    assert "S_overall" in selection.note and f"{len(selection.runs)} of 27 runs" in selection.note


def test_runs_that_no_judge_scored_come_last(tmp_path):
    feedback_sweep(tmp_path, ("c3po", "dpo"))
    rows = [row | {"score": None} for row in followed("dpo", 20, 0)]
    factory.write_run(tmp_path, "dpo", rows, backend="feedback", key="feedback", settings={"beta": 99})
    assert [beta for arm, beta in chosen(tmp_path)[1] if arm == "dpo"] == [10, 11, 12]


def test_feedback_beside_a_sweep_of_tasks_is_shown_too(tmp_path):
    feedback_sweep(tmp_path, ("c3po",), runs=1)
    base = factory.scores_of("base", 20, 0.5)
    factory.write_run(tmp_path, "base", factory.sample_rows("base", "arc", base, details=False))
    for k in range(25):
        factory.write_run(
            tmp_path, "ngd", factory.sample_rows("ngd", "arc", base, details=False), settings={"beta": k}
        )
    selection, others = chosen(tmp_path)
    assert [arm for arm, _ in others] == ["c3po", "ngd", "ngd", "ngd"]
    assert sum(run.arm == "base" for run in selection.runs) == 2


def test_many_bases_leave_room_for_the_arms_beside_them(tmp_path):
    scores = np.array([0, 1] * 5)
    for i in range(4 * MOST_RUNS + 4):
        rows = factory.sample_rows("base", "arc", scores, details=False)
        last = factory.write_run(tmp_path, "base", rows, key=f"key {i}", settings={})
    ngd = factory.sample_rows("ngd", "arc", scores, details=False)
    factory.write_run(tmp_path, "ngd", ngd, key=last.result["comparison_key"])
    selection, _ = chosen(tmp_path)
    assert len(selection.runs) == 4 * MOST_RUNS
    assert {"ngd"} < {run.arm for run in selection.runs} and last.run_id in {
        run.run_id for run in selection.runs
    }
