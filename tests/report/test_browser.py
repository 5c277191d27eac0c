"""The report in a real browser, opened from disk without a network: sorting, filtering, opening, accessibility."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from c3po_bench.report.build import write_report
from tests import store_factory as factory

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
SIZES = {"laptop": (1280, 900), "phone": (390, 844)}
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    path = os.environ.get("C3PO_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium found: apt-get install chromium, or set C3PO_CHROMIUM")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("reports")
    factory.rewiring_store(root / "rewiring", items=60, hostile=factory.HOSTILE)
    factory.feedback_store(root / "feedback", hostile=factory.HOSTILE)
    factory.sweep_store(root / "sweep", cells=60, items=40, skip=9)
    return {name: write_report(root / name) for name in ("rewiring", "feedback", "sweep")}


@pytest.fixture(params=["laptop-light", "phone-dark", "laptop-dark", "phone-light"])
def context(request, chromium) -> Iterator[Any]:
    """A context without network; fails its test on any console error or request that leaves the file."""
    size, scheme = request.param.split("-")
    width, height = SIZES[size]
    browser = chromium.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        offline=True,
        reduced_motion="reduce",
    )
    browser.set_default_timeout(20_000)
    yield browser
    browser.close()


def opened(context: Any, path: Path) -> tuple[Any, list[str]]:
    page, trouble = context.new_page(), []
    page.on("console", lambda m: trouble.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: trouble.append(str(e)))
    page.on(
        "request", lambda r: None if r.url.startswith(("file:", "blob:", "data:")) else trouble.append(r.url)
    )
    page.goto(path.as_uri())
    page.wait_for_selector("#item-list button")
    return page, trouble


def violations(page: Any) -> list[str]:
    results = axe.Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html'][:160]}" for v in results if v["impact"] in SERIOUS]


def draw_all(page: Any) -> None:
    """Scroll each visible chart into view and wait until it is drawn."""
    for holder in page.query_selector_all(".chart:not([hidden]) .vega"):
        holder.scroll_into_view_if_needed()
        holder.wait_for_selector("svg", state="attached")


@pytest.mark.parametrize("name", ["rewiring", "feedback", "sweep"])
def test_report_works_and_is_accessible(context, reports, name):
    page, trouble = opened(context, reports[name])
    draw_all(page)
    page.click("#item-list button >> nth=0")
    page.wait_for_selector("#item-detail .question")
    for summary in page.query_selector_all("#provenance summary"):
        summary.click()
    assert violations(page) == []
    assert trouble == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "the page scrolls sideways"
    )


def test_names_of_arms_leave_room_for_the_chart(context, reports):
    page, trouble = opened(context, reports["rewiring"])
    draw_all(page)
    widths = page.locator("#figure-effects .role-axis-label text").evaluate_all(
        "ts => ts.map(t => t.getBBox().width)"
    )
    phone = page.viewport_size["width"] < 480
    assert 60 < max(widths) < (120 if phone else 300)
    names = page.locator("#figure-cost .mark-text.role-mark text").all_text_contents()
    key = page.locator("#figure-cost .key")
    arms = {"NGD", "mode finding", "kernel regression", "NGD with random neighbors", "oracle"}
    if phone:  # points have numbers, and the numbers names
        assert sorted(names) == ["1", "2", "3", "4", "5"] and set(key.locator("li").all_inner_texts()) == arms
    else:
        assert set(names) == arms
    assert key.is_visible() == phone and trouble == []


ENDS = """() => [...document.querySelectorAll('table.data')].flatMap((table) => {
  const end = (node) => {
    const text = document.createTreeWalker(node, NodeFilter.SHOW_TEXT).nextNode(), range = document.createRange();
    range.selectNodeContents(text);
    return range.getBoundingClientRect().right;
  };
  return [...table.tHead.rows[0].cells].flatMap((head, i) => {
    const cell = [...table.tBodies[0].rows].map((row) => row.cells[i]).find((c) => c.checkVisibility() && c.innerText.trim());
    const numeric = head.className.includes('num') && head.checkVisibility() && cell;
    return numeric ? [Math.abs(end(head.querySelector('button')) - end(cell))] : [];
  });
})"""
"""By how many pixels the ends of a header and of a number below it differ, column by column."""
COLOR = """(name) => {
  const probe = document.createElement('i');
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  return getComputedStyle(probe).color;
}"""


OVER = """(holder) => {
  const inside = holder.getBoundingClientRect();
  const boxes = [...holder.querySelectorAll('svg text')].filter((t) => Number(getComputedStyle(t).opacity) > 0
    && t.textContent).map((t) => [t.textContent, t.getBoundingClientRect()]);
  const over = boxes.flatMap(([one, a], i) => boxes.slice(0, i).filter(([, b]) =>
    a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
    .map(([other]) => [one, other]));
  return [over, boxes.filter(([, a]) => a.left < inside.left - 1 || a.right > inside.right + 1).map(([one]) => one)];
}"""
"""The pairs of texts of a chart that lie over each other, and those that are cut by its edge."""


@pytest.mark.parametrize("width", [1440, 1024, 600, 390])
@pytest.mark.parametrize("name", ["rewiring", "feedback", "sweep"])
def test_no_text_of_a_chart_lies_over_another(chromium, reports, name, width):
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.goto(reports[name].as_uri())
    page.wait_for_selector("#item-list button")
    draw_all(page)
    for holder in page.query_selector_all(".chart:not([hidden]) .vega"):
        assert holder.evaluate(OVER) == [[], []], holder.get_attribute("data-figure")
    page.close()


def test_a_print_has_every_chart_in_the_colors_of_paper(chromium, reports):
    page = chromium.new_page(viewport={"width": 1280, "height": 600}, color_scheme="dark")
    page.goto(reports["rewiring"].as_uri())
    for holder in page.query_selector_all(".chart:not([hidden]) .vega"):  # without scrolling
        holder.wait_for_selector("svg", state="attached")
    page.evaluate(
        """() => addEventListener('beforeprint', () => {
          window.paper = [...document.querySelectorAll('.vega svg text')].map((t) => t.getAttribute('fill'));
        })"""
    )
    dark = page.locator(".vega svg text").first.get_attribute("fill")
    page.pdf()
    assert page.evaluate("window.paper.length") and dark not in page.evaluate("window.paper")
    page.wait_for_function("document.querySelector('.vega svg text').getAttribute('fill') === '" + dark + "'")
    page.close()


@pytest.mark.parametrize("width", [1440, 1024, 390])
@pytest.mark.parametrize("name", ["rewiring", "feedback", "sweep"])
def test_tables_fit_or_say_that_they_scroll_and_differences_have_a_zero(chromium, reports, name, width):
    page = chromium.new_page(viewport={"width": width, "height": 900})
    page.goto(reports[name].as_uri())
    page.wait_for_selector("#item-list button")
    for more in page.query_selector_all(".all-columns"):  # with all columns and without
        more.check()
    for _ in range(2):
        tables = page.evaluate(
            """() => [...document.querySelectorAll('table')].map((table) => {
              const holder = table.closest('.scroll'), hint = holder.nextElementSibling;
              return [table.scrollWidth > holder.clientWidth + 1, hint.className === 'hint' && hint.checkVisibility(),
                      holder.getBoundingClientRect().right <= document.documentElement.clientWidth];
            })"""
        )
        assert tables and all(over == said and inside for over, said, inside in tables), tables
        for more in page.query_selector_all(".all-columns"):
            more.uncheck()
        page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("th.num").count() > 0
    assert max(page.evaluate(ENDS), default=0) < 1.5, "numbers and their headers end at one line"
    draw_all(page)
    for switch in page.query_selector_all(".figure-switch"):
        for value in switch.evaluate("s => [...s.options].map((o) => o.value)"):
            switch.select_option(value)
            page.locator(f"#figure-{value} svg").wait_for(state="attached")
    axes = page.evaluate(
        """() => [...document.querySelectorAll('[role=graphics-symbol], g')].filter((g) =>
          (g.getAttribute('aria-label') || '').match(/-axis titled 'difference to/)).map((g) =>
          [...g.querySelectorAll('.role-axis-label text')].filter((t) => Number(getComputedStyle(t).opacity) > 0)
            .map((t) => t.textContent))"""
    )
    assert all("0" in ticks for ticks in axes), axes
    assert len(axes) >= {"rewiring": 2, "feedback": 0, "sweep": 5}[name]
    maps = page.locator("[id^=figure-heat_]")
    for i in range(maps.count()):
        assert "0" in maps.nth(i).locator(".role-legend-label text").all_text_contents()
    page.close()


def test_an_items_link_opens_it_again(context, reports):
    page, trouble = opened(context, reports["rewiring"])
    page.select_option("#item-arm", label="NGD")
    page.click("#item-list button >> nth=1")
    link = page.get_attribute("#item-detail .permalink", "href")
    assert link.startswith("#item=") and page.evaluate("location.hash") == link
    question = page.inner_text("#item-detail .question")
    other = context.new_page()
    other.goto(reports["rewiring"].as_uri() + link)
    other.wait_for_selector("#item-detail .question")
    assert other.inner_text("#item-detail .question") == question
    assert other.locator("#item-arm option:checked").inner_text() == "NGD"
    assert other.locator("#item-list [aria-current=true]").count() == 1 and trouble == []


def test_comparison_sorts_both_ways_and_filters(context, reports):
    page, trouble = opened(context, reports["rewiring"])
    rows = page.locator("#comparison-table tbody tr:visible")
    assert rows.count() == 6
    header = page.locator("#comparison-table thead th", has_text="Accuracy")
    values = "rows => rows.map(r => Number(r.cells[3].dataset.value))"
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    accuracies = rows.evaluate_all(values)
    assert accuracies == sorted(accuracies, reverse=True)
    header.locator("button").focus()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert rows.evaluate_all(values) == sorted(accuracies)
    page.select_option("#comparison-task", "arc_easy")
    assert set(rows.evaluate_all("rows => rows.map(r => r.dataset.task)")) == {"arc_easy"}
    page.select_option("#comparison-task", "")
    assert rows.count() == 24
    assert trouble == []


def test_a_flipped_item_opens_with_all_its_reasons(context, reports):
    page, trouble = opened(context, reports["rewiring"])
    page.select_option("#item-arm", label="NGD")
    page.select_option("#item-kind", "fixed")
    assert set(page.locator("#item-list .badge").all_inner_texts()) == {"fixed"}
    page.locator("#item-list button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#item-detail .heat-row")
    detail = page.locator("#item-detail")
    assert detail.locator(".choices li").count() == 4
    assert detail.locator(".choices li.gold .tag.ours").inner_text() == "NGD"
    others = detail.locator(".alike").inner_text()
    assert others.startswith("Also fixed by: ") or others == "No other arm has it fixed."
    why = detail.locator(".why").inner_text()
    for part in ("base chose", "NGD chose", "the loss on its 3 neighbors", "fell from", "expert", "of layer"):
        assert part in why
    assert {"layer", "expert"} <= set(detail.locator(".heat-row text").all_text_contents())
    assert detail.locator(".heat-row .scale").all_inner_texts()[0].split()[0] == "0"
    assert all(
        "of the routing weight" in text for text in detail.locator(".heat-row .scale").all_inner_texts()
    )
    shown = detail.locator(".rendered")
    assert "The prompt as the model reads it (base and NGD)" in shown.locator("summary").inner_text()
    assert detail.locator(".neighbor").count() == 3
    assert detail.locator(".loss circle").count() == 10
    assert detail.locator(".heat-row rect").count() == 3 * 5 * 16
    assert page.evaluate("document.activeElement.id") == "item-detail"
    shown.locator("summary").click()
    assert shown.locator("pre").inner_text().startswith("Question: ")
    assert trouble == []


@pytest.mark.security
def test_search_finds_words_and_markup_stays_text(context, reports):
    page, trouble = opened(context, reports["rewiring"])
    page.select_option("#item-kind", "all")
    page.fill("#item-search", "script question 57 facts")
    page.wait_for_function("document.querySelectorAll('#item-list li').length === 1")
    page.click("#item-list button")
    page.wait_for_selector("#item-detail .question")
    assert factory.HOSTILE in page.locator("#item-detail .question").inner_text()
    assert page.evaluate("window.pwned === undefined")
    assert page.locator("#item-detail img, #item-detail script").count() == 0
    assert trouble == []


def test_feedback_answers_stand_side_by_side(context, reports):
    page, trouble = opened(context, reports["feedback"])
    page.select_option("#item-arm", label="C3PO")
    page.click("#item-list button >> nth=0")
    page.wait_for_selector("#item-detail .answers")
    answers = page.locator("#item-detail .answers figure")
    assert answers.locator("figcaption").all_inner_texts() == ["base", "C3PO"]
    assert "Dear all" in answers.nth(1).inner_text()
    badges = page.locator("#item-list .badge")
    for kind, color in (("follows", "--good"), ("leaks", "--bad")):
        page.select_option("#item-kind", kind)
        assert set(badges.all_inner_texts()) == {kind}
        shown = badges.first.evaluate("b => getComputedStyle(b).color")
        assert shown == page.evaluate(COLOR, color)
    assert page.evaluate("window.pwned === undefined") and trouble == []


def test_ablation_switches_figures_sorts_and_turns_pages(context, reports):
    page, trouble = opened(context, reports["sweep"])
    panel = page.locator("[data-switch='heat map']")
    panel.locator("select").select_option("heat_experts_neighbors")
    assert panel.locator(".chart:visible").get_attribute("id") == "figure-heat_experts_neighbors"
    panel.locator("#figure-heat_experts_neighbors svg").wait_for(state="attached")
    table = page.locator("#ablation-table")
    # drawing a chart moves the button
    table.locator("th", has_text="accuracy").locator("button").press("Enter")
    column = table.locator("thead th").all_inner_texts().index("accuracy %")
    accuracies = [
        float(row.locator("th, td").nth(column).inner_text()) for row in table.locator("tbody tr").all()
    ]
    assert len(accuracies) == 25 and accuracies == sorted(accuracies, reverse=True)
    table.locator("button", has_text="Next").click()
    assert "Page 2 of" in table.inner_text()
    assert trouble == []


def test_theme_button_switches_and_charts_follow(context, reports):
    page, trouble = opened(context, reports["rewiring"])
    draw_all(page)
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    color = "document.querySelector('#figure-effects svg text').getAttribute('fill')"
    chart = page.evaluate(color)
    page.click("#theme")
    assert page.evaluate(ground) != before
    page.wait_for_function(f"({color}) !== '{chart}'")
    assert violations(page) == [] and trouble == []


def test_10000_items_stay_fluid(chromium, tmp_path):
    factory.rewiring_store(tmp_path, items=10_000, tasks=("arc_easy",), details=False)
    path = write_report(tmp_path)
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    start = time.perf_counter()
    page.goto(path.as_uri())
    page.wait_for_selector("#item-list button")
    assert time.perf_counter() - start < 8
    assert "of 10,000 items" in page.inner_text("#item-count")
    slowest = page.evaluate(
        """async () => {
          const times = [];
          const act = async (step) => { const t = performance.now(); step(); times.push(performance.now() - t); };
          const kind = document.getElementById('item-kind');
          await act(() => { kind.value = 'all'; kind.dispatchEvent(new Event('change')); });
          for (let i = 0; i < 20; i++) await act(() => document.getElementById('item-next').click());
          await act(() => { kind.value = 'same'; kind.dispatchEvent(new Event('change')); });
          return Math.max(...times);
        }"""
    )
    assert slowest < 200  # milliseconds from a click to the new list
    assert page.locator("#item-list li").count() == 20
