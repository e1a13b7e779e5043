"use strict";
// Everything that comes from the server or a file is written as text, never as markup.
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const PAUSE = 250; // milliseconds without a key before a text is sent
const SHOWN = 8; // classes
const KEPT = 20; // requests in the list
let runs = [], run = null, key = "", limits = { request_rows: 64 };
let timer = 0, asking = null, answer = null, job = null, link = "";

class Refused extends Error {
  constructor(status, problem, retry) {
    super(problem.message);
    Object.assign(this, { status, field: problem.field, retry });
  }
}

async function ask(path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers, signal };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name !== "AbortError") offline("The server does not answer. Trying again …");
    throw error;
  }
  offline("");
  if (response.ok) return response;
  let problem = { message: `The server answered ${response.status}.` };
  try { problem = (await response.json()).error; } catch { /* no JSON: the number says it */ }
  if (response.status === 401) $("key-form").hidden = false;
  throw new Refused(response.status, problem, Number(response.headers.get("Retry-After") || 1));
}

let again = 0;
function offline(message) {
  $("offline").textContent = message;
  $("offline").hidden = !message;
  clearTimeout(again);
  if (message) again = setTimeout(() => (run ? send() : start()), 3000);
}

async function start() {
  let found;
  try { found = await (await ask("/v1/models")).json(); } catch (error) {
    if (error instanceof Refused) $("problem").textContent = error.message;
    return;
  }
  $("problem").textContent = "";
  $("key-form").hidden = true;
  runs = found.models;
  limits = found.limits;
  $("run").replaceChildren(...runs.map((one) => new Option(one.name, one.name)));
  choose(runs[0]);
}

function choose(one) {
  run = one;
  answer = null;
  $("answer").hidden = true;
  $("about").textContent = `${one.method} on ${one.base}` +
    (one.kind === "regression" ? "" : `, ${one.labels.length} classes`);
  const [first] = one.columns;
  $("columns").textContent = one.kind === "choice"
    ? `Columns: ${one.columns.join(", ")}; choices as a JSON list.`
    : `Columns: ${one.columns.join(", ")}. ` + (one.columns.length === 1
      ? `Lines of a .txt file are texts.` : "");
  $("fields").replaceChildren(...one.columns.map((name) => field(name, one)));
  const rule = one.abstain;
  $("risk-box").hidden = !rule;
  if (rule) $("risk").value = String(100 * rule.max_risk);
  $("card-box").open = false;
  $("card").textContent = "";
  drawReliability();
  describeRisk();
  document.querySelector(`[data-column="${CSS.escape(first)}"]`).focus();
}

function field(name, one) {
  const label = document.createElement("label"), area = document.createElement("textarea");
  const lines = one.kind === "choice" && name === one.columns[1];
  label.textContent = lines ? `${name}, one in a line` : name;
  area.dataset.column = name;
  area.dataset.lines = lines ? "1" : "";
  area.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(send, PAUSE); });
  label.append(area);
  return label;
}

function entered() {
  const row = {};
  for (const area of document.querySelectorAll("[data-column]")) {
    const lines = area.value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (area.dataset.lines) row[area.dataset.column] = lines;
    else if (area.value.trim()) row[area.dataset.column] = area.value;
  }
  const optional = run.kind === "choice" ? 2 : run.columns.length;
  const complete = run.columns.slice(0, optional)
    .every((name) => (Array.isArray(row[name]) ? row[name].length > 1 : row[name]));
  return complete ? row : null;
}

async function send() {
  const row = run && entered();
  if (!row) return;
  if (asking) asking.abort();
  const mine = (asking = new AbortController());
  $("answer").setAttribute("aria-busy", "true");
  try {
    const body = { model: run.name, inputs: [row], intervals: true, top: SHOWN };
    const found = await (await ask("/v1/predict", body, mine.signal)).json();
    if (mine !== asking) return;
    $("problem").textContent = "";
    [answer] = found.predictions;
    show();
    remember(row);
  } catch (error) {
    if (mine !== asking || error.name === "AbortError") return;
    if (error instanceof Refused) {
      $("problem").textContent = error.message;
      if (error.status === 429) timer = setTimeout(send, 1000 * error.retry);
    }
  }
}

