"""What is said of a shard that cannot be read."""

from __future__ import annotations

import pytest

from c3po_bench.errors import UserError
from c3po_bench.runtime.ranks import parse_shard


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_a_shard_that_cannot_be_read_says_how_to_write_it(text):
    with pytest.raises(UserError, match="shard=1/4"):
        parse_shard(text)
