// One item opened: question, both answers, and what moved the arm's answer.
"use strict";

const fixedDigits = (value, digits) => (typeof value === "number" && Number.isFinite(value) ? value.toFixed(digits) : "");

const itemDetail = ({ item, task, scope, kind, change, alike, link, arm, base }) => {
  const [, id, question, choices, gold] = item;
  const parts = [
    el("p", { class: "eyebrow" }, kind, ` ${task} #${id}`, scope ? ` · ${scope === "out" ? "out of" : scope} scope` : "", " · ", el("a", { class: "permalink", href: link }, "link to this item")),
    el("p", { class: "question" }, (arm.details && arm.details.prompt) || question),
  ];
  const asked = rendered(arm, base);
  if (asked) parts.push(asked);
  const why = reason(choices, gold, arm, base);
  if (why) parts.push(el("p", { class: "why" }, why));
  if (change === "fixed" || change === "broken") parts.push(el("p", { class: "alike" }, alike.length ? `Also ${change} by: ${alike.join(", ")}.` : `No other arm has it ${change}.`));
  if (choices) parts.push(...choiceList(choices, gold, arm, base));
  else parts.push(...freeAnswers(arm, base));
  const found = arm.details;
  if (!found && !arm.isBase) {
    parts.push(el("p", { class: "empty" }, "The details of this item are not in this file; they are in samples.jsonl of run ", el("code", {}, arm.run), "."));
    return parts;
  }
  if (!found) return parts;
  if (found.neighbors && found.neighbors.length) parts.push(el("h4", {}, "Neighbors, by cosine similarity"), ...found.neighbors.map(neighbor));
  if (found.losses && found.losses.length > 1) {
    const loss = (arm.tries ? "Best loss" : "Loss") + (found.neighbors && found.neighbors.length ? " on the neighbors" : "");
    const by = arm.tries ? "try" : "step";
    parts.push(el("h4", {}, arm.tries ? `${loss} by shares tried of the original pathway` : `${loss} by step, nats`), lossCurve(found.losses, loss, by));
  }
  if (found.pathway_before && found.pathway_after) {
    const change = typeof found.pathway_change === "number" ? ` (Euclidean distance moved: ${found.pathway_change.toFixed(2)})` : "";
    parts.push(el("h4", {}, "Pathway: routing weights, layers by experts" + change), pathways(found));
  }
  const measures = [["score", found.score], ["drift", found.drift], ...Object.entries(found.degeneration || {})].filter((m) => typeof m[1] === "number");
  if (measures.length) {
    parts.push(el("h4", {}, "Measures"), el("dl", {}, measures.flatMap(([name, value]) => [el("dt", {}, name.replaceAll("_", " ") + (UNITS[name] ? `, ${UNITS[name]}` : "")), el("dd", {}, fixedDigits(value, 3))])));
  }
  return parts;
};

// The prompt that the model was really asked; an arm that is asked as base keeps none of its own.
const rendered = (arm, base) => {
  const own = arm.details && arm.details.rendered;
  const prompts = own || (base.details && base.details.rendered);
  if (!prompts || !prompts.length) return null;
  const several = prompts.length > 1 ? ", one for each option" : "";
  const whose = own ? arm.label : base.label === arm.label ? arm.label : `${base.label} and ${arm.label}`;
  return el("details", { class: "rendered" }, el("summary", {}, `The prompt as the model reads it (${whose}${several})`), ...prompts.map((text) => el("pre", {}, text)));
};