const percent = (p) => `${(100 * p).toFixed(p < 0.0995 ? 1 : 0)} %`;
const short = (x) => (Math.abs(x) >= 1000 || (x !== 0 && Math.abs(x) < 0.001)
  ? x.toExponential(2) : x.toPrecision(3));

function show() {
  const a = answer, numbers = a.mean !== undefined;
  $("answer").hidden = false;
  $("answer").setAttribute("aria-busy", "false");
  $("label").textContent = numbers ? `${short(a.mean)} ± ${short(a.std)}` : a.label;
  const total = numbers ? a.std ** 2 : a.entropy;
  const parts = numbers ? [a.aleatoric ** 2, a.epistemic ** 2] : [a.aleatoric, a.epistemic];
  $("bars").replaceChildren(...(numbers ? [] : Object.keys(a.probs).map(bar)));
  const more = numbers ? 0 : run.labels.length - Object.keys(a.probs).length;
  const notes = [];
  if (more > 0) notes.push(`and ${more} more classes`);
  if (a.intervals) notes.push("lines: where the posterior puts 90 % of each probability");
  if (a.set) notes.push(`bold: the set, which holds the right class with ${percent(run.sets.coverage)}`);
  if (a.truncated) notes.push(`only ${run.max_tokens} tokens of the text were read`);
  $("note").textContent = notes.join("; ");
  // Of nothing at all there are no shares.
  const whole = numbers ? total : Math.max(total, Math.log(run.labels.length));
  $("aleatoric").style.width = `${(100 * parts[0]) / whole}%`;
  $("epistemic").style.width = `${(100 * parts[1]) / whole}%`;
  const unit = numbers ? "" : " nats";
  $("aleatoric-value").textContent = short(a.aleatoric) + unit;
  $("epistemic-value").textContent = short(a.epistemic) + unit;
  $("entropy-value").textContent = numbers ? "" :
    `of at most ${short(Math.log(run.labels.length))} for ${run.labels.length} classes`;
  $("split").setAttribute("aria-label",
    `aleatoric ${short(a.aleatoric)}, epistemic ${short(a.epistemic)}${unit}`);
  describeFamiliarity();
  decide();
}

// Accuracy by confidence: on the line the model is as right as it says.
function drawReliability() {
  const found = run.measured, figure = $("reliability");
  figure.replaceChildren();
  figure.hidden = !found || !found.bins.length;
  if (figure.hidden) return;
  const chart = document.createElementNS(SVG, "svg");
  chart.setAttribute("viewBox", "-42 -10 264 246");
  chart.setAttribute("role", "img");
  const draw = (kind, values, text) => {
    const shape = document.createElementNS(SVG, kind);
    for (const [k, v] of Object.entries(values)) shape.setAttribute(k, v);
    if (text !== undefined) shape.textContent = text;
    return chart.appendChild(shape);
  };
  const most = Math.max(...found.bins.map((bin) => bin[2]));
  for (const [low, high, count, confidence, accuracy] of found.bins) {
    const x = 200 * low, width = Math.max(1, 200 * (high - low) - 1);
    const bar = { x, y: 200 - 200 * accuracy, width, height: 200 * accuracy };
    const shape = draw("rect", { ...bar, class: "fill", opacity: 0.35 + (0.65 * count) / most });
    const title = document.createElementNS(SVG, "title");
    title.textContent = `${count} rows: confidence ${percent(confidence)}, accuracy ${percent(accuracy)}`;
    shape.append(title);
    draw("line", { x1: x, x2: x + width, y1: 200 - 200 * confidence, y2: 200 - 200 * confidence, class: "whisker" });
  }
  draw("line", { x1: 0, y1: 200, x2: 200, y2: 0, class: "ideal" });
  for (const share of [0, 0.5, 1]) {
    draw("text", { x: 200 * share, y: 216, "text-anchor": "middle" }, `${100 * share} %`);
    draw("text", { x: -6, y: 204 - 200 * share, "text-anchor": "end" }, `${100 * share} %`);
  }
  draw("text", { x: 100, y: 231, "text-anchor": "middle" }, "confidence; bars: accuracy");
  const caption = document.createElement("figcaption"), m = found.metrics;
  caption.className = "quiet";
  caption.textContent = `${found.data.rows} rows of ${found.data.name}: accuracy ${percent(m.accuracy)}, ` +
    `NLL ${short(m.nll)}, ECE ${short(m.ece)}. The fainter a bar, the fewer its rows; black lines: mean confidence.`;
  chart.setAttribute("aria-label", `Reliability. ${caption.textContent}`);
  figure.append(chart, caption);
}

