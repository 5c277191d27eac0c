"""mkdocs hook: fills the markers `<!-- made: NAME -->` of a page with tables made from the code."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MARKER = re.compile(r"<!-- made: ([\w-]+) -->")


def fill(markdown: str) -> str:
    """Text with every marker replaced; KeyError for a marker that nothing makes."""
    if not MARKER.search(markdown):
        return markdown
    for path in (str(HERE), str(HERE.parents[1])):
        if path not in sys.path:
            sys.path.insert(0, path)
    from tables import phrases

    made = phrases()
    return MARKER.sub(lambda found: made[found[1]], markdown)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return fill(markdown)
