// --- histogram

function showHistogram() {
  const found = arrays[chosen].histogram, W = 330, H = 132;
  byId("histogram").hidden = !found;
  byId("bar").textContent = "";
  if (!found) return;
  const isLog = byId("log").checked, { counts, low, high } = found, most = Math.max(...counts);
  const size = (count) => count === 0 ? 0 : isLog ? Math.log1p(count) / Math.log1p(most) : count / most;
  const total = counts.reduce((a, b) => a + b, 0);
  const svg = draw("svg", { viewBox: `0 0 ${W} ${H + 20}`, role: "img",
    "aria-label": `Histogram of ${total.toLocaleString("en-US")} values from ${found.first} to ${found.last}` }, make("div"));
  const step = W / counts.length, gap = counts.length > 40 ? 0.6 : 1.5;
  counts.forEach((count, i) => {
    const h = count ? Math.max(size(count) * (H - 6), 1) : 0;
    draw("rect", { class: "bar", x: i * step + gap / 2, y: H - h, width: Math.max(step - gap, 0.5), height: h }, svg);
    const hit = draw("rect", { class: "hit", x: i * step, y: 0, width: step, height: H }, svg);
    hit.addEventListener("pointerenter", () => { byId("bar").textContent = `${binText(found, i)}: ${count.toLocaleString("en-US")}`; });
  });
  draw("path", { d: `M0 ${H + 0.5}H${W}` }, svg);
  draw("text", { x: 0, y: H + 15 }, svg, found.first);
  draw("text", { x: W, y: H + 15, "text-anchor": "end" }, svg, found.last);
  if (low < 0 && high > 0 && !found.isWhole) {
    const x = W * -low / (high - low);
    if (x > 60 && x < W - 60) { draw("path", { d: `M${x} ${H}v4` }, svg); draw("text", { x, y: H + 15, "text-anchor": "middle" }, svg, "0"); }
  }
  byId("bars").replaceChildren(svg);
}

function binText({ low, high, counts, isWhole }, i) {
  const width = (isWhole ? high - low + 1 : high - low) / counts.length;
  const [from, to] = [low + i * width, low + (i + 1) * width];
  if (isWhole) return width === 1 ? short(from) : `${short(from)} to ${short(to - 1)}`;
  return `${short(Number(from.toPrecision(5)))} to ${short(Number(to.toPrecision(5)))}`;
}

byId("log").addEventListener("change", showHistogram);

// --- light and dark

const system = window.matchMedia("(prefers-color-scheme: dark)");
const theme = byId("theme");
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;

function showTheme() {
  theme.setAttribute("aria-pressed", String(isDark()));
  render();
}

theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("ndtorch-report-theme", root.dataset.theme); } catch { /* a file may have no storage */ }
  showTheme();
});
system.addEventListener("change", showTheme);
try { root.dataset.theme = localStorage.getItem("ndtorch-report-theme") ?? ""; } catch { /* likewise */ }
if (!root.dataset.theme) delete root.dataset.theme;

let before;
window.addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; render(); });
window.addEventListener("afterprint", () => {
  if (before) root.dataset.theme = before; else delete root.dataset.theme;
  render();
});

let width = 0;
new ResizeObserver(() => {
  if (canvas.clientWidth && canvas.clientWidth !== width) { width = canvas.clientWidth; render(); }
}).observe(byId("viewer"));

theme.hidden = false;
document.querySelector(".filter").hidden = false;
showCount();
showTheme();
if (arrays.length) choose(0);