function describeFamiliarity() {
  const note = $("ood"), score = answer.ood_score;
  note.textContent = `How unfamiliar the text is (ood_score): ${short(score)}`;
  note.classList.remove("problem");
  if (!run.reference) return;
  const points = run.reference.ood_score, rows = `${run.reference.n} ${run.reference.rows} rows`;
  const above = points.findIndex((q) => q > score);
  const share = above < 0 ? 1 : Math.max(0, above - 0.5) / (points.length - 1);
  note.textContent += above < 0 ? `, more than any of ${rows}: do not trust the answer`
    : `, more than ${percent(share)} of ${rows}`;
  note.classList.toggle("problem", above < 0);
}

function bar(name) {
  const p = answer.probs[name], ends = answer.intervals && answer.intervals[name];
  const inside = !answer.set || answer.set.includes(name);
  const row = document.createElement("div"), label = document.createElement("span");
  const value = document.createElement("span"), chart = document.createElementNS(SVG, "svg");
  row.className = `row${answer.set && inside ? " in" : ""}`;
  row.setAttribute("role", "listitem");
  row.setAttribute("aria-label", `${name} ${percent(p)}` +
    (ends ? `, from ${percent(ends[0])} to ${percent(ends[1])}` : ""));
  label.className = "name";
  label.textContent = label.title = name;
  value.className = "value";
  value.textContent = percent(p);
  chart.setAttribute("class", "bar");
  chart.setAttribute("viewBox", "0 0 100 16");
  chart.setAttribute("preserveAspectRatio", "none");
  const draw = (kind, values) => {
    const shape = document.createElementNS(SVG, kind);
    for (const [k, v] of Object.entries(values)) shape.setAttribute(k, v);
    chart.append(shape);
  };
  draw("rect", { class: "track", x: 0, y: 3, width: 100, height: 10 });
  draw("rect", { class: `fill${inside ? "" : " out"}`, x: 0, y: 3, width: 100 * p, height: 10 });
  if (ends) {
    const [low, high] = ends.map((x) => 100 * x), line = { class: "whisker", "vector-effect": "non-scaling-stroke" };
    draw("line", { ...line, x1: low, x2: high, y1: 8, y2: 8 });
    for (const x of [low, high]) draw("line", { ...line, x1: x, x2: x, y1: 4, y2: 12 });
  }
  row.append(label, chart, value);
  return row;
}

// As `AbstainRule.at`: the last threshold that passes before one fails.
function position(rule, risk) {
  let found = null;
  for (let i = 0; i < rule.bounds.length; i++) {
    const rows = rule.accepted[i];
    if (rows * Math.log1p(-risk) > Math.log(1 - rule.confidence) || 10 * rows < rule.n) continue;
    if (rule.bounds[i] > risk) break;
    found = i;
  }
  return found;
}

const SCORES = {
  max_prob: (a) => -a.confidence, entropy: (a) => a.entropy,
  mutual_information: (a) => a.epistemic, density: (a) => a.ood_score,
};

