"""Tables made from the code and from `results/`: fills what stands between `<!-- made: NAME -->` and `<!-- /made -->`.

`python docs/_build/hook.py` writes them into the pages, so that they can be read without building the site;
`--check` says which pages are not current. mkdocs calls `on_page_markdown`, so a site is never out of date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGES = sorted(HERE.parent.rglob("*.md"))
MARKER = re.compile(r"<!-- made: ([\w-]+) -->\n.*?<!-- /made -->", re.S)


def fill(markdown: str) -> str:
    """Text with every marked part made anew; KeyError for a marker that nothing makes."""
    if not MARKER.search(markdown):
        return markdown
    sys.path[:0] = [path for path in (str(HERE), str(HERE.parents[1])) if path not in sys.path]
    import findings  # these import the package, which a page without marks does not need
    import tables

    makers = {**tables.MAKERS, **findings.MAKERS}
    return MARKER.sub(
        lambda mark: f"<!-- made: {mark[1]} -->\n\n{makers[mark[1]]()}\n\n<!-- /made -->", markdown
    )


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return fill(markdown)


def main(check: bool) -> int:
    """Write or check all pages and the chart; 1 where a check finds one that is not current."""
    sys.path[:0] = [path for path in (str(HERE), str(HERE.parents[1])) if path not in sys.path]
    import chart

    made = {page: fill(page.read_text(encoding="utf-8")) for page in PAGES}
    made[chart.PICTURE] = chart.draw(chart.PAGE.read_text(encoding="utf-8"))
    old = [
        page for page, text in made.items() if not page.exists() or page.read_text(encoding="utf-8") != text
    ]
    for page in old:
        print(page.relative_to(HERE.parents[1]))  # noqa: T201
        if not check:
            page.write_text(made[page], encoding="utf-8")
    return int(check and bool(old))


if __name__ == "__main__":
    raise SystemExit(main(check="--check" in sys.argv))
