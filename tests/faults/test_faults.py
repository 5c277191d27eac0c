"""Faults at every stage of both backends are survived: nothing is lost, and no number differs.

`make faults` tries 180, CI the first thirty of them (`C3PO_FAULTS=30`); `C3PO_FAULTS=all` tries every one there is.
"""

from __future__ import annotations

import os
import sys

import pytest

from tests.faults.harness import ALL, run_faults, summary


@pytest.mark.faults
def test_every_fault_is_survived(tmp_path, capsys):
    from c3po_bench.models.tiny import tiny_model, tiny_tokenizer

    model = tmp_path / "model"
    tiny_model("llama").save_pretrained(model)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.save_pretrained(model)
    most = os.environ.get("C3PO_FAULTS", str(2 * ALL))
    outcomes = run_faults(
        tmp_path / "faults",
        model,
        None if most == "all" else int(most),
        jobs=int(os.environ.get("C3PO_FAULTS_JOBS", "2")),
        only=os.environ.get("C3PO_FAULTS_ONLY", ""),
    )
    with capsys.disabled():
        for outcome in outcomes:
            if outcome.wrong:
                sys.stdout.write(f"\n{outcome.fault}: {outcome.statuses}: {outcome.wrong}")
        sys.stdout.write(f"\n{summary(outcomes)}\n")
    assert not [str(outcome.fault) for outcome in outcomes if outcome.wrong or outcome.lost]