function decide() {
  const rule = run.abstain, chip = $("decision");
  chip.textContent = "";
  if (!rule || !answer) return;
  const at = position(rule, Number($("risk").value) / 100);
  const threshold = at === null ? -Infinity : rule.thresholds[at] ?? Infinity;
  const answers = SCORES[rule.by](answer) < threshold;
  chip.textContent = answers ? "answers" : "abstains";
  chip.className = `chip ${answers ? "yes" : "no"}`;
}

function describeRisk() {
  const rule = run.abstain;
  if (!rule) return;
  const risk = Number($("risk").value) / 100, at = position(rule, risk);
  $("risk-value").textContent = `${(100 * risk).toFixed(1)} %`;
  $("risk-note").textContent = at === null
    ? `No threshold is shown to keep this on the ${rule.n} calibration rows: every text is abstained from.`
    : `Answers ${percent(rule.accepted[at] / rule.n)} of rows like the ${rule.n} calibration rows; ` +
      `the error among answers stays below ${(100 * risk).toFixed(1)} % with ${percent(rule.confidence)} ` +
      "confidence, for one risk chosen beforehand.";
  decide();
}

function remember(row) {
  const item = document.createElement("li"), button = document.createElement("button");
  const what = document.createElement("span"), said = document.createElement("span");
  const name = run.name, text = Object.values(row).flat().join(" · ");
  what.className = "what";
  what.textContent = text;
  said.className = "said";
  said.textContent = answer.label === undefined ? short(answer.mean)
    : `${answer.label} ${percent(answer.confidence)}`;
  button.type = "button";
  button.title = "Try it again";
  button.append(what, said);
  button.addEventListener("click", () => {
    if (run.name !== name) {
      $("run").value = name;
      choose(runs.find((one) => one.name === name));
    }
    for (const area of document.querySelectorAll("[data-column]")) {
      const value = row[area.dataset.column] ?? "";
      area.value = Array.isArray(value) ? value.join("\n") : value;
    }
    send();
  });
  item.append(button);
  for (const old of $("history").children) if (old.dataset.text === name + text) old.remove();
  item.dataset.text = name + text;
  $("history").prepend(item);
  while ($("history").children.length > KEPT) $("history").lastChild.remove();
  $("empty").hidden = true;
}

// ---- files ----

function parseCsv(text) {
  const rows = [[]];
  let cell = "", quoted = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) {
      if (c !== '"') cell += c;
      else if (text[i + 1] === '"') { cell += c; i++; } else quoted = false;
    } else if (c === '"' && !cell) quoted = true;
    else if (c === ",") { rows.at(-1).push(cell); cell = ""; }
    else if (c === "\n") { rows.at(-1).push(cell.replace(/\r$/, "")); cell = ""; rows.push([]); }
    else cell += c;
  }
  rows.at(-1).push(cell);
  const [head, ...body] = rows.filter((row) => row.some(Boolean));
  if (!head) return [];
  return body.map((row) => Object.fromEntries(head.map((name, i) => [name, row[i] ?? ""])));
}

function parseLines(text, name) {
  if (/\.csv$/i.test(name)) {
    return parseCsv(text).map((row) => {
      const choices = run.kind === "choice" && row[run.columns[1]];
      if (choices) try { row[run.columns[1]] = JSON.parse(choices); } catch { /* it is refused */ }
      return { row };
    });
  }
  const lines = text.split(/\r?\n/).filter((line) => line.trim());
  if (/\.txt$/i.test(name)) return lines.map((line) => ({ row: line }));
  return lines.map((line) => {
    try { return { row: JSON.parse(line) }; } catch (error) { return { error: `no JSON: ${error.message}` }; }
  });
}

