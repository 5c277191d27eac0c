"""Which items are scored together, and how they are shared out."""

from __future__ import annotations

from c3po_bench.evaluate.chunks import Chunks


def test_shares_are_disjoint_and_complete():
    chunks = Chunks([[("t", i)] for i in range(7)])
    shares = [chunks.share(i, 3) for i in range(3)]
    assert sorted(n for share in shares for n in share) == list(range(7))
    assert chunks.doc_ids(shares[0]) == {"t": [0, 3, 6]}
    assert sorted(chunks.share(0, 2, shares[0]) + chunks.share(1, 2, shares[0])) == shares[0]
