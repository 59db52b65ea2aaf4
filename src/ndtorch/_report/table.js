// What page.py puts together into one block: table, viewer, drawing, page.

const VIRIDIS = "44015444025645045745055946075a46085c460a5d460b5e470d60470e6147106347116447136548146748166848176948186a481a6c481b6d481c6e481d6f481f70482071482173482374482475482576482677482878482979472a7a472c7a472d7b472e7c472f7d46307e46327e46337f463480453581453781453882443983443a83443b84433d84433e85423f854240864241864142874144874045884046883f47883f48893e49893e4a893e4c8a3d4d8a3d4e8a3c4f8a3c508b3b518b3b528b3a538b3a548c39558c39568c38588c38598c375a8c375b8d365c8d365d8d355e8d355f8d34608d34618d33628d33638d32648e32658e31668e31678e31688e30698e306a8e2f6b8e2f6c8e2e6d8e2e6e8e2e6f8e2d708e2d718e2c718e2c728e2c738e2b748e2b758e2a768e2a778e2a788e29798e297a8e297b8e287c8e287d8e277e8e277f8e27808e26818e26828e26828e25838e25848e25858e24868e24878e23888e23898e238a8d228b8d228c8d228d8d218e8d218f8d21908d21918c20928c20928c20938c1f948c1f958b1f968b1f978b1f988b1f998a1f9a8a1e9b8a1e9c891e9d891f9e891f9f881fa0881fa1881fa1871fa28720a38620a48621a58521a68522a78522a88423a98324aa8325ab8225ac8226ad8127ad8128ae8029af7f2ab07f2cb17e2db27d2eb37c2fb47c31b57b32b67a34b67935b77937b87838b9773aba763bbb753dbc743fbc7340bd7242be7144bf7046c06f48c16e4ac16d4cc26c4ec36b50c46a52c56954c56856c66758c7655ac8645cc8635ec96260ca6063cb5f65cb5e67cc5c69cd5b6ccd5a6ece5870cf5773d05675d05477d1537ad1517cd2507fd34e81d34d84d44b86d54989d5488bd6468ed64590d74393d74195d84098d83e9bd93c9dd93ba0da39a2da37a5db36a8db34aadc32addc30b0dd2fb2dd2db5de2bb8de29bade28bddf26c0df25c2df23c5e021c8e020cae11fcde11dd0e11cd2e21bd5e21ad8e219dae319dde318dfe318e2e418e5e419e7e419eae51aece51befe51cf1e51df4e61ef6e620f8e621fbe723fde725";
const byId = (id) => document.getElementById(id);
const arrays = JSON.parse(byId("meta").textContent);
const drawings = JSON.parse(byId("drawings").textContent);
const canvas = byId("canvas"), context = canvas.getContext("2d");
const root = document.documentElement;
const WORDS = { picture: "Picture", map: "Heat map", line: "Line", values: "Values" };
const TYPES = {
  u1: Uint8Array, i1: Int8Array, u2: Uint16Array, i2: Int16Array, u4: Uint32Array, i4: Int32Array,
  u8: BigUint64Array, i8: BigInt64Array, f4: Float32Array, f8: Float64Array,
};
const ROWS = 24, COLUMNS = 12;
let chosen = -1, array = null, state = null, drawn = null;

// --- elements and words

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in node && key !== "list") node[key] = value; else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function draw(tag, attributes, parent, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

function short(value) {
  if (typeof value === "bigint") return value.toString();
  if (typeof value !== "number") return String(value);
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "−inf";
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return value.toLocaleString("en-US").replace("-", "−");
  const size = Math.abs(value);
  const text = size >= 1e6 || size < 1e-4 ? value.toExponential(4) : value.toPrecision(6);
  return text.replace(/\.?0+(?=e|$)/, "").replace("e+", "e").replace(/-/g, "−");
}

const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

// --- the table

const body = byId("table").tBodies[0];
const rows = [...body.rows];
const filter = byId("filter");

function showCount() {
  const visible = rows.filter((row) => !row.hidden).length;
  byId("count").textContent = visible === rows.length ? `${rows.length} arrays`.replace(/^1 arrays$/, "1 array")
    : `${visible} of ${rows.length} arrays`;
}

filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  showCount();
});

function keyOf(row, column) {
  const cell = row.cells[column];
  if (!cell) return null;
  const raw = cell.dataset.value ?? cell.textContent;
  if (raw === "") return null;
  const number = { inf: Infinity, "-inf": -Infinity, nan: NaN, True: 1, False: 0 }[raw] ?? Number(raw);
  return Number.isNaN(number) ? raw : number;
}

function compare(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), "en", { numeric: true });
}

const headings = [...byId("table").tHead.rows[0].cells];
headings.forEach((heading, column) => heading.firstElementChild.addEventListener("click", () => {
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const each of headings) each.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const keys = new Map(rows.map((row) => [row, keyOf(row, column)]));
  rows.sort((one, other) => {
    const [a, b] = [keys.get(one), keys.get(other)];
    if (a === null || b === null) return (a === null) - (b === null);  // what says nothing comes last
    return down ? compare(b, a) : compare(a, b);
  });
  body.append(...rows);
}));

body.addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (row) choose(Number(row.querySelector(".pick").dataset.array));
});

body.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !event.target.matches(".pick")) return;
  const visible = rows.filter((row) => !row.hidden);
  const next = visible[visible.indexOf(event.target.closest("tr")) + step];
  if (next) next.querySelector(".pick").focus();
  event.preventDefault();
});
