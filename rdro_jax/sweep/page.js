"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#2563eb", "#c2410c", "#0f9d74", "#9333ea", "#b8860b", "#0891b2", "#be185d", "#64748b"];
const find = (id) => document.getElementById(id);
const finished = data.trials.filter((t) => t.value !== null);
const groups = [...new Set(data.trials.map(groupOf))].sort();

function groupOf(trial) { return data.group === null ? "all trials" : String(trial.point[data.group] ?? "none"); }
function colourOf(trial) { return COLOURS[groups.indexOf(groupOf(trial)) % COLOURS.length]; }
function spell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  const short = Number(value.toPrecision(5));
  return Math.abs(short) < 1e-3 ? short.toExponential() : String(short);
}
function figure(trial) { return spell(trial.value) + (trial.ci95 === null ? "" : ` ± ${Number(trial.ci95.toPrecision(2))}`); }

// SVG by DOM calls: no text of the data is ever parsed as markup.
function draw(parent, name, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
}
function canvas(id, width, height) {
  const svg = find(id);
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  return svg;
}
// A scale from numbers to pixels; logarithmic where values are positive and span more than a factor of 50.
function scale(values, from, to) {
  // Not Math.min(...values): a call takes no hundred thousand arguments.
  let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  const log = low > 0 && high / low > 50;
  const f = log ? Math.log : (x) => x;
  const ticks = low === high ? [[low, spell(low)]] : log ? logTicks(low, high) : roundTicks(low, high);
  if (low === high) { low -= Math.abs(low) / 10 || 1; high += Math.abs(high) / 10 || 1; }
  const at = (x) => from + ((f(x) - f(low)) / (f(high) - f(low))) * (to - from);
  return { at, ticks };
}
// [value, text] of the multiples of 1, 2 or 5 times a power of ten that lie in the range, all to the same digit.
function roundTicks(low, high) {
  const power = 10 ** Math.floor(Math.log10((high - low) / 5));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= (high - low) / 5);
  const first = Math.ceil(low / step - 1e-9), count = Math.floor(high / step + 1e-9) - first + 1;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return Array.from({ length: count }, (_, i) => (first + i) * step)
    .map((value) => [value, digits > 6 ? value.toExponential(1) : (Math.abs(value) < step / 2 ? 0 : value).toFixed(digits)]);
}
// 1, 2 and 5 times the powers of ten in the range; of three powers and more, these alone.
function logTicks(low, high) {
  const factors = high / low < 1000 ? [1, 2, 5] : [1], ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    ticks.push(...factors.map((m) => Number(`${m}e${power}`)).filter((v) => v >= low * (1 - 1e-9) && v <= high * (1 + 1e-9)));
  }
  return ticks.map((value) => [value, spell(value)]);
}
function title(node, trial) {
  const point = Object.entries(trial.point).map(([key, value]) => `${key} ${spell(value)}`).join("\n");
  draw(node, "title", {}, `trial ${trial.trial}: ${data.metric} ${figure(trial)}\n${point}`);
}

function drawGroups() {
  const rows = groups.map((g) => finished.filter((t) => groupOf(t) === g)).filter((ts) => ts.length);
  const svg = canvas("groups", 1100, 60 + 42 * rows.length), left = 230;
  if (!rows.length) return;
  const ends = finished.flatMap((t) => [t.value - (t.ci95 ?? 0), t.value + (t.ci95 ?? 0)]);
  const x = scale(ends, left, 1060);
  const sign = data.direction === "maximize" ? -1 : 1;
  rows.forEach((trials, row) => {
    const y = 25 + 42 * row, colour = colourOf(trials[0]);
    const best = trials.reduce((a, b) => (sign * a.value <= sign * b.value ? a : b));
    draw(svg, "line", { x1: left, x2: 1060, y1: y, y2: y, class: "axis" });
    draw(svg, "text", { x: 0, y: y + 4 }, groupOf(best));
    for (const t of trials) {
      const dot = draw(svg, "circle", { cx: x.at(t.value), cy: y, r: 3.5, fill: colour, opacity: 0.35 });
      title(dot, t);
    }
    if (best.ci95 !== null) {
      const [a, b] = [x.at(best.value - best.ci95), x.at(best.value + best.ci95)];
      draw(svg, "path", { d: `M${a} ${y - 7}v14M${a} ${y}H${b}M${b} ${y - 7}v14`, stroke: colour, "stroke-width": 2 });
    }
    title(draw(svg, "circle", { cx: x.at(best.value), cy: y, r: 6, fill: colour }), best);
    draw(svg, "text", { x: 80, y: y + 4, class: "dim" }, figure(best));
  });
  for (const [value, text] of x.ticks) {
    draw(svg, "text", { x: x.at(value), y: 34 + 42 * rows.length, class: "dim", "text-anchor": "middle" }, text);
  }
  draw(svg, "text", { x: (left + 1060) / 2, y: 54 + 42 * rows.length, "text-anchor": "middle" }, data.metric);
}

