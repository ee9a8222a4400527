import { ask, element, figures, table } from "./dom.js";
import { episodePage } from "./episode.js";
import { packPage } from "./pack.js";
import { samplePage } from "./sample.js";

const view = document.getElementById("view");
const error = document.getElementById("error");

async function overviewPage() {
  const overview = await ask("overview");
  return [
    element("h1", {}, overview.folder),
    figures({ samples: overview.samples, tokens: overview.tokens, "in the longest": overview.longest, faults: overview.num_faults }),
    element("p", {}, element("a", { href: "#/pack/0" }, "The first pack of training")),
    element("h2", {}, "Robots"), overview.robots.map(robot),
    element("h2", {}, "Shards"),
    table(["shard", "samples", "tokens"], overview.shards.map((shard) => [element("a", { href: `#/shard/${shard.name}` }, shard.name), shard.samples, shard.tokens])),
    element("h2", {}, "Unusable"),
    overview.num_faults ? table(["where and why"], overview.faults.map((fault) => [fault])) : element("p", { class: "note" }, "nothing"),
  ];
}

function robot(entry) {
  const dims = [["state", entry.state], ["action", entry.action]].flatMap(([kind, rows]) => rows.map((dim) => [kind, dim.name, dim.min, dim.q01, dim.mean, dim.q99, dim.max]));
  return element("details", {},
    element("summary", {}, `${entry.name}: ${entry.samples.toLocaleString("en")} samples${entry.fps ? `, ${entry.fps} frames/s, cameras ${entry.cameras.join(", ") || "none"}` : ""}`),
    dims.length ? table(["", "dim", "least", "1 %", "mean", "99 %", "most"], dims) : element("p", { class: "note" }, "no numbers"));
}

async function shardPage(shard) {
  const episodes = await ask(`shards/${encodeURIComponent(shard)}`);
  const rows = episodes.map((episode) => [
    element("a", { href: `#/episode/${shard}/${encodeURIComponent(episode.name)}` }, episode.name),
    episode.frames, episode.instruction, episode.robot,
    element("a", { href: `#/sample/${episode.first}` }, `sample ${episode.first}`),
  ]);
  return [element("h1", {}, shard), table(["episode", "frames", "instruction", "robot", "first"], rows)];
}

const PAGES = [
  [/^$/, () => overviewPage()],
  [/^shard\/([^/]+)$/, (shard) => shardPage(shard)],
  [/^episode\/([^/]+)\/(.+)$/, (shard, name) => episodePage(shard, name)],
  [/^sample\/(\d+)(?:\/(\d+))?$/, (number, epoch) => samplePage(Number(number), Number(epoch ?? 0))],
  [/^pack\/(\d+)$/, (number) => packPage(Number(number))],
];

async function go() {
  const path = location.hash.replace(/^#\//, "");
  const [pattern, page] = PAGES.find(([candidate]) => candidate.test(path)) ?? PAGES[0];
  const parts = (path.match(pattern) ?? []).slice(1).map((part) => part && decodeURIComponent(part));
  document.getElementById("path").textContent = parts.filter(Boolean).join(" / ");
  error.hidden = true;
  try {
    const content = (await page(...parts)).flat();
    // A slow answer must not replace a page that was opened meanwhile.
    if (path === location.hash.replace(/^#\//, "")) view.replaceChildren(...content);
  } catch (problem) {
    error.textContent = problem.message;
    error.hidden = false;
    view.replaceChildren();
  }
}

document.getElementById("jump").addEventListener("submit", (event) => {
  event.preventDefault();
  location.hash = `#/sample/${Number(event.target.number.value)}`;
});
addEventListener("hashchange", go);
go();
