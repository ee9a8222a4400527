import { element, show } from "./dom.js";

const WIDTH = 260;
const HEIGHT = 90;
const PAD = 6;

// One dim over the steps. `others` are further curves on the same scale, drawn thinner.
export function plot(name, values, { cursor = null, others = [], onpick = null } = {}) {
  const all = [values, ...others].flat().filter(Number.isFinite);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const span = high - low || 1;
  const x = (step) => PAD + ((WIDTH - 2 * PAD) * step) / Math.max(values.length - 1, 1);
  const y = (value) => HEIGHT - PAD - ((HEIGHT - 2 * PAD) * (value - low)) / span;
  const curve = (row, width) =>
    element("polyline", {
      points: row.map((value, step) => `${x(step)},${y(value)}`).join(" "),
      fill: "none", stroke: width > 1 ? "var(--action)" : "gray", "stroke-width": width,
    });
  const mark = element("line", { x1: x(cursor ?? 0), x2: x(cursor ?? 0), y1: 0, y2: HEIGHT, stroke: "crimson", visibility: cursor === null ? "hidden" : "visible" });
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": name },
    others.map((row) => curve(row, 1)), curve(values, 1.6), mark);
  if (onpick) {
    svg.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect();
      const share = ((event.clientX - box.left) / box.width * WIDTH - PAD) / (WIDTH - 2 * PAD);
      onpick(Math.round(Math.min(Math.max(share, 0), 1) * (values.length - 1)));
    });
  }
  const caption = element("figcaption");
  const move = (step) => {
    mark.setAttribute("x1", x(step));
    mark.setAttribute("x2", x(step));
    mark.setAttribute("visibility", "visible");
    caption.textContent = `${name} = ${show(values[step])}`;
  };
  caption.textContent = `${name}: ${show(low)} to ${show(high)}`;
  return { node: element("figure", {}, svg, caption), move };
}

// A column of each dim of rows [steps][dims].
export function columns(rows, names) {
  return names.map((name, dim) => [name, rows.map((row) => row[dim])]);
}
