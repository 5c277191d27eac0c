"""Bad inputs: each ends with the exit status and the one line that the table says, never with a traceback."""

from __future__ import annotations

import pytest

from tests.bad_inputs.run import inputs, outcome

TABLE = inputs()


@pytest.mark.parametrize("name", TABLE)
def test_an_input_ends_as_the_table_says(name: str) -> None:
    row = TABLE[name]
    status, message = outcome(row)
    assert status == row.get("status", 2), message
    assert row.get("says", "") in message
    if status == 2:
        assert message.startswith("error: ") and "\n" not in message
        assert "our fault" not in message and "Traceback" not in message
        assert len(message) < 500


def test_there_are_many() -> None:
    assert len(TABLE) >= 150