function drawParallel(shown) {
  // A key that a trial's loss does not have is crossed below the axis.
  const axes = [...data.keys, data.metric], height = 350, NONE = height - 8;
  const svg = canvas("parallel", 1100, height);
  const value = (t, key) => (key === data.metric ? t.value : t.point[key]);
  const scales = axes.map((key) => {
    const values = finished.map((t) => value(t, key)).filter((v) => v !== undefined);
    if (values.length && values.every((v) => typeof v === "number")) return scale(values, height - 50, 40);
    const names = [...new Set(values.map(String))].sort();
    const at = (v) => height - 50 - ((names.indexOf(String(v)) + 0.5) / names.length) * (height - 90);
    return { at, ticks: names.map((name) => [name, name]) };
  });
  const x = (i) => 60 + (i * 970) / Math.max(axes.length - 1, 1);
  for (const t of finished.filter((t) => shown.has(t.trial))) {
    const places = axes.map((key, i) => (value(t, key) === undefined ? NONE : scales[i].at(value(t, key))));
    const d = places.map((y, i) => `${i ? "L" : "M"}${x(i)} ${y}`).join("");
    const line = draw(svg, "path", { d, stroke: colourOf(t), class: t.trial === data.best ? "trial hot" : "trial" });
    title(line, t);
  }
  axes.forEach((key, i) => {
    draw(svg, "line", { x1: x(i), x2: x(i), y1: 40, y2: height - 50, class: "axis" });
    draw(svg, "text", { x: x(i), y: i % 2 ? 30 : 14, "text-anchor": "middle" }, key);
    if (finished.some((t) => value(t, key) === undefined)) {
      draw(svg, "text", { x: x(i) + 5, y: NONE, class: "dim" }, "none");
    }
    for (const [place, text] of scales[i].ticks) {
      draw(svg, "text", { x: x(i) + 5, y: scales[i].at(place) + 4, class: "dim" }, text);
    }
  });
}

function drawImportance() {
  const entries = Object.entries(data.importance).sort((a, b) => b[1] - a[1]);
  const svg = canvas("importance", 1100, Math.max(26 * entries.length, 1));
  find("importance-note").textContent = entries.length
    ? "Share of the objective's variation near its best values that a key accounts for (PED-ANOVA), finished trials."
    : "Shown from four finished trials on.";
  entries.forEach(([key, share], row) => {
    draw(svg, "text", { x: 0, y: 26 * row + 17 }, key);
    draw(svg, "rect", { x: 290, y: 26 * row + 4, width: 700 * share, height: 17, fill: COLOURS[0] });
    draw(svg, "text", { x: 298 + 700 * share, y: 26 * row + 17, class: "dim" }, share.toFixed(2));
  });
}

// Mean of a trial's runs at the steps that all of them have.
function mean(curves) {
  const known = curves.filter((curve) => curve.length).map((curve) => new Map(curve));
  if (!known.length) return [];
  const steps = [...known[0].keys()].filter((step) => known.every((curve) => curve.has(step)));
  return steps.map((step) => [step, known.reduce((sum, curve) => sum + curve.get(step), 0) / known.length]);
}
// [step, mean, low, high] over curves, at the steps that all of them have.
function bandOf(curves) {
  const known = curves.map((curve) => new Map(curve));
  return mean(curves).map(([step, value]) => {
    const values = known.map((curve) => curve.get(step));
    return [step, value, Math.min(...values), Math.max(...values)];
  });
}
function drawCurves(metric) {
  const lines = data.trials.map((t, i) => [t, mean(data.curves[i][metric])]).filter(([, line]) => line.length);
  const svg = canvas("curves", 1100, 350);
  const points = data.curves.flatMap((of) => of[metric].flat());
  if (!points.length) { draw(svg, "text", { x: 20, y: 30, class: "dim" }, `no ${metric} was logged`); return; }
  const x = scale([0, ...points.map((p) => p[0])], 70, 1080), y = scale(points.map((p) => p[1]), 300, 20);
  for (const [value, text] of y.ticks) {
    draw(svg, "line", { x1: 70, x2: 1080, y1: y.at(value), y2: y.at(value), class: "axis" });
    draw(svg, "text", { x: 62, y: y.at(value) + 4, class: "dim", "text-anchor": "end" }, text);
  }
  for (const [value, text] of x.ticks) {
    draw(svg, "text", { x: x.at(value), y: 320, class: "dim", "text-anchor": "middle" }, text);
  }
  draw(svg, "text", { x: 575, y: 342, "text-anchor": "middle" }, "optimizer step");
  for (const [t, line] of lines) {
    const kind = t.trial === data.best ? "trial hot" : "trial";
    if (line.length === 1) {
      title(draw(svg, "circle", { cx: x.at(line[0][0]), cy: y.at(line[0][1]), r: 4, fill: colourOf(t) }), t);
      continue;
    }
    const d = line.map(([s, v], n) => `${n ? "L" : "M"}${x.at(s).toFixed(1)} ${y.at(v).toFixed(1)}`).join("");
    title(draw(svg, "path", { d, stroke: colourOf(t), class: kind }), t);
  }
  for (const group of groups) {
    // Every seed of every finished trial; one that was given up early would end the band there.
    const runs = data.trials.flatMap((t, i) => (t.value !== null && groupOf(t) === group ? data.curves[i][metric] : []))
      .filter((curve) => curve.length > 1);
    const band = bandOf(runs), colour = COLOURS[groups.indexOf(group) % COLOURS.length];
    if (runs.length < 2 || !band.length) continue;
    const path = (side) => band.map((p) => `${x.at(p[0]).toFixed(1)} ${y.at(p[side]).toFixed(1)}`);
    draw(svg, "path", { d: `M${[...path(3), ...path(2).reverse()].join("L")}Z`, fill: colour, class: "band" });
    draw(svg, "path", { d: `M${path(1).join("L")}`, stroke: colour, class: "mean" });
  }
}