// One sentence on what lies behind a changed answer: both answers, the neighbors' loss, the experts that moved most.
const reason = (choices, gold, arm, base) => {
  if (!choices || arm.isBase || arm.prediction === base.prediction) return "";
  const named = (side) => {
    const shares = side.details && side.details.probabilities;
    const share = shares ? ` with ${percent(shares[side.prediction])}` : "";
    return `${side.label} chose “${choices[side.prediction]}”${share}`;
  };
  if (choices[arm.prediction] === undefined || choices[base.prediction] === undefined) return "";
  const found = arm.details || {};
  const [neighbors, losses] = [found.neighbors || [], found.losses || []];
  let text = `${named(base)}, ${named(arm)}`;
  if (losses.length > 1) {
    const [from, to] = [losses[0], losses[losses.length - 1]];
    const way = to < from ? "fell" : to > from ? "rose" : "stayed";
    const whose = neighbors.length ? `the loss on its ${neighbors.length} neighbor${neighbors.length > 1 ? "s" : ""}` : "the loss";
    const best = neighbors.length && neighbors[0].question ? ` (nearest: “${neighbors[0].question.slice(0, 80)}”, answer ${neighbors[0].answer})` : "";
    text += `: ${whose}${best} ${way} from ${fixedDigits(from, 2)} to ${fixedDigits(to, 2)} nats`;
  }
  const moves = moved(found);
  if (moves.length) {
    const said = moves.map(({ layer, expert, by }) => `expert ${expert} of layer ${layer} (${by > 0 ? "+" : "−"}${fixedDigits(Math.abs(by), 2)})`);
    text += `${losses.length > 1 ? " while" : ":"} the routing weight of ${said.slice(0, -1).join(", ")}${said.length > 1 ? " and " : ""}${said[said.length - 1]} changed most`;
  }
  return text + ".";
};

const UNITS = { score: "−1 to 1", drift: "nats a token" };

const percent = (share) => (typeof share === "number" ? `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%` : "");

// The three experts whose routing weight an arm changed most.
const moved = ({ pathway_before: before, pathway_after: after, pathway_layers: layers }) => {
  if (!before || !after) return [];
  const changes = after.flatMap((row, r) => row.map((v, c) => ({ layer: layers ? layers[r] : r, expert: c, by: v - ((before[r] || [])[c] || 0) })));
  return changes.filter(({ by }) => Math.abs(by) >= 0.005).sort((a, b) => Math.abs(b.by) - Math.abs(a.by)).slice(0, 3);
};

const choiceList = (choices, gold, arm, base) => {
  const two = arm.label !== base.label;
  const kept = (side, name) => (side.details && side.details[name]) || [];
  const shares = kept(arm, "probabilities").length || kept(base, "probabilities").length;
  const name = shares ? "probabilities" : "loglikelihoods";
  const said = (side, i) => (shares ? percent(kept(side, name)[i]) : fixedDigits(kept(side, name)[i], 2));
  const list = el("ol", { class: "choices", "aria-label": "Choices" }, choices.map((text, i) => {
    const right = gold === i || gold === text;
    const [before, after] = [two ? said(base, i) : "", said(arm, i)];
    return el("li", { class: right ? "gold" : false },
      el("span", { class: "text" }, text),
      right && el("span", { class: "tag gold" }, "correct"),
      base.prediction === i && el("span", { class: "tag" }, base.label),
      arm.prediction === i && two && el("span", { class: "tag ours" }, arm.label),
      (before || after) && el("span", { class: "range", title: `log-likelihoods: ${[base, arm].map((side) => fixedDigits(kept(side, "loglikelihoods")[i], 2)).filter(Boolean).join(" → ")}` },
        before && after ? `${before} → ${after}` : after || before));
  }));
  if (!kept(arm, name).length && !kept(base, name).length) return [list];
  const whose = two && kept(arm, name).length && kept(base, name).length ? `, ${base.label} → ${arm.label}` : "";
  return [list, el("p", { class: "legend" }, shares ? `Probability of each choice among the choices, under the scoring rule${whose}.` : `Log-likelihoods in nats${whose}.`)];
};

const freeAnswers = (arm, base) => {
  const text = (side) => (side.details && side.details.response) || side.prediction;
  const answer = (label, said) => el("figure", {}, el("figcaption", {}, label), el("blockquote", {}, said === null || said === undefined ? "(no answer)" : typeof said === "number" ? `choice ${said + 1}` : said));
  return [el("h4", {}, "Answers"), el("div", { class: "answers" }, answer(base.label, text(base)), answer(arm.label, text(arm)))];
};

const neighbor = ({ id, similarity, question, answer }) => el("div", { class: "neighbor" },
  el("div", {}, el("strong", { title: "cosine similarity" }, fixedDigits(similarity, 3)), el("div", { class: "meter", "aria-hidden": "true" }, bar(similarity))),
  question === undefined ? el("p", {}, el("span", { class: "range" }, id))
    : el("p", {}, question, el("br"), el("span", { class: "range" }, "answer: "), answer, el("span", { class: "range" }, ` · ${id}`)));

const bar = (share) => {
  const node = el("i");
  node.style.width = `${Math.round(100 * Math.min(1, Math.max(0, share || 0)))}%`;
  return node;
};

