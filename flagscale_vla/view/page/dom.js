// Building blocks of the page. Text goes in as text, never as markup: shards are not trusted.

export function element(tag, attributes = {}, ...children) {
  const node = tag === "svg" || SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    // A `style` attribute would be refused: the page allows no styles but its own file's.
    if (name === "share") node.style.width = `${100 * value}%`;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["polyline", "line", "rect"]);

export function table(heads, rows) {
  const cell = (tag, value) => element(tag, { class: typeof value === "number" ? null : "word" }, show(value));
  const head = element("tr", {}, heads.map((name) => element("th", { class: "word" }, name)));
  const body = rows.map((row) => element("tr", {}, row.map((value) => cell("td", value))));
  return element("div", { class: "scroll" }, element("table", {}, element("thead", {}, head), element("tbody", {}, body)));
}

export function show(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return value;
  return Number.isInteger(value) ? value.toLocaleString("en") : value.toPrecision(4);
}

export function figures(entries) {
  const pairs = Object.entries(entries).map(([name, value]) => element("span", {}, element("b", {}, show(value)), ` ${name}`));
  return element("p", { class: "figures" }, pairs);
}

export async function ask(address) {
  const answer = await fetch(`api/${address}`);
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error ?? `HTTP ${answer.status}`);
  return content;
}