const COLUMNS = [
  ["trial", (t) => t.trial], ["state", (t) => t.state], ...data.keys.map((key) => [key, (t) => t.point[key]]),
  [data.metric, (t) => t.value, figure], ["seconds", (t) => t.seconds],
  ...(data.trials.some((t) => t.why) ? [["why", (t) => t.why]] : []),
];
let order = { column: 0, down: false };
function compare(a, b) {
  const missing = (v) => v === null || v === undefined;
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}
function cells(trial) { return COLUMNS.map(([, value, text]) => (text ? text(trial) : spell(value(trial)))); }
function drawTable() {
  const words = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = data.trials.filter((t) => words.every((word) => cells(t).join(" ").toLowerCase().includes(word)));
  const value = COLUMNS[order.column][1];
  rows.sort((a, b) => {
    const known = value(a) === null || value(a) === undefined || value(b) === null || value(b) === undefined;
    return compare(value(a), value(b)) * (order.down && !known ? -1 : 1) || a.trial - b.trial;
  });
  const body = find("table").tBodies[0];
  body.replaceChildren(...rows.map((trial) => {
    const row = document.createElement("tr");
    row.className = trial.trial === data.best ? "best" : trial.state;
    for (const text of cells(trial)) row.insertCell().textContent = text;
    return row;
  }));
  find("count").textContent = `${rows.length} of ${data.trials.length}`;
  drawParallel(new Set(rows.map((t) => t.trial)));
}
function drawHead() {
  const row = find("table").tHead.insertRow();
  COLUMNS.forEach(([name], column) => {
    const head = document.createElement("th"), button = document.createElement("button");
    head.scope = "col";
    button.textContent = name;
    button.addEventListener("click", () => {
      order = { column, down: order.column === column && !order.down };
      for (const other of row.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      drawTable();
    });
    head.appendChild(button);
    row.appendChild(head);
  });
}

const counts = data.trials.reduce((all, t) => ({ ...all, [t.state]: (all[t.state] ?? 0) + 1 }), {});
find("summary").textContent = `${data.direction} ${data.metric}; trials: `
  + Object.entries(counts).map(([state, count]) => `${count} ${state}`).join(", ")
  + (data.seeds.length ? `; mean over seeds ${data.seeds.join(", ")}` : "");
find("groups-note").textContent = (data.group === null ? "All trials" : `By ${data.group}`)
  + (data.seeds.length > 1 ? "; the best of each with its 95 % confidence interval over seeds." : "; the best of each is marked.");
groups.forEach((name, i) => {
  const item = document.createElement("span"), dot = document.createElement("i");
  dot.style.background = COLOURS[i % COLOURS.length];
  item.append(dot, name);
  find("legend").appendChild(item);
});
for (const metric of data.metrics) find("metric").add(new Option(metric, metric));
find("metric").addEventListener("change", (event) => drawCurves(event.target.value));
find("filter").addEventListener("input", drawTable);
drawHead();
drawGroups();
drawImportance();
const logged = data.metrics.find((m) => data.curves.some((c) => c[m].some((line) => line.length > 1))) ?? data.metrics[0];
find("metric").value = logged;
drawCurves(logged);
drawTable();