const lossCurve = (losses, loss, by) => {
  const [width, height, left] = [320, 90, 40];
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const x = (i) => left + (i / (losses.length - 1)) * (width - left - 8);
  const y = (v) => 8 + (1 - (high === low ? 0.5 : (v - low) / (high - low))) * (height - 26);
  const first = by === "try" ? 1 : 0;
  const last = losses.length - 1 + first;
  const said = `${loss} by ${by}, from ${fixedDigits(losses[0], 3)} at ${by} ${first} to ${fixedDigits(losses[losses.length - 1], 3)} at ${by} ${last}`;
  return svg("svg", { class: "loss", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said },
    svg("line", { x1: left, x2: width, y1: height - 14, y2: height - 14 }),
    svg("text", { x: 0, y: y(high) + 4 }, fixedDigits(high, 2)), svg("text", { x: 0, y: y(low) + 4 }, high === low ? "" : fixedDigits(low, 2)),
    svg("text", { x: left, y: height - 2 }, `${by} ${first}`), svg("text", { x: width - 8, y: height - 2, "text-anchor": "end" }, last),
    svg("polyline", { points: losses.map((v, i) => `${x(i).toFixed(1)},${y(v).toFixed(1)}`).join(" ") }),
    losses.map((v, i) => svg("circle", { cx: x(i), cy: y(v), r: 2.5 }, svg("title", {}, `${by} ${i + first}: ${fixedDigits(v, 4)}`))));
};

const pathways = ({ pathway_before: before, pathway_after: after, pathway_layers: layers }) => {
  const largest = Math.max(...before.flat(), ...after.flat(), 1e-9);
  const change = after.map((row, r) => row.map((v, c) => v - ((before[r] || [])[c] || 0)));
  const moved = Math.max(...change.flat().map(Math.abs), 1e-9);
  return el("div", { class: "heat-row" },
    heatMap("before", before, layers, largest), heatMap("after", after, layers, largest), heatMap("change", change, layers, moved, "; blue: more, orange: less"));
};

// What the shades of a map stand for: routing weights from 0, or changes of both signs, to the largest.
const scale = (largest, signed) => el("span", { class: "scale" },
  el("span", {}, signed ? `−${fixedDigits(largest, 2)}` : "0"), el("i", { class: signed ? "signed" : false, "aria-hidden": "true" }),
  el("span", {}, `${signed ? "+" : ""}${fixedDigits(largest, 2)} of the routing weight`));

const heatMap = (name, rows, layers, largest, legend = "") => {
  const [cell, left, below] = [10, 32, 22];
  const columns = Math.max(...rows.map((row) => row.length));
  const [width, height] = [left + columns * cell, rows.length * cell + below];
  let best = [0, 0];
  rows.forEach((row, r) => row.forEach((v, c) => { if (Math.abs(v) > Math.abs(rows[best[0]][best[1]])) best = [r, c]; }));
  const layer = (r) => (layers && layers[r] !== undefined ? layers[r] : r);
  const said = `Pathway ${name}: ${rows.length} layers by ${columns} experts, largest ${fixedDigits(rows[best[0]][best[1]], 3)} at layer ${layer(best[0])}, expert ${best[1]}`;
  return el("figure", {}, svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said },
    rows.map((row, r) => [
      svg("text", { x: left - 4, y: r * cell + 8, "text-anchor": "end" }, layer(r)),
      row.map((v, c) => svg("rect", {
        x: left + c * cell, y: r * cell, width: cell - 1, height: cell - 1, rx: 1.5,
        style: `fill: rgba(var(${v < 0 ? "--heat-less" : "--heat"}), ${(Math.abs(v) / largest).toFixed(3)})`,
      }, svg("title", {}, `layer ${layer(r)}, expert ${c}: ${fixedDigits(v, 4)}`))),
    ]).flat(),
    svg("text", { x: 7, y: (height - below) / 2, transform: `rotate(-90 7 ${(height - below) / 2})`, "text-anchor": "middle" }, "layer"),
    svg("text", { x: left, y: height - below + 9 }, 0),
    svg("text", { x: width - 1, y: height - below + 9, "text-anchor": "end" }, columns - 1),
    svg("text", { x: (left + width) / 2, y: height - below + 18, "text-anchor": "middle" }, "expert")),
  el("figcaption", {}, `${name}${legend}`, scale(largest, legend !== "")));
};
