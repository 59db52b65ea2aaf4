// --- one array

function sampleOf(number, facts) {
  const node = byId(`sample-${number}`);
  if (!node) return [];
  if (facts.kind === "text") return JSON.parse(node.textContent);
  const raw = atob(node.textContent);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new TYPES[facts.kind](bytes.buffer);
}

function choose(number) {
  chosen = number;
  const facts = arrays[number];
  for (const row of rows) {
    const pick = row.querySelector(".pick"), is = Number(pick.dataset.array) === number;
    row.classList.toggle("chosen", is);
    if (is) pick.setAttribute("aria-current", "true"); else pick.removeAttribute("aria-current");
  }
  byId("detail").hidden = false;
  byId("name").textContent = facts.name;
  byId("announce").textContent = `Showing ${facts.name}, ${facts.dtype}, ${facts.shape.join(" by ") || "a scalar"}`;
  byId("error").hidden = !facts.error;
  byId("error").textContent = facts.error;
  byId("facts").replaceChildren(...facts.facts.flatMap(([word, fact]) => [
    make("dt", { textContent: word }), make("dd", { textContent: fact })]));
  byId("layout").hidden = facts.drawing === undefined;
  byId("drawing").innerHTML = facts.drawing === undefined ? "" : drawings[facts.drawing];
  byId("viewer").hidden = !facts.mode;
  showHistogram();
  if (!facts.mode) { array = null; return; }
  open(facts, sampleOf(number, facts));
}

function open(facts, data) {
  let { counts, steps, shape } = facts;
  let labels = counts.map((_, axis) => `axis ${axis}`);
  if (facts.isComplex) [counts, steps, shape, labels] = [[2, ...counts], [1, ...steps], [2, ...shape], ["part", ...labels]];
  const strides = counts.map((_, axis) => counts.slice(axis + 1).reduce((a, b) => a * b, 1));
  array = { ...facts, data, counts, steps, shape, labels, strides, size: counts.reduce((a, b) => a * b, 1) };
  const last = counts.length - 1, map = Math.max(counts.length - 2, 0);
  state = {
    mode: facts.mode, index: counts.map(() => 0), row: map, column: Math.max(last, 0), along: Math.max(last, 0),
    stretch: false, isWhole: true, from: [0, 0], cursor: [0, 0],
  };
  if (facts.mode === "picture") {
    const [, high] = extremes(data), full = array.kind === "u1" ? 255 : 65535;
    state.stretch = high < full / 3;
  }
  showModes();
  showControls();
}

function modesOf() {
  const found = [], axes = array.counts.length - (array.isComplex ? 1 : 0);
  if (array.kind !== "text" && array.size) {
    if (array.layout) found.push("picture");
    if (axes > 1) found.push("map");
    if (axes > 0) found.push("line");
  }
  return [...found, "values"];
}

function showModes() {
  byId("modes").replaceChildren(...modesOf().map((mode) => {
    const input = make("input", { type: "radio", name: "mode", value: mode, checked: mode === state.mode });
    input.addEventListener("change", () => { state.mode = mode; showControls(); });
    return make("label", {}, input, WORDS[mode]);
  }));
}

/** The axes that the mode shows; the others have a slider each. */
function shownAxes() {
  const n = array.counts.length;
  if (state.mode === "picture") return { HW: [n - 2, n - 1], HWC: [n - 3, n - 2, n - 1], CHW: [n - 2, n - 1, n - 3] }[array.layout];
  if (state.mode === "map") return [state.row, state.column];
  if (state.mode === "line") return [state.along];
  return n > (array.isComplex ? 2 : 1) ? [state.row, state.column] : n > (array.isComplex ? 1 : 0) ? [n - 1] : [];
}

function showControls() {
  const shown = shownAxes();
  const sliders = array.counts.map((_, axis) => axis).filter((axis) => !shown.includes(axis)).map(slider);
  byId("axes").replaceChildren(...sliders.filter(Boolean));
  byId("choices").replaceChildren(...choices());
  const isTable = state.mode === "values";
  canvas.hidden = byId("readout").hidden = isTable;
  byId("values").hidden = !isTable;
  byId("note").textContent = array.size ? array.note : "It has no elements.";
  state.cursor = [0, 0];
  render();
}

