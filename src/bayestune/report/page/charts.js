"use strict";
// Small charts as inline SVG. A chart is a function of (methods, task, width, choices) that returns
// its elements and the points that a pointer or an arrow key can stop at.

const el = (name, attributes = {}, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const html = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const style = (row) => `s${row % 7} d${Math.floor(row / 7) % 3}`;
const number = (value, digits = 3) =>
  value === null ? "–" : Math.abs(value) >= 1e4 || (value && Math.abs(value) < 1e-3)
    ? value.toExponential(1) : String(Number(value.toFixed(value >= 100 ? 0 : digits)));
const fixed = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(Math.abs(value) >= 10 ? 1 : 3));
const spread = ([mean, error]) => fixed(mean) + (error === null ? "" : ` ± ${fixed(error)}`);

const linear = (low, high, from, to) => (v) => from + ((v - low) / (high - low || 1)) * (to - from);
const logarithmic = (low, high, from, to) => {
  const scale = linear(Math.log(low), Math.log(high), from, to);
  return (v) => scale(Math.log(v));
};
const ticks = (low, high, count) => {
  const raw = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
};
const logTicks = (low, high) => {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const m of [1, 2, 5]) {
      const v = m * 10 ** power;
      if (v >= low * 0.999 && v <= high * 1.001) found.push(v);
    }
  return found;
};
const span = (values, pad = 0.06) => {
  const low = Math.min(...values), high = Math.max(...values), more = (high - low || Math.abs(high) || 1) * pad;
  return [low - more, high + more];
};

