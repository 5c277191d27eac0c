// Shared by the other scripts: reading what the file carries, and building elements from text alone.
"use strict";

const read = (id) => {
  const block = document.getElementById("data-" + id);
  return block ? JSON.parse(block.textContent) : null;
};

const unpacked = new Map();

// A gzipped, base64-coded JSON block; unpacked the first time it is asked for.
const unpack = (id) => {
  if (!unpacked.has(id)) {
    const block = document.getElementById("data-" + id);
    const bytes = Uint8Array.from(atob(block.textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    unpacked.set(id, new Response(stream).json());
  }
  return unpacked.get(id);
};

// Text from the store only ever becomes text nodes and attributes, never markup.
const SVG = "http://www.w3.org/2000/svg";
const build = (node, attributes, children) => {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "onclick") node.addEventListener("click", value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
};
const el = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

const number = new Intl.NumberFormat("en");

const setUpTheme = (redraw) => {
  const root = document.documentElement;
  const media = window.matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : media.matches);
  try {
    const saved = localStorage.getItem("c3po-theme");
    if (saved === "light" || saved === "dark") root.dataset.theme = saved;
  } catch (_) { /* storage may be closed to files: then the system's theme holds */ }
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("c3po-theme", root.dataset.theme); } catch (_) { /* as above */ }
    redraw(dark());
  });
  media.addEventListener("change", () => redraw(dark()));
  let shown;
  window.addEventListener("beforeprint", () => {  // paper is white
    shown = root.dataset.theme;
    const before = dark();
    root.dataset.theme = "light";
    if (before) redraw(false);
  });
  window.addEventListener("afterprint", () => {
    if (shown) root.dataset.theme = shown; else delete root.dataset.theme;
    if (dark()) redraw(true);
  });
  redraw(dark());
};

const setUpCopying = () => {
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const text = button.parentElement.querySelector("pre");
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch (_) {
        window.getSelection().selectAllChildren(text);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
};
