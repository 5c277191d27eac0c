"""One process at a time in a run folder."""

from __future__ import annotations

import pytest

from c3po_bench.store.lock import Busy, alone_in


def test_the_second_does_not_get_in_and_the_next_does(tmp_path):
    with alone_in(tmp_path / "run"), pytest.raises(Busy), alone_in(tmp_path / "run", wait=False):
        pass
    with alone_in(tmp_path / "run", wait=False):
        pass
