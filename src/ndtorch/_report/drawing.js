// --- drawing

function render() {
  if (!array) return;
  drawn = null;
  byId("readout").textContent = "";
  if (state.mode === "values") showValues(); else {
    ({ picture: drawPicture, map: drawMap, line: drawLine })[state.mode]();
    canvas.setAttribute("aria-label", `${WORDS[state.mode]} of ${array.name}${where()}. Arrow keys read values.`);
  }
}

function where() {
  const shown = shownAxes();
  const parts = state.index.flatMap((at, axis) => shown.includes(axis) || array.counts[axis] < 2 ? [] : [`${array.labels[axis]} at ${at * array.steps[axis]}`]);
  return parts.length ? `, ${parts.join(", ")}` : "";
}

/** Sizes the canvas and gives its width and height in CSS pixels. */
function prepare(height) {
  const width = Math.max(canvas.clientWidth, 200), scale = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = colour("--quiet");
  context.strokeStyle = colour("--line");
  context.lineWidth = 1;
  return [width, height];
}

/** The place of a grid of cells on the canvas: square cells unless that makes it a thread. */
function fit(rows, columns, left, right, bottom) {
  const width = Math.max(canvas.clientWidth, 200), free = width - left - right, tall = 460;
  const cell = Math.min(free / columns, tall / rows);
  let [w, h] = [columns * cell, rows * cell];
  if (w < 90) w = Math.min(free, 90, Math.max(w * 8, 24));
  if (h < 60) h = Math.min(tall, 60, Math.max(h * 8, 24));
  prepare(Math.ceil(h + bottom + 8));
  return { x: left, y: 6, w: Math.round(w), h: Math.round(h), rows, columns };
}

function paint(pixels, place) {
  const source = new OffscreenCanvas(place.columns, place.rows);
  source.getContext("2d").putImageData(new ImageData(pixels, place.columns, place.rows), 0, 0);
  const shrinks = place.columns > place.w * 1.5 || place.rows > place.h * 1.5;
  context.imageSmoothingEnabled = shrinks;
  context.imageSmoothingQuality = "high";
  context.drawImage(source, place.x, place.y, place.w, place.h);
  context.strokeRect(place.x - 0.5, place.y - 0.5, place.w + 1, place.h + 1);
}

function drawPicture() {
  const [rows, columns, channels] = shownAxes(), { data, strides, counts } = array;
  const start = slice().start, n = channels === undefined ? 1 : counts[channels], by = channels === undefined ? 0 : strides[channels];
  const [height, width] = [counts[rows], counts[columns]], full = array.kind === "u1" ? 255 : 65535;
  let [low, high] = [0, full];
  if (state.stretch) [low, high] = pictureRange(data, n, by);
  const scale = 255 / (high - low || 1), pixels = new Uint8ClampedArray(height * width * 4);
  for (let row = 0, to = 0; row < height; row++) {
    for (let column = 0; column < width; column++, to += 4) {
      const at = start + row * strides[rows] + column * strides[columns];
      for (let c = 0; c < 3; c++) pixels[to + c] = (data[at + (n < 3 ? 0 : c * by)] - low) * scale;
      pixels[to + 3] = n === 4 ? data[at + 3 * by] * 255 / full : 255;
    }
  }
  const place = fit(height, width, 44, 8, 22);
  paint(pixels, place);
  axisTicks(place, rows, columns);
  drawn = { place, axes: [rows, columns], read: (row, column) => {
    const at = start + row * strides[rows] + column * strides[columns];
    return Array.from({ length: n }, (_, c) => short(data[at + c * by])).join(", ");
  } };
}

function pictureRange(data, n, by) {
  if (n < 4) return extremes(data);
  return extremes(data, (visit) => { for (let i = 0; i < data.length; i++) if (Math.floor(i / by) % 4 < 3) visit(i); });
}

function channel(level, c) {
  return parseInt(VIRIDIS.substr(6 * level + 2 * c, 2), 16);
}

const TABLE = Array.from({ length: 256 }, (_, level) => [0, 1, 2].map((c) => channel(level, c)));
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

function drawMap() {
  const part = slice(), [height, width] = part.counts, { data } = array;
  const [low, high] = state.isWhole ? extremes(data) : extremes(data, eachOf(part));
  const marks = { NaN: rgb(colour("--nan")), inf: rgb(colour("--up")), "−inf": rgb(colour("--down")) };
  const pixels = new Uint8ClampedArray(height * width * 4), seen = new Set(), scale = high > low ? 255 / (high - low) : 0;
  for (let row = 0, to = 0; row < height; row++) {
    for (let column = 0; column < width; column++, to += 4) {
      const value = Number(data[part.start + row * part.strides[0] + column * part.strides[1]]);
      let shade;
      if (Number.isFinite(value)) shade = TABLE[Math.min(255, Math.max(0, Math.round((value - low) * scale)))];
      else { const word = short(value); seen.add(word); shade = marks[word]; }
      pixels.set(shade, to);
      pixels[to + 3] = 255;
    }
  }
  const place = fit(height, width, 44, 92, 22 + (seen.size ? 22 : 0));
  paint(pixels, place);
  axisTicks(place, ...part.axes);
  colourBar(place, low, high);
  legend(place, [...seen], marks);
  drawn = { place, axes: part.axes, read: (row, column) => short(data[part.start + row * part.strides[0] + column * part.strides[1]]) };
}

function axisTicks(place, rowAxis, columnAxis) {
  context.fillStyle = colour("--quiet");
  context.textAlign = "center";
  context.textBaseline = "top";
  for (const at of spread(place.columns, place.w, 56)) {
    context.fillText(String(at * array.steps[columnAxis]), place.x + (at + 0.5) * place.w / place.columns, place.y + place.h + 6);
  }
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const at of spread(place.rows, place.h, 40)) {
    context.fillText(String(at * array.steps[rowAxis]), place.x - 6, place.y + (at + 0.5) * place.h / place.rows);
  }
}