function slider(axis) {
  const count = array.counts[axis], step = array.steps[axis], label = array.labels[axis];
  if (label === "part") {
    return make("div", { className: "axis" }, make("span", { textContent: label }), select("part", ["real", "imaginary"],
      state.index[axis], (value) => { state.index[axis] = value; render(); }));
  }
  if (count < 2) return null;
  const range = make("input", { type: "range", min: 0, max: count - 1, value: state.index[axis], "aria-label": `index of ${label}` });
  const field = make("input", { type: "number", min: 0, max: (count - 1) * step, step, value: state.index[axis] * step,
    "aria-label": `${label}, number` });
  range.dataset.axis = field.dataset.axis = axis;
  const set = (value, isTyped) => {
    state.index[axis] = Math.min(Math.max(Math.round(value), 0), count - 1);
    range.value = state.index[axis];
    range.setAttribute("aria-valuetext", `${state.index[axis] * step} of ${array.shape[axis]}`);
    if (!isTyped) field.value = state.index[axis] * step;
    render();
  };
  range.addEventListener("input", () => set(Number(range.value)));
  field.addEventListener("input", () => { if (field.value !== "") set(Number(field.value) / step, true); });
  field.addEventListener("change", () => set(Number(field.value) / step));
  return make("div", { className: "axis" }, make("span", { textContent: label }), range, field,
    make("span", { className: "quiet", textContent: `of ${array.shape[axis].toLocaleString("en-US")}` }));
}

function select(label, words, value, change) {
  const node = make("select", { "aria-label": label }, ...words.map((word, i) => make("option", { value: i, textContent: word, selected: i === value })));
  node.addEventListener("change", () => change(Number(node.value)));
  return node;
}

function check(label, value, change) {
  const node = make("input", { type: "checkbox", checked: value });
  node.addEventListener("change", () => { change(node.checked); render(); });
  return make("label", {}, node, ` ${label}`);
}

function axisChoice(word, key, other) {
  const first = array.isComplex ? 1 : 0, words = array.labels.slice(first);
  return make("label", {}, `${word} `, select(word, words, state[key] - first, (value) => {
    if (other && state[other] === value + first) state[other] = state[key];
    state[key] = value + first;
    showControls();
    [...byId("choices").querySelectorAll("select")].find((each) => each.getAttribute("aria-label") === word)?.focus();
  }));
}

function choices() {
  const axes = array.counts.length - (array.isComplex ? 1 : 0);
  if (state.mode === "picture") return [check("stretch contrast", state.stretch, (value) => { state.stretch = value; })];
  if (state.mode === "line") return axes > 1 ? [axisChoice("along", "along")] : [];
  const found = axes > 2 || (axes === 2 && state.mode === "map") ? [axisChoice("rows", "row", "column"), axisChoice("columns", "column", "row")] : [];
  if (state.mode === "map") return axes < 3 ? found : [...found, check("colours over all slices", state.isWhole, (value) => { state.isWhole = value; })];
  return [...found, ...starts()];
}

function starts() {
  const shown = shownAxes(), sizes = [ROWS, COLUMNS];
  return shown.flatMap((axis, i) => {
    const last = array.counts[axis] - 1;
    if (array.counts[axis] <= sizes[i]) return [];
    const step = array.steps[axis], word = shown.length > 1 ? ["from row", "from column"][i] : "from index";
    const field = make("input", { type: "number", min: 0, max: last * step, step, value: state.from[i] * step });
    field.addEventListener("input", () => { state.from[i] = Math.min(Math.max(Math.round(Number(field.value) / step), 0), last); render(); });
    return [make("label", {}, `${word} `, field)];
  });
}

// --- values

function base() {
  return state.index.reduce((sum, at, axis) => sum + at * array.strides[axis], 0);
}

/** Where the slice begins and the steps of its axes, in the sample. */
function slice() {
  const axes = shownAxes();
  let start = base();
  for (const axis of axes) start -= state.index[axis] * array.strides[axis];
  return { start, axes, counts: axes.map((axis) => array.counts[axis]), strides: axes.map((axis) => array.strides[axis]) };
}

function extremes(data, places) {
  let low = Infinity, high = -Infinity;
  const see = (raw) => {
    const value = Number(raw);
    if (value < low && value > -Infinity) low = value;
    if (value > high && value < Infinity) high = value;
  };
  if (places) places((at) => see(data[at])); else for (const raw of data) see(raw);
  return low > high ? [NaN, NaN] : [low, high];
}

