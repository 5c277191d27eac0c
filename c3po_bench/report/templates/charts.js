// Draws the Vega-Lite figures in the page's own colors, when they come into view or the page has nothing else to do.
"use strict";

const figures = read("figures") || {};
const drawn = new Map();
let darkCharts = false;

const chartConfig = () => {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const [text, quiet, line] = [color("--text"), color("--quiet"), color("--line")];
  const category = darkCharts
    ? ["#84b1ff", "#ffb86b", "#63d3a6", "#e39bdc", "#c9d36b", "#ff9b7d", "#8fdbe8", "#b9a6ff"]
    : ["#1f5fbf", "#c05a00", "#0b7d5a", "#9a3d93", "#6f7400", "#b3361a", "#0d7a8c", "#5b44b8"];
  const diverging = darkCharts ? ["#8f4a36", "#27313d", "#2f6193"] : ["#f0a48c", "#f3f5f7", "#8db9ea"];
  return {
    background: null,
    font: getComputedStyle(document.body).fontFamily,
    range: { category, diverging },
    view: { stroke: null },
    axis: { labelColor: quiet, titleColor: quiet, gridColor: line, domainColor: line, tickColor: line,
            labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelLimit: 300 },
    legend: { labelColor: text, titleColor: quiet, labelFontSize: 12, titleFontWeight: "normal", labelLimit: 160, columns: window.innerWidth < 560 ? 2 : 0 },
    text: { color: text, fontSize: 12 },
    rule: { color: quiet },
    mark: { tooltip: true },
  };
};

const draw = async (holder) => {
  const given = figures[holder.dataset.figure];
  // fields below each other cannot take their width from the page
  const spec = given && given.facet ? { ...given, spec: { ...given.spec, width: Math.max(200, holder.clientWidth - 75) } } : given;
  if (!spec || holder.closest("[hidden]")) return;
  const before = drawn.get(holder);
  drawn.set(holder, null);
  if (before) before.finalize();
  const narrow = holder.clientWidth < 480;
  const config = chartConfig();
  if (narrow) { config.axis.labelLimit = 110; config.axis.labelFontSize = 11; }
  config.axisQuantitative = { tickCount: narrow ? 5 : 9 };
  const options = { actions: false, renderer: "svg", config, defaultStyle: false, tooltip: { theme: darkCharts ? "dark" : "light" } };
  try {
    const result = await vegaEmbed(holder, spec, options);
    drawn.set(holder, result);
    const picture = holder.querySelector("svg");
    if (picture) picture.setAttribute("aria-hidden", "true");
  } catch (error) {
    holder.textContent = "This chart could not be drawn: " + error.message;
  }
};

const redrawCharts = (dark) => {
  darkCharts = dark;
  for (const holder of drawn.keys()) draw(holder);
};

const setUpCharts = () => {
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting || drawn.has(entry.target)) continue;
      draw(entry.target);
    }
  }, { rootMargin: "300px" });
  const holders = [...document.querySelectorAll(".vega")];
  for (const holder of holders) seen.observe(holder);
  // a page that is printed has them all, whether it was scrolled or not
  const idle = window.requestIdleCallback || ((call) => setTimeout(call, 50));
  const rest = async () => {
    const next = holders.find((holder) => !drawn.has(holder) && !holder.closest("[hidden]"));
    if (!next) return;
    await draw(next);
    idle(rest);
  };
  idle(rest);
  for (const select of document.querySelectorAll(".figure-switch")) {
    select.addEventListener("change", () => {
      for (const figure of select.closest(".panel").querySelectorAll(".chart")) {
        figure.hidden = figure.id !== "figure-" + select.value;
        if (!figure.hidden) draw(figure.querySelector(".vega"));
      }
    });
  }
};
