// Draws the figures, sorts the tables and drives the two explorers. Data arrive as JSON in <script type="application/json">
// elements; everything from the run reaches the page through textContent or through text that Python escaped.
(function () {
  "use strict";

  // The buttons are listed, not subtracted from plotly's own, whose "Share chart" would upload the data to a cloud service;
  // a "$" in a label is a dollar sign.
  const CONFIG = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], plotlyServerURL: "", typesetMath: false, toImageButtonOptions: { format: "svg" } };
  const read = (id) => {
    const element = document.getElementById(id);
    return element ? JSON.parse(element.textContent) : null;
  };
  const base = read("base-layout");
  const axis = (extra) => Object.assign({}, base.axis, extra);
  const draw = (div, figure) => Plotly.react(div, figure.data, figure.layout, CONFIG);
  const rgba = (hex, alpha) => "rgba(" + [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",") + "," + alpha + ")";
  const STEP = { text: "step", standoff: 6, font: { size: 12.5 } };
  const legendBeside = { orientation: "v", x: 1.01, y: 1, font: { size: 11.5 } };

  // --- Figures that need no controls -------------------------------------------------------------------------------
  document.querySelectorAll(".plot[data-figure]").forEach((div) => draw(div, read(div.dataset.figure)));

  // --- Tables: a click on a header sorts by it, a second click reverses ---------------------------------------------
  const sortBy = (table, column) => {
    const header = table.tHead.rows[0].cells;
    const ascending = header[column].getAttribute("aria-sort") !== "ascending";
    Array.from(header).forEach((cell) => cell.removeAttribute("aria-sort"));
    header[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const rank = (row) => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent : cell.dataset.value === "" ? NaN : Number(cell.dataset.value);
    };
    const compare = (a, b) => {
      const [x, y] = [rank(a), rank(b)];
      if (typeof x === "string" || typeof y === "string") return String(x).localeCompare(String(y)) * (ascending ? 1 : -1);
      // Empty cells stay at the bottom whichever way the column is sorted.
      if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
      return (x - y) * (ascending ? 1 : -1);
    };
    table.tBodies[0].append(...Array.from(table.tBodies[0].rows).sort(compare));
  };
  document.querySelectorAll("table.sortable").forEach((table) => {
    Array.from(table.tHead.rows[0].cells).forEach((cell, column) => {
      cell.tabIndex = 0;
      cell.addEventListener("click", () => sortBy(table, column));
      cell.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        sortBy(table, column);
      });
    });
  });

  // --- Training curves: one axis varies, the others stay where the selects put them ---------------------------------
  const MAX_GROUPS_SHOWN = 5;
  const select = (id) => document.getElementById(id);

  // The panels in rows of three; those that no group shown has a curve for are left out. null where none is left.
  function curvesFigure(data, wanted, vary, fixed, scale, tall) {
    const all = vary === "all";
    const axis_ = all ? null : data.axes[Number(vary)];
    const chosen = data.groups.filter((group) => all || data.axes.every((other, i) => String(i) === vary || group.index[other.position] === fixed[i]));
    const has = (group, panel) => [panel.solid, panel.dotted].some((key) => group.curves[key]);
    const shown = chosen.filter((group) => wanted.some((panel) => has(group, panel)));
    const panels = wanted.filter((panel) => shown.some((group) => has(group, panel)));
    if (panels.length === 0) return null;
    const first = data.axes[0];
    const traces = [];
    const columns = Math.min(3, Math.max(2, panels.length)), rows = Math.ceil(panels.length / columns);
    const gap = 0.095, width = (1 - gap * (columns - 1)) / columns;
    const [panelHeight, between] = [rows === 1 ? tall : 210, 78];
    const inner = rows * panelHeight + (rows - 1) * between;
    const layout = Object.assign({}, base.layout, { height: inner + 34 + 48, legend: legendBeside, margin: { l: 58, r: 16, t: 34, b: 48 }, annotations: [] });
    // A few groups at first, evenly spaced, and those without which a panel would be empty.
    const every = Math.max(1, Math.ceil(shown.length / MAX_GROUPS_SHOWN));
    const visible = new Set(shown.map((_, g) => g).filter((g) => g % every === 0));
    panels.forEach((panel) => {
      const owners = shown.map((group, g) => (has(group, panel) ? g : -1)).filter((g) => g >= 0);
      if (!owners.some((g) => visible.has(g))) owners.slice(0, MAX_GROUPS_SHOWN).forEach((g) => visible.add(g));
    });
    const listed = new Set();
    const nameOf = (group) => (axis_ ? axis_.label + " = " + axis_.values[group.index[axis_.position]] : group.label);
    // Long names go below, where they do not narrow the panels; plotly takes their room from the figure's height.
    const longest = Math.max(...shown.map((group) => nameOf(group).length));
    if (longest > 30) {
      const lines = Math.ceil(shown.length / Math.max(1, Math.floor(1000 / (6.4 * longest + 60))));
      layout.height += 20 * lines + 14;
      layout.margin.b += 20 * lines + 14;
      layout.legend = { orientation: "h", x: 0, xanchor: "left", y: 0, yref: "container", yanchor: "bottom", font: { size: 11.5 } };
    }
    panels.forEach((panel, p) => {
      const suffix = p === 0 ? "" : String(p + 1);
      const left = (p % columns) * (width + gap), top = 1 - (Math.floor(p / columns) * (panelHeight + between)) / inner;
      const last = p + columns >= panels.length;
      layout["xaxis" + suffix] = axis({ domain: [left, left + width], anchor: "y" + suffix, type: scale, title: last ? STEP : undefined, nticks: 5 });
      layout["yaxis" + suffix] = axis({ domain: [Math.max(0, top - panelHeight / inner), top], anchor: "x" + suffix });
      layout.annotations.push({ text: "<b>" + panel.title + "</b>" + (panel.unit ? " (" + panel.unit + ")" : ""), x: left, y: top, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", yshift: 4, showarrow: false, font: { size: 13 } });
      shown.forEach((group, g) => {
        const along = axis_ || first;
        const color = all && along ? data.palette[data.groups.indexOf(group)] : along ? along.colors[group.index[along.position]] : base.accent;
        const name = nameOf(group);
        const common = { xaxis: "x" + suffix, yaxis: "y" + suffix, legendgroup: String(g), visible: visible.has(g) ? true : "legendonly", showlegend: false, mode: "lines", type: "scatter" };
        const solid = group.curves[panel.solid], dotted = group.curves[panel.dotted];
        const split = (key) => key.split("/")[0];
        const line = (curve, key, style) => ({ x: curve.x, y: curve.y, name: name, line: Object.assign({ color: color }, style), hoverinfo: "text", text: curve.y.map((y, i) => name + "<br>" + split(key) + ", step " + curve.x[i] + "<br>" + (y === null ? "–" : y.toPrecision(5) + " " + panel.unit)) });
        if (dotted) traces.push(Object.assign({}, common, line(dotted, panel.dotted, { width: 1.3, dash: "dot" })));
        if (!solid) return;
        if (solid.e.some((e) => e)) {
          const edge = (sign) => solid.y.map((y, i) => (y === null ? null : y + sign * (solid.e[i] || 0)));
          traces.push(Object.assign({}, common, { x: solid.x, y: edge(-1), line: { width: 0 }, hoverinfo: "skip" }));
          traces.push(Object.assign({}, common, { x: solid.x, y: edge(1), line: { width: 0 }, fill: "tonexty", fillcolor: rgba(color, 0.18), hoverinfo: "skip" }));
        }
        traces.push(Object.assign({}, common, line(solid, panel.solid, { width: 2.2 }), { showlegend: !listed.has(g) }));
        listed.add(g);
      });
    });
    return { data: traces, layout: layout };
  }

  const training = read("training-data");
  if (training) {
    const redraw = () => {
      const vary = select("training-vary") ? select("training-vary").value : "all";
      const fixed = training.axes.map((_, i) => Number((select("training-fix-" + i) || { value: 0 }).value));
      training.axes.forEach((_, i) => {
        const box = select("training-fix-box-" + i);
        if (box) box.hidden = vary === "all" || vary === String(i);
      });
      ["training", "reported"].forEach((name) => {
        const div = select(name + "-plot");
        if (!div) return;
        const figure = curvesFigure(training, training.panels[name], vary, fixed, select("training-scale").value, name === "training" ? 318 : 230);
        div.hidden = figure === null;
        select(name + "-none").hidden = figure !== null;
        if (figure) draw(div, figure);
      });
    };
    document.querySelectorAll("#training-controls select").forEach((element) => element.addEventListener("change", redraw));
    redraw();
  }

  // --- Layers: norms of gradient, parameter and update of the run that is selected ----------------------------------
  function power(exponent) {
    return "10<sup>" + String(exponent).replace("-", "−") + "</sup>";
  }

  // Whole decades where the data cross two or more, else four plain numbers: plotly's own ticks crowd a short logarithmic axis.
  function decades(values) {
    const logs = values.flat().filter((v) => v > 0).map(Math.log10);
    if (logs.length === 0) return {};
    const [low, high] = [logs.reduce((a, b) => Math.min(a, b)), logs.reduce((a, b) => Math.max(a, b))];
    if (Math.floor(high) - Math.ceil(low) >= 1) return { dtick: Math.max(1, Math.ceil((high - low) / 5)) };
    const ticks = [0, 1, 2, 3].map((i) => Number((10 ** (low + (i * (high - low)) / 3)).toPrecision(2)));
    return { tickvals: ticks, ticktext: ticks.map(String) };
  }

  function layersFigure(data, run, scale) {
    const rows = run.layers.length;
    const log10 = (v) => (v === null || v <= 0 ? null : Math.log10(v));
    const ratio = run.update.map((row, l) => row.map((u, t) => (u === null || !run.param[l][t] ? null : u / run.param[l][t])));
    const [low, high] = data.range;
    const ticks = [];
    for (let e = Math.ceil(low); e <= Math.floor(high); e += Math.max(1, Math.round((high - low) / 6))) ticks.push(e);
    const traces = [{
      type: "heatmap", x: run.step, y: run.layers.map((_, l) => l), z: run.grad.map((row) => row.map(log10)), zmin: low, zmax: high, colorscale: "Viridis", xaxis: "x", yaxis: "y",
      hoverinfo: "text", text: run.grad.map((row, l) => row.map((v, t) => run.layers[l] + "<br>step " + run.step[t] + "<br>gradient norm " + (v === null ? "not finite" : v.toExponential(2)))),
      colorbar: { x: 0.405, y: 0.79, len: 0.44, thickness: 11, outlinewidth: 0, tickvals: ticks, ticktext: ticks.map(power), tickfont: { size: 11 } },
    }];
    const panels = [run.grad, run.grad, run.param, run.update, ratio];
    const lines = (values, suffix, legend) => run.layers.forEach((layer, l) => traces.push({
      type: "scatter", mode: "lines", x: run.step, y: values[l].map((v) => (v === null || v <= 0 ? null : v)), name: layer, legendgroup: String(l), showlegend: legend, xaxis: "x" + suffix, yaxis: "y" + suffix,
      line: { color: run.colors[l], width: 1.8, dash: run.dashes[l] },
      hoverinfo: "text", text: values[l].map((v, t) => layer + "<br>step " + run.step[t] + "<br>" + (v === null ? "not finite" : v.toExponential(2))),
    }));
    panels.slice(1).forEach((values, p) => lines(values, String(p + 2), p === 0));
    const third = 0.272, gap = 0.092;
    const domains = [[0, 0.4], [0.53, 1], [0, third], [third + gap, 2 * third + gap], [1 - third, 1]];
    const titles = ["Gradient norm by depth", "Gradient norm", "Parameter norm", "Update norm", "Update ÷ parameter norm"];
    const height = Math.max(560, 300 + 26 * rows);
    const layout = Object.assign({}, base.layout, { height: height, legend: legendBeside, margin: { l: 20, r: 16, t: 34, b: 48 }, annotations: [] });
    titles.forEach((title, p) => {
      const suffix = p === 0 ? "" : String(p + 1);
      const y = p < 2 ? [0.58, 1] : [0, 0.36];
      layout["xaxis" + suffix] = axis({ domain: domains[p], anchor: "y" + suffix, type: p === 0 ? "linear" : scale, title: STEP, nticks: 6 });
      layout["yaxis" + suffix] = axis({ domain: y, anchor: "x" + suffix, type: "log", exponentformat: "power", ...decades(panels[p]) });
      layout.annotations.push({ text: "<b>" + title + "</b>", x: domains[p][0], y: y[1], xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", yshift: 4, showarrow: false, font: { size: 13 } });
    });
    layout.yaxis = axis({ domain: [0.58, 1], anchor: "x", type: "linear", autorange: "reversed", tickvals: run.layers.map((_, l) => l), ticktext: run.layers, showgrid: false, ticks: "" });
    return { data: traces, layout: layout };
  }

  const layers = read("layers-data");
  if (layers) {
    const redraw = () => draw(select("layers-plot"), layersFigure(layers, layers.runs[Number(select("layers-run").value)], select("layers-scale").value));
    document.querySelectorAll("#layers-controls select").forEach((element) => element.addEventListener("change", redraw));
    redraw();
  }

  // --- What instruments saw: by layer with a line for each look, over training with a line for each layer --------------
  function looksFigure(data, run, quantity, whole) {
    const traces = [], titles = [], axes = {};
    const positive = (signed) => (v) => (v === null || (!signed && v <= 0) ? null : v);
    const shown = (v) => (v === null ? "none" : Math.abs(v) >= 0.01 && Math.abs(v) < 1e4 ? v.toPrecision(3) : v.toExponential(2));
    const line = (x, y, suffix, name, extra) => traces.push(Object.assign({
      type: "scatter", mode: "lines+markers", x: x, y: y, name: name, xaxis: "x" + suffix, yaxis: "y" + suffix, hoverinfo: "text", marker: { size: 5 },
    }, extra));
    const valueAxis = (signed, values, place) => axis(Object.assign({ type: signed ? "linear" : "log", exponentformat: "power" }, signed ? {} : decades(values), place));
    const below = whole === null ? 0 : 0.36;
    if (quantity !== null) {
      const said = data.layered[quantity], rows = run.layered[quantity].map((row) => row.map(positive(said.signed)));
      run.step.forEach((step, t) => line(run.layers.map((_, l) => l), rows.map((row) => row[t]), "", "step " + step, {
        line: { color: run.looks[t], width: 1.8 }, showlegend: false, text: rows.map((row, l) => run.layers[l] + "<br>step " + step + "<br>" + shown(row[t])),
      }));
      rows.forEach((row, l) => line(run.step, row, "2", run.layers[l], {
        line: { color: run.colors[l], width: 1.8, dash: run.dashes[l] }, text: row.map((v, t) => run.layers[l] + "<br>step " + run.step[t] + "<br>" + shown(v)),
      }));
      const place = { domain: [below ? below + 0.26 : 0, 1] };
      axes.xaxis = axis({ domain: [0, 0.44], anchor: "y", tickvals: run.layers.map((_, l) => l), ticktext: run.layers, tickangle: -50, showgrid: false });
      axes.yaxis = valueAxis(said.signed, rows, { ...place, anchor: "x" });
      axes.xaxis2 = axis({ domain: [0.56, 1], anchor: "y2", title: STEP, nticks: 6 });
      axes.yaxis2 = valueAxis(said.signed, rows, { ...place, anchor: "x2" });
      titles.push([said.title + " by layer", 0, 1], [said.title + " over training", 0.56, 1]);
    }
    if (whole !== null) {
      const said = data.whole[whole], values = run.whole[whole].map(positive(said.signed));
      line(run.step, values, "3", said.title, { line: { color: base.accent, width: 1.8 }, showlegend: false, text: values.map((v, t) => "step " + run.step[t] + "<br>" + shown(v)) });
      const top = quantity === null ? 1 : below - 0.06;
      axes.xaxis3 = axis({ domain: [0, 0.44], anchor: "y3", title: STEP, nticks: 6 });
      axes.yaxis3 = valueAxis(said.signed, [values], { domain: [0, top], anchor: "x3" });
      titles.push([said.title, 0, top]);
    }
    const annotations = titles.map(([title, x, y]) => ({ text: "<b>" + title + "</b>", x: x, y: y, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", yshift: 4, showarrow: false, font: { size: 13 } }));
    const height = quantity === null || whole === null ? 420 : 720;
    return { data: traces, layout: Object.assign({}, base.layout, axes, { height: height, legend: legendBeside, margin: { l: 56, r: 16, t: 34, b: quantity !== null && whole === null ? 110 : 56 }, annotations: annotations }) };
  }

  const looks = read("looks-data");
  if (looks) {
    const chosen = (id) => (document.getElementById(id) ? Number(select(id).value) : null);
    const redraw = () => draw(select("looks-plot"), looksFigure(looks, looks.runs[chosen("looks-run")], chosen("looks-quantity"), chosen("looks-whole")));
    document.querySelectorAll("#looks-controls select").forEach((element) => element.addEventListener("change", redraw));
    redraw();
  }

  // --- The table of contents follows the reader ----------------------------------------------------------------------
  const links = new Map(Array.from(document.querySelectorAll("nav a")).map((link) => [link.getAttribute("href").slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      links.forEach((link) => link.classList.remove("here"));
      links.get(entry.target.id).classList.add("here");
    });
  }, { rootMargin: "-10% 0px -80% 0px" });
  links.forEach((_, id) => watcher.observe(document.getElementById(id)));

  document.body.dataset.ready = "true";
})();
