"""The HTML page: templates filled, data embedded so that nothing from the store can become markup or script.

Everything shown is text to the template engine (autoescaped) or to the page's script (text nodes). Data go in
as JSON with ``<``, ``>`` and ``&`` escaped, or packed (gzip, base64). A content security policy allows the
two scripts of the page by their hash, nothing else, and no connection at all.
"""

import base64
import gzip
import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any

import altair
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

SCRIPTS = ("page.js", "charts.js", "tables.js", "detail.js", "explorer.js", "main.js")
VEGA_LITE = altair.SCHEMA_VERSION.rsplit(".", 1)[0].removeprefix("v")
"""The Vega-Lite version that the figures are written in, as the bundler names it."""


def render(template: str, **values: Any) -> str:
    """Fill `template`, a file of this package, escaping all `values` but the page's own style and scripts."""
    environment = Environment(
        loader=PackageLoader("c3po_bench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # the page's scripts as one block, so that their names stay their own
    script = "{\n" + "\n".join(source(name) for name in SCRIPTS) + "}\n"
    return environment.get_template(template).render(
        style=Markup(source("style.css")),
        vega=Markup(vega_bundle()),
        script=Markup(script),
        policy=policy(vega_bundle(), script),
        **values,
    )


def embed(data: Any) -> Markup:
    """JSON that is inert inside a script element: no ``<``, no line separators, no NaN.

    Marked as safe markup.
    """
    text = json.dumps(finite(data), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def pack(data: Any) -> Markup:
    """The same data gzipped and base64-coded, for what is only read when asked for."""
    text = json.dumps(finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    packed = gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)
    return Markup(base64.b64encode(packed).decode("ascii"))


def finite(data: Any) -> Any:
    """`data` with NaN and infinities as None, which JSON can say."""
    return json.loads(json.dumps(data), parse_constant=lambda _: None)


def source(name: str) -> str:
    """The text of one of this package's templates."""
    return (resources.files("c3po_bench.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    return bundle.replace("</script", "<\\/script")


def policy(*scripts: str) -> str:
    """The content security policy: these scripts by hash, inline styles, and no connection to anywhere.

    Vega compiles its expressions, hence 'unsafe-eval'; it only ever sees the specifications made here.
    """
    digests = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
