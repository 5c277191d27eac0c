"""The site builds without a warning, and its search works from disk and from a host, without fetching anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytest.importorskip("mkdocs")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def host(site) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(site):
    assert (site / "findings.html").is_file() and (site / "search" / "search_index.js").is_file()
    assert "method.neighbors.k" in (site / "reference.html").read_text(encoding="utf-8")


@pytest.mark.browser
@pytest.mark.parametrize("where", ["disk", "host"])
def test_search_finds_a_page(site, host, where):
    playwright = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("C3PO_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium found: apt-get install chromium, or set C3PO_CHROMIUM")
    root = site.as_uri() if where == "disk" else host
    fetched: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(f"{root}/how-to/paper.html")
        page.locator("input[name=query]").focus()
        page.keyboard.type("noise floor", delay=50)  # key by key: the theme listens to keys
        first = page.locator(".md-search-result__link").first
        first.wait_for(state="attached", timeout=20_000)
        assert "statistics.html" in str(first.get_attribute("href"))
        browser.close()
    assert not [url for url in fetched if not url.startswith((root, "data:", "blob:"))]
