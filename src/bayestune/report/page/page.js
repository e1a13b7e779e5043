"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const shown = new Set(data.shown);
const stops = new Map();

// figures ----------------------------------------------------------------------------------------

function draw(figure) {
  const plot = figure.querySelector(".plot"), task = data.tasks[figure.dataset.task];
  const methods = task.methods.filter((m) => shown.has(m.row));
  const choices = {};
  for (const s of figure.closest(".task").querySelectorAll("select")) choices[s.name] = s.value;
  const chart = CHARTS[figure.dataset.chart];
  const { nodes, points } = methods.length
    ? chart(methods, task, Math.max(260, plot.clientWidth), choices)
    : nothing("No method is shown; choose some under Methods.");
  plot.replaceChildren(...nodes);
  stops.set(plot, points);
}
const drawAll = () => document.querySelectorAll("figure").forEach(draw);

const tip = document.getElementById("tip"), spoken = document.getElementById("spoken");
let marker = null;
function show(point) {
  hide();
  const view = point.svg.viewBox.baseVal, box = point.svg.getBoundingClientRect(), k = box.width / view.width;
  marker = el("circle", { class: "at", cx: point.x, cy: point.y, r: 6 });
  point.svg.append(marker);
  tip.textContent = point.text;
  const x = box.left + point.x * k, y = box.top + point.y * k;
  tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${y - tip.offsetHeight - 12 < 4 ? y + 14 : y - tip.offsetHeight - 12}px`;
}
function hide() {
  if (marker) marker.remove();
  marker = null;
  tip.textContent = "";
}
for (const plot of document.querySelectorAll(".plot")) {
  let at = -1;
  plot.addEventListener("pointermove", (event) => {
    const svg = event.target.closest("svg");
    let best = null, least = 40 ** 2;
    if (svg) {
      const box = svg.getBoundingClientRect(), k = svg.viewBox.baseVal.width / box.width;
      const [x, y] = [(event.clientX - box.left) * k, (event.clientY - box.top) * k];
      const narrow = plot.classList.contains("panels") ? 0.05 : 1; // bars are met by their column
      for (const p of stops.get(plot)) {
        const far = (p.x - x) ** 2 + narrow * (p.y - y) ** 2;
        if (p.svg === svg && far < least) [best, least] = [p, far];
      }
    }
    if (best) show(best);
    else hide();
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", () => { at = -1; hide(); });
  plot.addEventListener("keydown", (event) => {
    const points = stops.get(plot), step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step || !points.length) return;
    event.preventDefault();
    at = at < 0 && step < 0 ? points.length - 1 : (at + step + points.length) % points.length;
    show(points[at]);
    spoken.textContent = points[at].text;
  });
}
addEventListener("scroll", hide, { passive: true });

// methods ----------------------------------------------------------------------------------------

const boxes = [...document.querySelectorAll(".legend input")];
function choose(rows) {
  shown.clear();
  for (const row of rows) shown.add(row);
  for (const box of boxes) box.checked = shown.has(Number(box.value));
  document.getElementById("count").textContent = `${shown.size} of ${boxes.length}`;
  drawAll();
}
for (const box of boxes)
  box.addEventListener("change", () => choose(boxes.filter((b) => b.checked).map((b) => Number(b.value))));
for (const button of document.querySelectorAll("[data-choose]"))
  button.addEventListener("click", () => choose({ all: boxes.map((b) => Number(b.value)), none: [], first: data.shown }[button.dataset.choose]));
for (const select of document.querySelectorAll("select"))
  select.addEventListener("change", () => {
    // One choice stands for all charts of its task that take it.
    for (const other of select.closest(".task").querySelectorAll(`select[name="${select.name}"]`)) other.value = select.value;
    select.closest(".task").querySelectorAll("figure").forEach(draw);
  });

// tables -----------------------------------------------------------------------------------------

for (const head of document.querySelectorAll("th[aria-sort]"))
  head.querySelector("button").addEventListener("click", () => {
    const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
    const up = head.getAttribute("aria-sort") === "none" ? head.dataset.first !== "descending" : head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what is not known comes last
      const order = head.dataset.kind === "text" ? x.localeCompare(y) : x - y;
      return (up ? 1 : -1) * order || a.dataset.place - b.dataset.place;
    };
    body.append(...[...body.rows].sort(compare));
  });

// theme, print, width ----------------------------------------------------------------------------

const root = document.documentElement, button = document.getElementById("theme");
const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
button.addEventListener("click", () => {
  root.dataset.theme = dark() ? "light" : "dark";
  label();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
label();
addEventListener("beforeprint", () => document.querySelectorAll("main details").forEach((d) => { d.open = true; }));

if (matchMedia("(max-width: 60rem)").matches) document.querySelector(".legend").open = false;
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) drawAll();
  width = innerWidth;
});
choose(data.shown);
