"""How often garbage is looked for is as before once a start-up is over, however it ends."""

from __future__ import annotations

import gc

import pytest

from c3po_bench.runtime.resources import rare_collections


def test_collections_are_rare_within_only():
    usual = gc.get_threshold()
    with pytest.raises(ZeroDivisionError), rare_collections():
        assert gc.get_threshold()[0] > 10 * usual[0] and gc.get_threshold()[1:] == usual[1:]
        _ = 1 / 0
    assert gc.get_threshold() == usual
