"""The base arm equals stock lm-eval: same checkpoint, same items, choice by choice."""

from __future__ import annotations

import pytest

from c3po_bench.store.reader import load_runs


def stock(model_dir: str, tasks: list[str], data_root, limit: int, num_fewshot: int = 0) -> dict:
    import lm_eval

    from c3po_bench.tasks.taskset import TaskSet

    found = TaskSet(tasks, data_root=data_root, num_fewshot=num_fewshot)
    results = lm_eval.simple_evaluate(
        "hf",
        model_args={"pretrained": model_dir, "dtype": "float32"},
        tasks=found.specs,
        task_manager=found.manager,
        limit=limit,
        batch_size=8,
        device="cpu",
        bootstrap_iters=0,
    )
    return {
        (task, row["doc_id"]): [r[0] for r in row["filtered_resps"]]
        for task, rows in results["samples"].items()
        for row in rows
    }


@pytest.mark.slow
def test_base_equals_stock_lm_eval_on_real_questions(c3po, data_root, tmp_path):
    from c3po_bench.models.embedded.smolmoe import checkpoint

    tasks = ["arc_challenge", "arc_easy", "piqa", "winogrande"]
    done = c3po(
        "+experiment=smolmoe_arc",
        f"data.root={data_root}",
        f"tasks=[{','.join(tasks)}]",
        "arms=[base]",
        "limit=10",
        "tracking=disabled",
        f"results_dir={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    (run,) = load_runs(tmp_path)
    ours = {(r["task"], r["doc_id"]): r["loglikelihoods"] for r in run.samples()}
    theirs = stock(str(checkpoint()), tasks, data_root, 10)
    assert ours.keys() == theirs.keys() and len(ours) == 40
    for key, values in theirs.items():
        assert ours[key] == pytest.approx(values, abs=1e-3), key
