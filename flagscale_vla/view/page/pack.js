import { ask, element, figures, show, table } from "./dom.js";

const SIDE = 320;

export async function packPage(number) {
  const pack = await ask(`packs/${number}`);
  return [
    element("h1", {}, `Pack ${number}`),
    figures({ tokens: pack.num_tokens, "of a row of": pack.length, samples: pack.samples.length, "padding %": (100 * (pack.length - pack.num_tokens)) / pack.length }),
    element("p", { class: "figures" }, number > 0 ? element("a", { href: `#/pack/${number - 1}` }, "previous") : null, element("a", { href: `#/pack/${number + 1}` }, "next")),
    element("div", { class: "bar" }, pack.samples.map((sample) =>
      element("a", { href: `#/sample/${sample.source}/${sample.number}/${sample.epoch}`, share: sample.tokens / pack.length, title: `${sample.key}: ${show(sample.tokens)} tokens` }))),
    element("h2", {}, "Who attends to whom"),
    element("p", { class: "note" }, "A token sees those before it in its own sample, and nothing of its neighbours."),
    mask(pack),
    element("h2", {}, "Samples"),
    table(["sample", "pass", "tokens", "learnt", "first token at"], pack.samples.map((sample) =>
      [element("a", { href: `#/sample/${sample.source}/${sample.number}/${sample.epoch}` }, sample.key), sample.epoch, sample.tokens, sample.learnt, sample.start])),
  ];
}

function mask(pack) {
  const canvas = element("canvas", { class: "mask", width: SIDE, height: SIDE, role: "img", "aria-label": "attention mask" });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#2563b0";
  for (const { start, tokens } of pack.samples) {
    const [from, to] = [start, start + tokens].map((place) => (SIDE * place) / pack.length);
    pen.beginPath();
    pen.moveTo(from, from);
    pen.lineTo(from, to);
    pen.lineTo(to, to);
    pen.fill();
  }
  return canvas;
}
