import { ask, element, figures, table } from "./dom.js";
import { episodePage } from "./episode.js";
import { packPage } from "./pack.js";
import { samplePage } from "./sample.js";

const view = document.getElementById("view");
const error = document.getElementById("error");

const FIRST_PACKS = 100;

async function overviewPage() {
  const sources = await ask("overview");
  return [
    element("h1", {}, "What training reads"),
    element("p", {}, element("a", { href: "#/pack/0" }, "The first pack")),
    element("h2", {}, "Mixture"), await mixture(),
    sources.map(sourceView),
  ];
}

async function mixture() {
  const input = element("input", { name: "packs", inputmode: "numeric", size: 7, value: FIRST_PACKS });
  const counts = element("div", {}, await mixtureTable(FIRST_PACKS));
  const recount = async (event) => {
    event.preventDefault();
    counts.replaceChildren(await mixtureTable(Number(input.value)));
  };
  return element("form", { id: "mixture", onsubmit: recount }, element("label", {}, "In the first ", input, " packs:"), counts);
}

async function mixtureTable(packs) {
  try {
    const rows = await ask(`mixture?packs=${packs}`);
    return table(Object.keys(rows[0]), rows.map((row) => Object.values(row)));
  } catch (problem) {
    return element("p", { class: "note" }, problem.message);
  }
}

function sourceView(source) {
  return element("section", {},
    element("h2", {}, `Source ${source.name}`),
    element("p", { class: "note" }, source.folder),
    figures({ samples: source.samples, tokens: source.tokens, "in the longest": source.longest, faults: source.num_faults }),
    source.robots.map(robot),
    table(["shard", "samples", "tokens"], source.shards.map((shard) => [element("a", { href: `#/shard/${source.name}/${shard.name}` }, shard.name), shard.samples, shard.tokens])),
    source.num_faults ? table(["unusable: where and why"], source.faults.map((fault) => [fault])) : null);
}

function robot(entry) {
  const dims = [["state", entry.state], ["action", entry.action]].flatMap(([kind, rows]) => rows.map((dim) => [kind, dim.name, dim.min, dim.q01, dim.mean, dim.q99, dim.max]));
  return element("details", {},
    element("summary", {}, `${entry.name}: ${entry.samples.toLocaleString("en")} samples${entry.fps ? `, ${entry.fps} frames/s, cameras ${entry.cameras.join(", ") || "none"}` : ""}`),
    dims.length ? table(["", "dim", "least", "1 %", "mean", "99 %", "most"], dims) : element("p", { class: "note" }, "no numbers"));
}

async function shardPage(source, shard) {
  const episodes = await ask(`sources/${encodeURIComponent(source)}/shards/${encodeURIComponent(shard)}`);
  const rows = episodes.map((episode) => [
    element("a", { href: `#/episode/${source}/${shard}/${encodeURIComponent(episode.name)}` }, episode.name),
    episode.frames, episode.instruction, episode.robot,
    element("a", { href: `#/sample/${source}/${episode.first}` }, `sample ${episode.first}`),
  ]);
  return [element("h1", {}, shard), table(["episode", "frames", "instruction", "robot", "first"], rows)];
}

const PAGES = [
  [/^$/, () => overviewPage()],
  [/^shard\/([^/]+)\/([^/]+)$/, (source, shard) => shardPage(source, shard)],
  [/^episode\/([^/]+)\/([^/]+)\/(.+)$/, (source, shard, name) => episodePage(source, shard, name)],
  [/^sample\/([^/]+)\/(\d+)(?:\/(\d+))?$/, (source, number, epoch) => samplePage(source, Number(number), Number(epoch ?? 0))],
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

addEventListener("hashchange", go);
go();