// Axes around a plot area; x and y are {range, label, log, ticks, text}.
function frame(width, height, x, y, left = 44) {
  const box = { left, right: width - 10, top: 20, bottom: height - 36 };
  const scale = (axis, from, to) => (axis.log ? logarithmic : linear)(...axis.range, from, to);
  const X = scale(x, box.left, box.right), Y = scale(y, box.bottom, box.top);
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const marks = (axis, count) => axis.ticks || (axis.log ? logTicks(...axis.range) : ticks(...axis.range, count));
  for (const v of marks(y, 5)) {
    svg.append(el("line", { class: "grid", x1: box.left, x2: box.right, y1: Y(v), y2: Y(v) }));
    svg.append(el("text", { x: box.left - 6, y: Y(v) + 4, "text-anchor": "end" }, (y.text || number)(v)));
  }
  let last = -Infinity;
  for (const v of marks(x, Math.min(6, Math.floor(width / 70)))) {
    if (X(v) - last < 30) continue;
    last = X(v);
    svg.append(el("line", { class: "axis", x1: X(v), x2: X(v), y1: box.bottom, y2: box.bottom + 4 }));
    svg.append(el("text", { x: X(v), y: box.bottom + 16, "text-anchor": "middle" }, (x.text || number)(v)));
  }
  svg.append(el("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
  svg.append(el("text", { x: (box.left + box.right) / 2, y: height - 3, "text-anchor": "middle" }, x.label));
  svg.append(el("text", { x: 0, y: 10 }, y.label));
  return { svg, X, Y, box };
}

// Curves over shared axes; series are {row, name, points: [[x, y]], mark}.
function curves(series, width, x, y, diagonal = false) {
  const { svg, X, Y } = frame(width, 270, x, y);
  if (diagonal) svg.append(el("line", { class: "half", x1: X(0), y1: Y(0), x2: X(1), y2: Y(1) }));
  const points = [];
  for (const { row, name, points: all, mark } of series) {
    const known = all.filter((p) => p[1] !== null);
    const path = known.map(([a, b], i) => `${i ? "L" : "M"}${X(a).toFixed(1)} ${Y(b).toFixed(1)}`).join("");
    svg.append(el("path", { class: `curve ${style(row)}`, d: path, "data-row": row }));
    for (const p of known) {
      if (mark || known.length === 1) svg.append(el("circle", { class: `${mark && !p[2] ? "ring" : "dot"} ${style(row)}`, cx: X(p[0]), cy: Y(p[1]), r: p[2] ? 5 : 3 }));
      points.push({ svg, x: X(p[0]), y: Y(p[1]), text: `${name}\n${x.label}: ${number(p[0], 4)}\n${y.label}: ${number(p[1])}${p[2] ? "\nchosen" : ""}` });
    }
  }
  return { nodes: [svg], points };
}

function reliability(methods) {
  const nodes = [], points = [];
  for (const m of methods) {
    const width = 176, side = 132, left = 24, top = 8, strip = 34;
    const { counts, confidence, accuracy } = m.bins, total = counts.length, most = Math.max(...counts);
    const X = linear(0, 1, left, left + side + 16), Y = linear(0, 1, top + side, top);
    const svg = el("svg", { viewBox: `0 0 ${width} ${top + side + strip + 38}`, "aria-hidden": "true" });
    for (const v of [0, 0.5, 1]) {
      svg.append(el("line", { class: "grid", x1: left, x2: X(1), y1: Y(v), y2: Y(v) }));
      svg.append(el("text", { x: left - 5, y: Y(v) + 4, "text-anchor": "end" }, String(v)));
      svg.append(el("text", { x: X(v), y: top + side + strip + 20, "text-anchor": "middle" }, String(v)));
    }
    const base = top + side + strip + 6;
    counts.forEach((n, b) => {
      const x = X(b / total) + 0.5, w = X(1 / total) - X(0) - 1;
      if (n) {
        svg.append(el("rect", { class: `bar ${style(m.row)}${n < 10 ? " few" : ""}`, x, width: w, y: Y(accuracy[b]), height: Math.max(0.5, Y(0) - Y(accuracy[b])) }));
        svg.append(el("circle", { class: "at", cx: X(confidence[b]), cy: Y(accuracy[b]), r: 1.6 }));
        const tall = Math.max(1, (n / most) * (strip - 8));
        svg.append(el("rect", { class: "count", x, width: w, y: base - tall, height: tall }));
        points.push({ svg, x: x + w / 2, y: Y(accuracy[b]), text: `${m.name}\nconfidence ${(b / total).toFixed(2)}–${((b + 1) / total).toFixed(2)}: mean ${number(confidence[b])}\nright: ${number(accuracy[b])}\n${n} predictions` });
      }
    });
    svg.append(el("line", { class: "half", x1: X(0), y1: Y(0), x2: X(1), y2: Y(1) }));
    svg.append(el("line", { class: "axis", x1: left, x2: X(1), y1: Y(0), y2: Y(0) }));
    svg.append(el("line", { class: "axis", x1: left, x2: X(1), y1: base, y2: base }));
    svg.append(el("text", { x: left, y: top + side + 15 }, `most: ${most}`));
    svg.append(el("text", { x: X(0.5), y: base + 30, "text-anchor": "middle" }, "confidence"));
    nodes.push(panel(m, `ECE ${spread(m.ece)}`, svg));
  }
  return { nodes, points };
}

const panel = (m, note, svg) => {
  const key = el("svg", { class: `key ${style(m.row)}`, viewBox: "0 0 22 10", "aria-hidden": "true" }, el("line", { x1: 0, x2: 22, y1: 5, y2: 5 }));
  const title = html("div", { class: "title" }, key, ` ${m.name}`, html("br"), html("small", {}, note));
  return html("div", { class: "panel", "data-row": m.row }, title, svg);
};

function risk(methods, task, width) {
  const series = methods.map((m) => ({ ...m, points: m.risk.map((r, i) => [data.coverages[i], r]) }));
  const top = Math.max(...methods.flatMap((m) => m.risk), 1e-3);
  return curves(series, width, { range: [0, 1], label: "coverage" }, { range: [0, top * 1.05], label: "share of errors" });
}

function roc(methods, task, width, { set, score }) {
  const series = methods.map((m) => ({ ...m, name: `${m.name}: AUROC ${spread(m.ood[set][score].auroc)}`, points: m.ood[set][score].roc.map((r, i) => [data.rates[i], r]) }));
  const axis = (label) => ({ range: [0, 1], label });
  return curves(series, width, axis("test rows taken for others"), axis("others recognised"), true);
}

function histogram(methods, task, width, { set, score }) {
  const nodes = [], points = [];
  for (const m of methods) {
    const { low, high, inside, outside, auroc } = m.ood[set][score];
    const wide = 176, middle = 62, tall = 54, step = (wide - 8) / inside.length;
    const share = (counts) => { const all = counts.reduce((a, b) => a + b, 0); return counts.map((n) => n / all); };
    const [a, b] = [share(inside), share(outside)], most = Math.max(...a, ...b);
    const svg = el("svg", { viewBox: `0 0 ${wide} 134`, "aria-hidden": "true" });
    a.forEach((value, i) => {
      const x = 4 + i * step, from = low + (i * (high - low)) / a.length, to = low + ((i + 1) * (high - low)) / a.length;
      const up = (value / most) * tall, down = (b[i] / most) * tall;
      svg.append(el("rect", { class: "count", x, width: step - 1, y: middle - up, height: up }));
      svg.append(el("rect", { class: "outside", x, width: step - 1, y: middle, height: down }));
      if (value || b[i]) points.push({ svg, x: x + step / 2, y: middle, text: `${m.name}\n${number(from)} to ${i === a.length - 1 ? "above" : number(to)}\n${inside[i]} test rows, ${outside[i]} others` });
    });
    svg.append(el("line", { class: "axis", x1: 4, x2: wide - 4, y1: middle, y2: middle }));
    svg.append(el("text", { x: 4, y: 131 }, number(low, 2)), el("text", { x: wide - 4, y: 131, "text-anchor": "end" }, `≥ ${number(high, 2)}`));
    nodes.push(panel(m, `AUROC ${spread(auroc)}`, svg));
  }
  return { nodes, points };
}

const COSTS = { train: "seconds of training", predict: "milliseconds per text", size: "numbers trained and stored" };
function cost(methods, task, width, { cost: kind }) {
  const known = methods.filter((m) => m[kind] !== null && m[kind][0] > 0);
  if (!known.length) return nothing("Nothing was measured of the methods shown.");
  const edge = ([mean, error]) => [mean - (error || 0), mean + (error || 0)];
  const at = known.map((m) => m[kind][0]);
  const x = { range: [Math.min(...at) / 1.3, Math.max(...at) * 1.3], label: COSTS[kind], log: true };
  const { svg, X, Y, box } = frame(width, 290, x, { range: span(known.flatMap((m) => edge(m.nll))), label: "test NLL" });
  const points = [], taken = [], spots = [];
  for (const m of known) {
    const [cx, cy] = [X(m[kind][0]), Y(m.nll[0])], [low, high] = edge(m.nll);
    svg.append(el("line", { class: `whisker ${style(m.row)}`, x1: cx, x2: cx, y1: Y(low), y2: Y(high) }));
    svg.append(el("circle", { class: `${m.point ? "ring" : "dot"} ${style(m.row)}`, cx, cy, r: 4.5, "data-row": m.row }));
    taken.push({ x: cx - 6, y: cy, w: 12 });
    spots.push([m, cx, cy]);
    points.push({ svg, x: cx, y: cy, text: `${m.name}\n${COSTS[kind]}: ${spread(m[kind])}\nNLL ${spread(m.nll)}` });
  }
  for (const [m, cx, cy] of spots) { // a name stands where it covers nothing; the others have their tip
    const w = m.name.length * 6.3, free = (s) => s.x > box.left && s.x + w < box.right + 10
      && !taken.some((t) => Math.abs(t.y - s.y) < 11 && t.x < s.x + w && s.x < t.x + t.w);
    const spot = [[8, 0], [-8 - w, 0], [8, -10], [8, 10], [-8 - w, -10], [-8 - w, 10]].map(([dx, dy]) => ({ x: cx + dx, y: cy + dy, w })).find(free);
    if (!spot) continue;
    taken.push(spot);
    svg.append(el("text", { class: "strong", x: spot.x, y: spot.y + 4 }, m.name));
  }
  return { nodes: [svg], points };
}

function gap(methods, task, width) {
  const known = methods.filter((m) => m.gap);
  if (!known.length) return nothing("No method shown shares a seed with the reference.");
  const left = Math.min(150, width * 0.36), height = 46 + 22 * known.length;
  const x = { range: span([0, ...known.flatMap((m) => [m.gap.low, m.gap.high])]), label: "difference in NLL" };
  const { svg, X, box } = frame(width, height, x, { range: [0, 1], label: "", ticks: [] }, left);
  svg.append(el("line", { class: "half", x1: X(0), x2: X(0), y1: box.top - 8, y2: box.bottom }));
  const points = known.map((m, i) => {
    const y = box.top + 2 + 22 * i, { mean, low, high, clear } = m.gap, room = Math.floor((left - 12) / 6.2);
    const name = m.name.length > room ? `${m.name.slice(0, room - 1)}…` : m.name;
    svg.append(el("text", { class: "strong", x: left - 10, y: y + 4, "text-anchor": "end" }, name));
    svg.append(el("line", { class: `whisker ${style(m.row)}`, x1: X(low), x2: X(high), y1: y, y2: y }));
    svg.append(el("circle", { class: `${clear ? "dot" : "ring"} ${style(m.row)}`, cx: X(mean), cy: y, r: 4, "data-row": m.row }));
    return { svg, x: X(mean), y, text: `${m.name}\n${number(mean)} [${number(low)}, ${number(high)}]${clear ? "" : "\nnot significant"}` };
  });
  return { nodes: [svg], points };
}

const QUANTITIES = { train_nll: "training NLL", val_nll: "held-out NLL", val_accuracy: "held-out accuracy", stable_rank: "stable rank of ΔW" };
function epochs(methods, task, width, { quantity }) {
  const series = methods.flatMap((m) => m.epochs.map(([seed, values]) => ({ row: m.row, name: `${m.name}, seed ${seed}`, points: (values[quantity] || []).map((v, i) => [i + 1, v]) }))).filter((s) => s.points.length);
  if (!series.length) return nothing("No method shown has epochs of its own that measured this.");
  const all = series.flatMap((s) => s.points), last = Math.max(2, ...all.map((p) => p[0]));
  return curves(series, width, { range: [1, last], label: "epoch", ticks: ticks(1, last, 6).filter(Number.isInteger) }, { range: span(all.map((p) => p[1]).filter((v) => v !== null)), label: QUANTITIES[quantity] });
}

function sweep(methods, task, width) {
  const series = methods.filter((m) => m.trials.length).map((m) => ({ ...m, mark: true, points: m.trials }));
  const all = series.flatMap((s) => s.points), known = all.filter((p) => p[1] !== null);
  if (!known.length) return nothing("No method shown tried learning rates of its own.");
  const rates = [...new Set(all.map((p) => p[0]))].sort((a, b) => a - b);
  const found = curves(series, width, { range: [rates[0] / 1.15, rates[rates.length - 1] * 1.15], label: "learning rate", log: true, ticks: rates, text: (v) => String(v) }, { range: span(known.map((p) => p[1])), label: "held-out NLL" });
  const X = logarithmic(rates[0] / 1.15, rates[rates.length - 1] * 1.15, 44, width - 10);
  for (const { row, name, points } of series)
    for (const [lr, nll] of points)
      if (nll === null) {
        found.nodes[0].append(el("text", { class: "strong", x: X(lr), y: 26, "text-anchor": "middle" }, "×"));
        found.points.push({ svg: found.nodes[0], x: X(lr), y: 22, text: `${name}\nlearning rate: ${lr}\nbroke off` });
      }
  return found;
}

const nothing = (sentence) => ({ nodes: [html("p", { class: "empty" }, sentence)], points: [] });
const CHARTS = { gap, reliability, risk, roc, histogram, cost, epochs, sweep };