async function scoreFile(file) {
  if (job) job.stopped = true;
  const mine = (job = { stopped: false, abort: new AbortController() });
  const text = (await file.text()).replace(/^\ufeff/, "");
  const rows = parseLines(text, file.name), out = [];
  $("job").hidden = false;
  $("download").hidden = true;
  $("stop").hidden = false;
  $("progress").max = Math.max(1, rows.length);
  let bad = 0, done = 0, stopped = "";
  const tell = (end) => {
    $("progress").value = done;
    $("job-note").textContent = `${file.name}: ${done} of ${rows.length} rows` +
      (bad ? `, ${bad} bad` : "") + (end || "");
  };
  tell(" …");
  const size = Math.min(limits.request_rows, 64);
  for (let from = 0; from < rows.length && !mine.stopped; from += size) {
    const part = rows.slice(from, from + size).map((one, i) => ({ ...one, line: from + i + 1 }));
    try {
      const answers = await scorePart(part, mine);
      bad += answers.filter((one) => one.error).length;
      out.push(...answers);
      done += part.length;
      tell(" …");
    } catch (error) {
      if (!mine.stopped) stopped = ` — stopped: ${error.message}`;
      break;
    }
  }
  if (mine !== job) return;
  tell(mine.stopped ? " — stopped" : stopped);
  $("stop").hidden = true;
  if (link) URL.revokeObjectURL(link);
  link = URL.createObjectURL(new Blob(out.map((one) => JSON.stringify(one) + "\n"),
    { type: "application/x-ndjson" }));
  const a = $("download");
  a.href = link;
  a.download = file.name.replace(/\.[^.]*$/, "") + ".predictions.jsonl";
  a.textContent = `Download ${a.download}`;
  a.hidden = !out.length;
}

async function scorePart(part, mine) {
  const answers = new Map(part.filter((one) => one.error).map((one) => [one.line, one]));
  let left = part.filter((one) => !one.error);
  while (left.length) {
    try {
      const body = { model: run.name, inputs: left.map((one) => one.row) };
      const found = await (await ask("/v1/predict", body, mine.abort.signal)).json();
      found.predictions.forEach((one, i) => {
        const own = left[i].row.id;
        answers.set(left[i].line, { ...one, id: own ?? left[i].line });
      });
      break;
    } catch (error) {
      const at = /^inputs\.(\d+)/.exec((error instanceof Refused && error.field) || "");
      if (at) { // this row is at fault; the others go on without it
        const [row] = left.splice(Number(at[1]), 1);
        answers.set(row.line, { line: row.line, error: error.message });
      } else if (error instanceof Refused && (error.status === 429 || error.status === 503)) {
        await new Promise((go) => setTimeout(go, 1000 * error.retry));
        if (mine.stopped) throw error;
      } else throw error;
    }
  }
  return part.map((one) => {
    const found = answers.get(one.line);
    return found.error ? { line: one.line, error: found.error } : found;
  });
}

function pick(files) {
  if (files.length && run) scoreFile(files[0]);
}

$("run").addEventListener("change", (event) => {
  choose(runs.find((one) => one.name === event.target.value));
});
$("risk").addEventListener("input", describeRisk);
$("file").addEventListener("change", (event) => { pick(event.target.files); event.target.value = ""; });
$("stop").addEventListener("click", () => { job.stopped = true; job.abort.abort(); });
for (const [type, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  $("drop").addEventListener(type, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", over);
    if (type === "drop") pick(event.dataTransfer.files);
  });
}
$("card-box").addEventListener("toggle", async () => {
  if (!$("card-box").open || $("card").textContent) return;
  const name = run.name;
  try {
    const text = await (await ask(`/v1/models/${encodeURIComponent(name)}/card`)).text();
    if (run.name === name) $("card").textContent = text
      .replace(/^---\n[^]*?\n---\n/, "").replace(/^!\[.*\n\n?/gm, "");
  } catch (error) { $("card").textContent = error.message; }
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  start();
});
window.addEventListener("online", () => (run ? send() : start()));
window.addEventListener("offline", () => offline("This computer is offline."));
start();
