// A job's curves as they grow, and several jobs' over each other. The page shows what the server has told; when the
// connection is lost, EventSource comes back with the id of the last message and gets what has happened since.
"use strict";

const FIELDS = ["train_loss", "valid_loss", "codebleu", "learning_rate", "tokens_per_second", "peak_memory"];
const HEIGHT = { large: 300, small: 150 };

// --- Colours and figures ---------------------------------------------------------------------------------------------

const probe = document.createElement("span");
probe.hidden = true;

/** A colour of the style sheet, as the canvas takes it. */
function colour(name) {
  if (!probe.isConnected) document.body.append(probe);
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

function figure(field, value) {
  if (value === null || value === undefined) return "–";
  if (field === "peak_memory") return value >= 1e9 ? `${(value / 1e9).toPrecision(3)}\u00a0GB` : `${(value / 1e6).toPrecision(3)}\u00a0MB`;
  if (field === "learning_rate") return value === 0 ? "0" : value.toExponential(1).replace("e-", "e−");
  if (field === "tokens_per_second") return Math.round(value).toLocaleString("en");
  return value.toFixed(3);
}

/** The mean over some twentieth of the curve around each point: what the eye looks for in a noisy loss. */
function smooth(values) {
  const reach = Math.max(1, Math.round(values.length / 40));
  const sums = [0];
  const counts = [0];
  for (const value of values) {
    sums.push(sums.at(-1) + (value ?? 0));
    counts.push(counts.at(-1) + (value === null ? 0 : 1));
  }
  return values.map((value, at) => {
    const from = Math.max(0, at - reach);
    const to = Math.min(values.length, at + reach + 1);
    return value === null ? null : (sums[to] - sums[from]) / (counts[to] - counts[from]);
  });
}

// --- Charts ----------------------------------------------------------------------------------------------------------

function axes(field) {
  const font = '11px "Geist", sans-serif';
  const shared = { stroke: colour("soft"), font, grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
  return [
    { ...shared, grid: { show: false }, space: 60, size: 26 },
    { ...shared, size: 58, gap: 6, space: 34, values: (_, ticks) => ticks.map((tick) => figure(field, tick)) },
  ];
}

/** A chart in its figure; `draw` gives the series and the data. */
class Chart {
  constructor(host, field, series) {
    this.host = host;
    this.field = field;
    this.series = series;
    this.data = null;
    this.plot = null;
    this.width = 0;
    // Its own size is told in the same frame otherwise, again and again.
    new ResizeObserver(() => requestAnimationFrame(() => this.fit())).observe(host);
    document.addEventListener("theme-changed", () => this.redraw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  size() {
    const style = getComputedStyle(this.host);
    const width = this.host.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    return { width: Math.floor(width), height: this.host.classList.contains("chart-large") ? HEIGHT.large : HEIGHT.small };
  }

  fit() {
    const size = this.size();
    if (this.plot && size.width > 0 && size.width !== this.width) {
      this.width = size.width;
      this.plot.setSize(size);
    }
  }

  redraw() {
    this.plot?.destroy();
    this.plot = null;
    if (this.data) this.show(this.data);
  }

  /** While nobody points at a step, the legend tells the last one. */
  rest() {
    if (this.plot && !(this.plot.cursor.left >= 0)) this.plot.setLegend({ idx: this.data[0].length - 1 });
  }

  show(data) {
    this.data = data;
    if (this.plot) { this.plot.setData(data); setTimeout(() => this.rest()); return; }
    const size = this.size();
    if (size.width <= 0) return;
    this.width = size.width;
    const series = [{ label: "step" }, ...this.series.map((one) => ({
      spanGaps: true,
      value: (_, value) => figure(this.field, value),
      ...one,
      stroke: colour(one.colour),
      points: one.points ? { show: true, size: 6, fill: colour(one.colour), stroke: colour("surface"), width: 1.5 } : { show: false },
    }))];
    const options = { ...size, series, axes: axes(this.field), scales: { x: { time: false } }, cursor: { points: { size: 7 }, y: false }, legend: { live: true, markers: { width: 0, fill: (plot, at) => plot.series[at].stroke() } } };
    this.plot = new uPlot(options, data, this.host);
    setTimeout(() => this.rest()); // uPlot writes its first legend after this
    this.plot.over.addEventListener("mouseleave", () => setTimeout(() => this.rest()));
    this.plot.root.setAttribute("role", "img");
    this.plot.root.setAttribute("aria-label", `${this.host.querySelector("figcaption").textContent} by step`);
  }
}

// --- A job -----------------------------------------------------------------------------------------------------------

class JobCurves {
  constructor(main) {
    this.url = `/jobs/${main.dataset.job}`;
    this.points = Number(main.dataset.points);
    this.rows = new Map();
    this.told = "";
    this.ended = main.dataset.ended === "yes";
    this.waits = new Map();
    const line = (name, rest) => ({ label: name, width: 1.75, ...rest });
    const charts = {
      loss: [line("training", { colour: "curve-raw", width: 1 }), line("smoothed", { colour: "curve" }), line("validation", { colour: "accent", points: true, width: 2 })],
      codebleu: [line("CodeBLEU", { colour: "c3", points: true, width: 2 })],
      learning_rate: [line("rate", { colour: "curve" })],
      tokens_per_second: [line("tokens/s", { colour: "curve" })],
      peak_memory: [line("memory", { colour: "curve" })],
    };
    this.charts = {};
    for (const host of main.querySelectorAll("[data-chart]")) {
      const name = host.dataset.chart;
      this.charts[name] = new Chart(host, name === "loss" ? "train_loss" : name, charts[name]);
    }
  }

  async start() {
    if (await this.load() && !this.ended) this.listen();
  }

  /** All curves, thinned by the server. False when the page is of no use any more. */
  async load() {
    let answer;
    try {
      answer = await fetch(`${this.url}/metrics.json?points=${this.points}`);
    } catch {
      setTimeout(() => this.start(), 3000);
      return false;
    }
    if (answer.status >= 500) { setTimeout(() => this.start(), 3000); return false; }
    if (!answer.ok || answer.redirected) return false;
    const { steps, told } = await answer.json();
    this.rows = new Map(steps.map((row) => [row.step, row]));
    this.told = told;
    this.draw();
    return true;
  }

  listen() {
    const source = new EventSource(`${this.url}/stream?after=${encodeURIComponent(this.told)}`);
    const on = (name, work) => source.addEventListener(name, (event) => { this.told = event.lastEventId; work(JSON.parse(event.data)); });
    on("step", (row) => { this.rows.set(row.step, row); this.soon("draw", 100, () => this.grown()); });
    on("job", () => this.soon("job-changed", 500, () => htmx.trigger(document.body, "job-changed")));
    on("event", (told) => { if (told.type !== "metrics") this.soon("told-changed", 500, () => htmx.trigger(document.body, "told-changed")); });
    on("reset", () => { source.close(); this.start(); });
    on("end", () => { source.close(); location.reload(); });
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
      setTimeout(() => this.start(), 3000); // the server answered, but not with a stream: it is starting, or its database is away
    };
  }

  /** Once, a little later: many messages make one change of the page. */
  soon(name, milliseconds, work) {
    if (this.waits.has(name)) return;
    this.waits.set(name, setTimeout(() => { this.waits.delete(name); work(); }, milliseconds));
  }

  grown() {
    if (this.rows.size > 2.5 * this.points) this.load();
    else this.draw();
  }

  draw() {
    const rows = [...this.rows.values()].sort((a, b) => a.step - b.step);
    document.querySelector("[data-wait]").hidden = rows.length > 0;
    document.querySelector("[data-charts]").hidden = rows.length === 0;
    if (rows.length === 0) return;
    const steps = rows.map((row) => row.step);
    const values = Object.fromEntries(FIELDS.map((field) => [field, rows.map((row) => row[field] ?? null)]));
    this.tiles(values);
    const dense = values.train_loss.length > 40 ? smooth(values.train_loss) : values.train_loss;
    this.charts.loss.show([steps, values.train_loss, dense, values.valid_loss]);
    for (const field of ["codebleu", "learning_rate", "tokens_per_second", "peak_memory"]) {
      const any = values[field].some((value) => value !== null);
      const chart = this.charts[field];
      chart.host.hidden = !any;
      if (any) chart.show([steps, values[field]]);
    }
    document.querySelector("[data-charts]").dataset.drawn = String(steps.at(-1));
  }

  tiles(values) {
    for (const tile of document.querySelectorAll("[data-tile]")) {
      const field = tile.dataset.tile;
      tile.querySelector("dd").textContent = figure(field, values[field].findLast((value) => value !== null));
    }
  }
}

// --- Several jobs ----------------------------------------------------------------------------------------------------

async function compare(root) {
  const sources = [...root.querySelectorAll("[data-curve]")];
  const answers = await Promise.all(sources.map((source) => fetch(source.dataset.curve)));
  const jobs = await Promise.all(answers.map((answer) => answer.json()));
  for (const host of root.querySelectorAll("[data-over]")) {
    const field = host.dataset.over;
    const steps = [...new Set(jobs.flatMap((job) => job.steps.filter((row) => row[field] !== null).map((row) => row.step)))].sort((a, b) => a - b);
    const data = [steps, ...jobs.map((job) => {
      const known = new Map(job.steps.map((row) => [row.step, row[field]]));
      return steps.map((step) => known.get(step) ?? null);
    })];
    const dashes = [undefined, [8, 4], [2, 3], [10, 3, 2, 3], [4, 4], [12, 6]];
    const series = sources.map((source, at) => ({ label: source.dataset.name, colour: `c${at + 1}`, width: 1.75, dash: dashes[at], points: field === "valid_loss" }));
    new Chart(host, field, series).show(data);
  }
  root.dataset.drawn = "yes";
}

const job = document.querySelector("[data-job]");
if (job) new JobCurves(job).start();
const over = document.querySelector("[data-compare-charts]");
if (over) compare(over);