/** A few round positions of an axis. */
function spread(count, pixels, apart) {
  const step = niceStep(Math.max(count * apart / pixels, 1), true), found = [];
  for (let at = 0; at < count; at += step) found.push(at);
  return found;
}

function niceStep(least, isWhole) {
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= least * 0.999999) ?? 10 * power;
  return isWhole ? Math.max(1, Math.round(step)) : step;
}

function colourBar(place, low, high) {
  if (Number.isNaN(low)) return;
  const x = place.x + place.w + 14, h = Math.max(place.h, 60);
  for (let y = 0; y < h; y++) {
    const [r, g, b] = TABLE[Math.round(255 * (1 - y / Math.max(h - 1, 1)))];
    context.fillStyle = `rgb(${r},${g},${b})`;
    context.fillRect(x, place.y + y, 12, 1);
  }
  context.fillStyle = colour("--quiet");
  context.textAlign = "left";
  const stops = low < high ? h > 120 ? [0, 0.25, 0.5, 0.75, 1] : [0, 1] : [0];
  for (const at of stops) {
    context.textBaseline = at === 1 ? "top" : at === 0 ? "bottom" : "middle";
    context.fillText(tickText(low + (high - low) * at, (high - low) / 4 || 1), x + 18, place.y + h * (1 - at));
  }
}

function tickText(value, step) {
  if (Number.isInteger(value)) return short(value);
  const size = Math.abs(value);
  if (size >= 1e5 || (size < 1e-3 && step < 1e-3)) return value.toExponential(2).replace("e+", "e").replace(/-/g, "−");
  const digits = Math.min(Math.max(1 - Math.floor(Math.log10(step)), 0), 6);
  return value.toFixed(digits).replace("-", "−");
}

function legend(place, words, marks) {
  let x = place.x;
  const y = place.y + place.h + 26;
  for (const word of words) {
    context.fillStyle = `rgb(${marks[word].join()})`;
    context.fillRect(x, y, 12, 12);
    context.fillStyle = colour("--quiet");
    context.textAlign = "left";
    context.textBaseline = "middle";
    context.fillText(word, x + 17, y + 7);
    x += 62;
  }
}

function drawLine() {
  const part = slice(), count = part.counts[0], { data } = array;
  const value = (i) => Number(data[part.start + i * part.strides[0]]);
  let [low, high] = extremes(data, eachOf(part));
  if (Number.isNaN(low)) [low, high] = [0, 1];
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const [width, height] = prepare(300);
  const place = { x: 64, y: 10, w: width - 76, h: height - 44, rows: 1, columns: count };
  const margin = (high - low) * 0.04, [bottom, top] = [low - margin, high + margin];
  const px = (i) => place.x + (count > 1 ? i * place.w / (count - 1) : place.w / 2);
  const py = (v) => place.y + place.h * (1 - (v - bottom) / (top - bottom));
  grid(place, bottom, top, py, px, count, part.axes[0]);
  context.strokeStyle = colour("--accent");
  context.lineWidth = 1.5;
  context.lineJoin = "round";
  strokeLine(count, value, px, py, place.w);
  marksOnLine(count, value, px, place);
  if (count <= 60) {
    context.fillStyle = colour("--accent");
    for (let i = 0; i < count; i++) if (Number.isFinite(value(i))) dot(px(i), py(value(i)), 2.5);
  }
  drawn = { place, axes: [null, part.axes[0]], isLine: true, px, read: (_, i) => short(data[part.start + i * part.strides[0]]) };
}

function dot(x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  context.fill();
}

/** With more values than pixels, the least and the greatest of each column of pixels. */
function strokeLine(count, value, px, py, pixels) {
  const bucket = Math.max(Math.floor(count / (2 * pixels)), 1);
  let isOpen = false;
  context.beginPath();
  for (let begin = 0; begin < count; begin += bucket) {
    let [low, high] = [Infinity, -Infinity];
    for (let i = begin; i < Math.min(begin + bucket, count); i++) {
      const v = value(i);
      if (Number.isFinite(v)) { low = Math.min(low, v); high = Math.max(high, v); }
    }
    if (low > high) { isOpen = false; continue; }
    const x = px(begin);
    if (isOpen) context.lineTo(x, py(low)); else context.moveTo(x, py(low));
    if (high > low) context.lineTo(x, py(high));
    isOpen = true;
  }
  context.stroke();
}

function marksOnLine(count, value, px, place) {
  for (let i = 0; i < count; i++) {
    const v = value(i);
    if (Number.isFinite(v)) continue;
    context.fillStyle = colour(Number.isNaN(v) ? "--nan" : v > 0 ? "--up" : "--down");
    context.fillRect(px(i) - 1, v === Infinity ? place.y : place.y + place.h - 6, 2, 6);
  }
}

function grid(place, bottom, top, py, px, count, axis) {
  const step = niceStep((top - bottom) / 5, false);
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (let i = Math.ceil(bottom / step); i * step <= top; i++) {
    const y = Math.round(py(i * step)) + 0.5;
    context.beginPath();
    context.moveTo(place.x, y);
    context.lineTo(place.x + place.w, y);
    context.stroke();
    context.fillText(tickText(Number((i * step).toPrecision(12)), step), place.x - 8, y);
  }
  context.textAlign = "center";
  context.textBaseline = "top";
  for (const at of spread(count, place.w, 80)) context.fillText(String(at * array.steps[axis]), px(at), place.y + place.h + 10);
}
