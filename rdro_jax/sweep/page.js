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
  let low = Math.min(...values), high = Math.max(...values);
  const log = low > 0 && high / low > 50;
  const f = log ? Math.log : (x) => x;
  if (low === high) { low -= Math.abs(low) / 10 || 1; high += Math.abs(high) / 10 || 1; }
  const at = (x) => from + ((f(x) - f(low)) / (f(high) - f(low))) * (to - from);
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((s) => (log ? low * (high / low) ** s : low + s * (high - low)));
  return { at, ticks };
}
function title(node, trial) {
  const point = Object.entries(trial.point).map(([key, value]) => `${key} ${spell(value)}`).join("\n");
  draw(node, "title", {}, `trial ${trial.trial}: ${data.metric} ${figure(trial)}\n${point}`);
}

function drawGroups() {
  const rows = groups.map((g) => finished.filter((t) => groupOf(t) === g)).filter((ts) => ts.length);
  const svg = canvas("groups", 1100, 40 + 42 * rows.length);
  if (!rows.length) return;
  const ends = finished.flatMap((t) => [t.value - (t.ci95 ?? 0), t.value + (t.ci95 ?? 0)]);
  const x = scale(ends, 190, 1060);
  const sign = data.direction === "maximize" ? -1 : 1;
  rows.forEach((trials, row) => {
    const y = 25 + 42 * row, colour = colourOf(trials[0]);
    const best = trials.reduce((a, b) => (sign * a.value <= sign * b.value ? a : b));
    draw(svg, "line", { x1: 190, x2: 1060, y1: y, y2: y, class: "axis" });
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
  for (const tick of x.ticks) {
    draw(svg, "text", { x: x.at(tick), y: 34 + 42 * rows.length, class: "dim", "text-anchor": "middle" }, spell(Number(tick.toPrecision(3))));
  }
}

function drawParallel(shown) {
  // A key that a trial's loss does not have is crossed below the axis.
  const axes = [...data.keys, data.metric], height = 350, NONE = height - 8;
  const svg = canvas("parallel", 1100, height);
  const value = (t, key) => (key === data.metric ? t.value : t.point[key]);
  const scales = axes.map((key) => {
    const values = finished.map((t) => value(t, key)).filter((v) => v !== undefined && v !== null);
    if (values.length && values.every((v) => typeof v === "number")) return scale(values, height - 50, 40);
    const names = [...new Set(values.map(String))].sort();
    const at = (v) => height - 50 - ((names.indexOf(String(v)) + 0.5) / names.length) * (height - 90);
    return { at, ticks: names };
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
    for (const tick of scales[i].ticks) {
      const text = typeof tick === "number" ? spell(Number(tick.toPrecision(3))) : tick;
      draw(svg, "text", { x: x(i) + 5, y: scales[i].at(tick) + 4, class: "dim" }, text);
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
function drawCurves(metric) {
  const lines = data.trials.map((t, i) => [t, mean(data.curves[i][metric])]).filter(([, line]) => line.length);
  const svg = canvas("curves", 1100, 330);
  const points = lines.flatMap(([, line]) => line);
  if (!points.length) { draw(svg, "text", { x: 20, y: 30, class: "dim" }, `no ${metric} was logged`); return; }
  const x = scale([0, ...points.map((p) => p[0])], 70, 1080), y = scale(points.map((p) => p[1]), 300, 20);
  for (const tick of y.ticks) {
    draw(svg, "line", { x1: 70, x2: 1080, y1: y.at(tick), y2: y.at(tick), class: "axis" });
    draw(svg, "text", { x: 62, y: y.at(tick) + 4, class: "dim", "text-anchor": "end" }, spell(Number(tick.toPrecision(3))));
  }
  for (const tick of x.ticks) {
    draw(svg, "text", { x: x.at(tick), y: 320, class: "dim", "text-anchor": "middle" }, String(Math.round(tick)));
  }
  for (const [t, line] of lines) {
    const kind = t.trial === data.best ? "trial hot" : "trial";
    if (line.length === 1) {
      title(draw(svg, "circle", { cx: x.at(line[0][0]), cy: y.at(line[0][1]), r: 4, fill: colourOf(t) }), t);
      continue;
    }
    const d = line.map(([s, v], n) => `${n ? "L" : "M"}${x.at(s).toFixed(1)} ${y.at(v).toFixed(1)}`).join("");
    title(draw(svg, "path", { d, stroke: colourOf(t), class: kind }), t);
  }
}

const COLUMNS = [
  ["trial", (t) => t.trial], ["state", (t) => t.state], ...data.keys.map((key) => [key, (t) => t.point[key]]),
  [data.metric, (t) => t.value, figure], ["seconds", (t) => t.seconds], ["why", (t) => t.why],
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
