"""Reading a store."""

from __future__ import annotations

import json

import pytest

from c3po_bench.errors import UserError
from c3po_bench.store.reader import load_runs
from c3po_bench.store.schema import SCHEMA_VERSION
from tests.store_factory import store


def test_a_store_of_another_version_is_refused_by_name(tmp_path):
    store(tmp_path, base=[1.0, 0.0])
    path = load_runs(tmp_path)[0].path / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["schema_version"] == SCHEMA_VERSION
    for other in (SCHEMA_VERSION - 1, None):
        path.write_text(json.dumps(result | {"schema_version": other}), encoding="utf-8")
        with pytest.raises(UserError, match=f"{path}.*version {other}.*run again"):
            _ = load_runs(tmp_path)[0].arm