function eachOf({ start, counts, strides }) {
  return (visit) => {
    for (let row = 0; row < counts[0]; row++) {
      for (let column = 0; column < (counts[1] ?? 1); column++) visit(start + row * strides[0] + column * (strides[1] ?? 0));
    }
  };
}

// --- reading single values

function readAt(row, column) {
  const { place, axes, read } = drawn;
  const at = state.index.map((value, axis) => value * array.steps[axis]);
  if (axes[0] !== null) at[axes[0]] = row * array.steps[axes[0]];
  at[axes[1]] = column * array.steps[axes[1]];
  const shown = array.isComplex ? at.slice(1) : at;
  const kept = state.mode === "picture" && array.layout !== "HW" ? shown.filter((_, axis) => shownAxes()[2] !== axis) : shown;
  byId("readout").textContent = `[${kept.join(", ")}]  ${read(row, column)}`;
  state.cursor = [Math.min(row, place.rows - 1), column];
}

canvas.addEventListener("pointermove", (event) => {
  if (!drawn) return;
  const box = canvas.getBoundingClientRect(), { place } = drawn;
  const x = event.clientX - box.left - place.x, y = event.clientY - box.top - place.y;
  const column = drawn.isLine ? Math.round(x / place.w * (place.columns - 1)) : Math.floor(x / place.w * place.columns);
  const row = drawn.isLine ? 0 : Math.floor(y / place.h * place.rows);
  if (column >= 0 && column < place.columns && row >= 0 && row < place.rows) readAt(row, column);
});

canvas.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!step || !drawn) return;
  event.preventDefault();
  const by = event.shiftKey ? 10 : 1, { place } = drawn, isFirst = byId("readout").textContent === "";
  const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);
  const [row, column] = isFirst ? state.cursor : [clamp(state.cursor[0] + step[0] * by, place.rows), clamp(state.cursor[1] + step[1] * by, place.columns)];
  render();
  readAt(row, column);
  markCursor(row, column);
});

function markCursor(row, column) {
  const { place, isLine, px } = drawn;
  context.lineWidth = 2;
  context.strokeStyle = colour("--focus");
  if (isLine) { context.strokeRect(px(column) - 0.5, place.y, 1, place.h); return; }
  const [w, h] = [place.w / place.columns, place.h / place.rows], pad = Math.max(6 - Math.min(w, h), 0) / 2 + 1;
  const box = [place.x + column * w - pad, place.y + row * h - pad, w + 2 * pad, h + 2 * pad];
  context.strokeStyle = "#fff";
  context.lineWidth = 4;
  context.strokeRect(...box);
  context.strokeStyle = "#000";
  context.lineWidth = 2;
  context.strokeRect(...box);
}

function showValues() {
  const part = slice(), table = make("table"), text = array.kind === "text";
  const limits = [ROWS, COLUMNS].map((limit, i) => Math.min(state.from[i] + limit, part.counts[i] ?? 1));
  const cell = (at) => make("td", { className: text ? "text" : "number", textContent: valueText(array.data[at]) });
  if (part.axes.length > 1) {
    const head = make("tr", {}, make("th", { textContent: "" }));
    for (let c = state.from[1]; c < limits[1]; c++) head.append(make("th", { scope: "col", className: "number", textContent: c * array.steps[part.axes[1]] }));
    table.append(make("thead", {}, head));
  }
  const tbody = make("tbody");
  for (let r = state.from[0]; array.size && r < limits[0]; r++) {
    const row = make("tr", {}, make("th", { scope: "row", textContent: part.axes.length ? r * array.steps[part.axes[0]] : "value" }));
    for (let c = state.from[1]; c < (part.axes.length > 1 ? limits[1] : state.from[1] + 1); c++) {
      row.append(cell(part.start + r * (part.strides[0] ?? 0) + (part.axes.length > 1 ? c * part.strides[1] : 0)));
    }
    tbody.append(row);
  }
  table.append(tbody);
  byId("values").replaceChildren(table);
}

function valueText(value) {
  return array.isBool ? (value ? "True" : "False") : array.kind === "text" ? value : short(value);
}
