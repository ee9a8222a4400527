import { ask, element, figures, table } from "./dom.js";
import { columns, plot } from "./plots.js";

const KINDS = [["image", /(image|video)_pad/], ["state", /state_pad/], ["action", /action_(pad|pass|code)/]];

export async function samplePage(source, number, epoch = 0) {
  const sample = await ask(`sources/${encodeURIComponent(source)}/samples/${number}?epoch=${epoch}`);
  return [
    element("h1", {}, sample.key),
    figures({ tokens: sample.num_tokens, "of them learnt": sample.num_supervised, pictures: sample.pictures, chunks: sample.chunks.length, robot: sample.robot || "none" }),
    steps(sample),
    element("h2", {}, "Tokens"),
    element("p", { class: "note" }, "Green tokens are learnt by cross entropy. Placeholders are blue for actions, orange for states, grey for pictures. Point at one for its id and positions (time, height, width)."),
    element("p", { class: "tokens" }, sample.runs.map(token)),
    element("h2", {}, "Pictures as the model gets them"),
    element("div", { class: "cameras" }, pictures(sample)),
    element("h2", {}, "Chunks"),
    sample.chunks.length ? sample.chunks.map((chunk, place) => chunkView(chunk, place, sample.action_names)) : element("p", { class: "note" }, "none"),
    element("h2", {}, "States, scaled"),
    sample.states.length ? table(sample.state_names, sample.states.map((row) => row.slice(0, sample.state_names.length))) : element("p", { class: "note" }, "none"),
    element("h2", {}, "As the shard has it"),
    table(["", "content"], sample.segments.map((segment) => [segment.kind, describe(segment)])),
  ];
}

function steps(sample) {
  const link = (number, epoch, text) => element("a", { href: `#/sample/${sample.source}/${number}/${epoch}` }, text);
  return element("p", { class: "figures" },
    sample.number > 0 ? link(sample.number - 1, sample.epoch, "previous") : null,
    link(sample.number + 1, sample.epoch, "next"),
    link(sample.number, sample.epoch + 1, `its next epoch (now ${sample.epoch})`));
}

function token(run) {
  const kind = KINDS.find(([, pattern]) => pattern.test(run.text))?.[0] ?? "";
  const where = run.positions.map((place) => `(${place.join(", ")})`);
  const title = `${run.count > 1 ? `${run.count} tokens ` : "token "}${run.start}, id ${run.id}, positions ${where[0]}${run.count > 1 ? ` to ${where[1]}` : ""}${run.learnt ? ", learnt" : ""}`;
  const classes = ["token", run.special ? "special" : "", run.learnt ? "learnt" : "", kind].filter(Boolean).join(" ");
  return [element("span", { class: classes, title }, run.text.replaceAll("\n", "⏎\n") + (run.count > 1 ? ` ×${run.count}` : "")), "\u200b"];
}

function pictures(sample) {
  return Array.from({ length: sample.pictures }, (_, place) =>
    element("figure", {}, element("img", { src: `api/sources/${encodeURIComponent(sample.source)}/samples/${sample.number}/seen/${place}?epoch=${sample.epoch}`, alt: `picture ${place}` })));
}

function chunkView(chunk, place, names) {
  const clean = columns(chunk.actions, names);
  const noised = columns(chunk.noised, names);
  const plots = clean.map(([name, values], dim) => plot(name, values, { others: chunk.trained ? [noised[dim][1]] : [] }).node);
  const steps = chunk.valid.filter((row) => row.some(Boolean)).length;
  const title = chunk.trained ? `chunk ${place}: flow time ${chunk.time.toFixed(3)}, learnt at ${steps} of ${chunk.valid.length} steps; noised in grey` : `chunk ${place}: clean context`;
  return element("section", {}, element("p", {}, title), element("div", { class: "plots" }, plots));
}

function describe(segment) {
  if (segment.text !== undefined) return segment.text;
  if (segment.kind === "action") return `${segment.values.length} steps of ${segment.values[0].length} dims, ${segment.valid.filter(Boolean).length} before the episode's end`;
  return segment.values ? segment.values.map((value) => value.toPrecision(4)).join(", ") : "";
}
