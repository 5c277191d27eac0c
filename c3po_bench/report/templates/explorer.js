// The list of items: filters, pages, and which of them changed between two arms.
"use strict";

const ITEMS_A_PAGE = 20;

const setUpExplorer = async () => {
  const meta = read("explorer");
  const control = (id) => document.getElementById("item-" + id);
  if (!meta || !meta.arms.length) {
    control("count").textContent = "No items: nothing has been compared yet.";
    return;
  }
  const index = await unpack("items-index");
  const words = index.items.map((item) => (item[2] + " " + (item[3] || []).join(" ")).toLowerCase());
  const state = { page: 0, open: null, found: [] };

  const option = (value, text) => el("option", { value }, text);
  control("arm").replaceChildren(...meta.arms.map((arm, i) => option(i, arm.label)));
  control("base").replaceChildren(...meta.arms.map((arm, i) => option(i, arm.label)));
  control("task").replaceChildren(option("", "every task"), ...meta.tasks.map((task, i) => option(i, task)));
  const first = meta.arms.findIndex((arm) => arm.label === meta.first);
  control("arm").value = String(first >= 0 ? first : meta.arms.length - 1);
  control("base").value = String(meta.arms[Number(control("arm").value)].base);

  const chosen = () => [Number(control("arm").value), Number(control("base").value)];
  const kindOf = (item, arm, base) => {
    const [ours, theirs] = [index.scores[arm][item], index.scores[base][item]];
    if (ours === null || theirs === null) {
      return index.predictions[ours === null ? arm : base][item] === null ? "unanswered" : "unjudged";
    }
    const scope = meta.scopes[index.items[item][0]];
    if (scope === "in") return ours >= 0.5 ? "follows" : ours <= -0.5 ? "against" : "quiet";
    if (scope) return Math.abs(ours) >= 0.5 ? "leaks" : "tight";
    return ours > theirs ? "fixed" : ours < theirs ? "broken" : "same";
  };
  const CHANGED = ["fixed", "broken", "follows", "against", "leaks"];
  const NAMES = { follows: "follows", against: "goes against it", quiet: "does not follow", leaks: "leaks", tight: "no leak", fixed: "fixed", broken: "broken", same: "unchanged", unanswered: "not answered", unjudged: "not judged" };
  const badge = (kind) => el("span", { class: "badge " + (CHANGED.includes(kind) ? kind : "plain") }, NAMES[kind]);

  const filter = () => {
    const [arm, base] = chosen();
    const [task, kind] = [control("task").value, control("kind").value];
    const sought = control("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    state.found = [];
    index.items.forEach((item, i) => {
      if (task !== "" && item[0] !== Number(task)) return;
      const is = kindOf(i, arm, base);
      if (kind === "changed" ? !CHANGED.includes(is) : kind !== "all" && is !== kind) return;
      if (!sought.every((word) => words[i].includes(word))) return;
      state.found.push(i);
    });
    state.page = 0;
    show();
  };

  const show = () => {
    const [arm, base] = chosen();
    const pages = Math.max(1, Math.ceil(state.found.length / ITEMS_A_PAGE));
    const shown = state.found.slice(state.page * ITEMS_A_PAGE, (state.page + 1) * ITEMS_A_PAGE);
    control("list").replaceChildren(...shown.map((i) => {
      const item = index.items[i];
      return el("li", {}, el("button", { type: "button", "data-item": i, "aria-current": String(state.open === i), onclick: () => open(i) },
        el("span", { class: "where" }, badge(kindOf(i, arm, base)), `${meta.tasks[item[0]]} #${item[1]}`),
        item[2] && el("span", { class: "text" }, item[2])));
    }));
    control("list").hidden = !shown.length;
    control("count").textContent = `${number.format(state.found.length)} of ${number.format(index.items.length)} items`
      + (meta.texts ? "" : ". This study was published without the texts of questions and answers: items go by their task and number.");
    control("page").textContent = `Page ${state.page + 1} of ${pages}`;
    control("previous").disabled = state.page === 0;
    control("next").disabled = state.page >= pages - 1;
  };

  // The details of one arm's answer, or null where the report left them out.
  const details = async (arm, item) => {
    let id = null;
    for (const [start, chunk] of meta.arms[arm].chunks) if (start <= item) id = chunk;
    const chunk = id && await unpack(id);
    return (chunk && chunk[item]) || null;
  };

  // The other arms of the same base that fixed, or broke, the same item.
  const alike = (i, arm, base) => meta.arms.filter((one, k) => k !== arm && k !== base && one.base === base && kindOf(i, k, base) === kindOf(i, arm, base)).map((one) => one.label);

  // A link that opens the report with this item, these arms and nothing else of what was looked at.
  const linkTo = (i) => {
    const [arm, base] = chosen().map((which) => meta.arms[which].run);
    const item = `${meta.tasks[index.items[i][0]]}/${index.items[i][1]}`;
    return "#" + new URLSearchParams({ item, arm, against: base }).toString();
  };

  const followLink = () => {
    const link = new URLSearchParams(location.hash.slice(1));
    const i = index.items.findIndex((item) => `${meta.tasks[item[0]]}/${item[1]}` === link.get("item"));
    if (!link.has("item") || i < 0) return;
    for (const [id, name] of [["arm", "arm"], ["base", "against"]]) {
      const place = meta.arms.findIndex((arm) => arm.run === link.get(name));
      if (place >= 0) control(id).value = String(place);
    }
    for (const [id, value] of [["task", ""], ["kind", "all"], ["search", ""]]) control(id).value = value;
    filter();
    state.page = Math.floor(state.found.indexOf(i) / ITEMS_A_PAGE);
    show();
    open(i);
    document.getElementById("items").scrollIntoView();
  };

  const open = async (i) => {
    const [arm, base] = chosen();
    state.open = i;
    for (const button of control("list").querySelectorAll("button")) {
      button.setAttribute("aria-current", String(Number(button.dataset.item) === i));
    }
    const [ours, theirs] = await Promise.all([details(arm, i), details(base, i)]);
    if (state.open !== i) return;
    const holder = control("detail");
    holder.replaceChildren(...itemDetail({
      item: index.items[i], task: meta.tasks[index.items[i][0]], scope: meta.scopes[index.items[i][0]],
      kind: badge(kindOf(i, arm, base)), change: kindOf(i, arm, base), alike: alike(i, arm, base), link: linkTo(i),
      arm: { label: meta.arms[arm].label, run: meta.arms[arm].run, prediction: index.predictions[arm][i], details: ours, isBase: meta.arms[arm].role === "base", tries: meta.arms[arm].tries },
      base: { label: meta.arms[base].label, prediction: index.predictions[base][i], details: theirs },
    }));
    try { history.replaceState(null, "", linkTo(i)); } catch (_) { /* not allowed everywhere: the link is in the item */ }
    holder.scrollTop = 0;
    holder.focus({ preventScroll: true });
    if (window.matchMedia("(max-width: 820px)").matches) holder.scrollIntoView({ block: "start" });
  };

  const turn = (step) => { state.page += step; show(); };
  control("previous").addEventListener("click", () => turn(-1));
  control("next").addEventListener("click", () => turn(1));
  for (const id of ["arm", "base", "task", "kind"]) control(id).addEventListener("change", filter);
  let waiting = 0;
  control("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
  control("filters").addEventListener("submit", (event) => event.preventDefault());
  filter();
  followLink();
  window.addEventListener("hashchange", followLink);
};
