// Sorting and filtering of the comparison, and the paged table of all runs of a sweep.
"use strict";

const comparable = (value) => {
  if (value === null || value === undefined || value === "") return null;
  const numeric = Number(value);
  return Number.isNaN(numeric) ? String(value).toLowerCase() : numeric;
};

// Missing values come last in either direction.
const compareValues = (a, b, direction) => {
  if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1;
  if (typeof a !== typeof b) return (typeof a === "number" ? -1 : 1) * direction;
  return (a < b ? -1 : a > b ? 1 : 0) * direction;
};

const nextDirection = (header, headers) => {
  const direction = header.getAttribute("aria-sort") === "descending" ? 1 : -1;
  for (const other of headers) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
  return direction;
};

const makeSortable = (table) => {
  const headers = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const direction = nextDirection(header, headers);
      const rows = [...body.rows].map((row) => [comparable(row.cells[column].dataset.value), row]);
      rows.sort((a, b) => compareValues(a[0], b[0], direction));
      body.append(...rows.map(([, row]) => row));
    });
  });
};

// A table that is wider than its place says so; looked at again whenever either changes its size.
const setUpHints = () => {
  const look = (holder) => {
    const hint = holder.nextElementSibling;
    const over = holder.scrollWidth > holder.clientWidth + 1;
    holder.classList.toggle("overflows", over);
    if (hint && hint.classList.contains("hint")) hint.hidden = !over;
  };
  const sizes = new ResizeObserver((entries) => entries.forEach((entry) => look(entry.target.closest(".scroll"))));
  for (const holder of document.querySelectorAll(".scroll")) {
    sizes.observe(holder);
    sizes.observe(holder.firstElementChild);
    look(holder);
  }
};

const setUpComparison = () => {
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  for (const all of document.querySelectorAll(".all-columns")) {
    const shown = () => document.getElementById(all.dataset.table).classList.toggle("whole", all.checked);
    all.addEventListener("change", shown);
    shown();
  }
  const table = document.getElementById("comparison-table");
  const body = table && table.tBodies[0];
  const task = document.getElementById("comparison-task");
  if (!task) return;
  const filter = () => {
    table.classList.toggle("one-task", Boolean(task.value));
    for (const row of body.rows) row.hidden = Boolean(task.value) && row.dataset.task !== task.value;
  };
  task.addEventListener("change", filter);
  filter();
};

const PAGE = 25;

const setUpAblation = () => {
  const holder = document.getElementById("ablation-table");
  const data = read("ablation");
  if (!holder || !data) return;
  let rows = data.rows;
  let page = 0;
  const headers = data.columns.map((column, i) =>
    el("th", { scope: "col", class: column.numeric ? "num" : false },
      el("button", { type: "button", onclick: () => sort(i) }, column.title, el("span", { class: "arrow", "aria-hidden": "true" }))));
  const body = el("tbody");
  const label = el("span", { role: "status" });
  const previous = el("button", { type: "button", onclick: () => turn(-1) }, "← Previous");
  const next = el("button", { type: "button", onclick: () => turn(1) }, "Next →");
  const show = () => {
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    body.replaceChildren(...rows.slice(page * PAGE, (page + 1) * PAGE).map((row) =>
      el("tr", {}, row.map((value, i) => {
        const column = data.columns[i];
        const missing = value === null || value === undefined;
        const text = missing ? "" : typeof value === "number" && column.digits !== undefined ? value.toFixed(column.digits) : value;
        return el(i === 0 ? "th" : "td", { scope: i === 0 ? "row" : false, class: column.numeric ? "num" : false }, text);
      }))));
    label.textContent = `Page ${page + 1} of ${pages} · ${number.format(rows.length)} rows`;
    previous.disabled = page === 0;
    next.disabled = page >= pages - 1;
  };
  const turn = (step) => { page += step; show(); };
  const sort = (column) => {
    const direction = nextDirection(headers[column], headers);
    rows = [...rows].sort((a, b) => compareValues(comparable(a[column]), comparable(b[column]), direction));
    page = 0;
    show();
  };
  holder.append(
    el("div", { class: "scroll", role: "region", tabindex: "0", "aria-labelledby": holder.dataset.labelledby },
      el("table", { class: "data" }, el("thead", {}, el("tr", {}, headers)), body)),
    el("p", { class: "hint", hidden: true }, "Scroll this table sideways for its other columns →"),
    el("div", { class: "pager", role: "group", "aria-label": "Pages of runs" }, previous, label, next));
  show();
};
