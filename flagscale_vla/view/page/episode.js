import { ask, element, figures } from "./dom.js";
import { columns, plot } from "./plots.js";

export async function episodePage(source, shard, name) {
  const episode = await ask(`sources/${encodeURIComponent(source)}/shards/${encodeURIComponent(shard)}/episode?name=${encodeURIComponent(name)}`);
  const player = new Player(source, episode);
  return [
    element("h1", {}, episode.name),
    element("p", {}, `“${episode.instruction}”`),
    figures({ robot: episode.robot, frames: episode.frames.length, "frames/s": episode.fps }),
    player.cameras, player.controls, player.caption,
    element("h2", {}, "State"), player.plots("state", episode.state_names),
    element("h2", {}, "Action of each frame"), player.plots("action", episode.action_names),
  ];
}

class Player {
  constructor(source, episode) {
    this.source = source;
    this.episode = episode;
    this.step = 0;
    this.timer = null;
    this.marks = [];
    this.pictures = episode.frames[0].cameras.map((camera) => element("img", { alt: camera, width: 280 }));
    this.cameras = element("div", { class: "cameras" }, this.pictures.map((picture) => element("figure", {}, picture, element("figcaption", {}, picture.alt))));
    this.button = element("button", { type: "button", onclick: () => this.toggle() }, "Play");
    this.slider = element("input", { type: "range", min: 0, max: episode.frames.length - 1, value: 0, "aria-label": "frame", oninput: () => this.show(Number(this.slider.value)) });
    this.controls = element("div", { class: "controls" }, this.button, this.slider);
    this.caption = element("p", { id: "frame" });
    this.show(0);
  }

  plots(kind, names) {
    const rows = this.episode.frames.map((frame) => frame[kind]);
    if (rows.some((row) => row.length !== names.length)) return element("p", { class: "note" }, `not every frame has one`);
    const plots = columns(rows, names).map(([name, values]) => plot(name, values, { cursor: 0, onpick: (step) => this.show(step) }));
    this.marks.push(...plots);
    return element("div", { class: "plots" }, plots.map((entry) => entry.node));
  }

  show(step) {
    this.step = step;
    const frame = this.episode.frames[step];
    this.pictures.forEach((picture, place) => { picture.src = `api/sources/${encodeURIComponent(this.source)}/samples/${frame.sample}/stored/${place}`; });
    this.slider.value = step;
    this.marks.forEach((mark) => mark.move(step));
    this.caption.replaceChildren(`frame ${frame.frame}${frame.phase ? `, ${frame.phase}` : ""}, `, element("a", { href: `#/sample/${this.source}/${frame.sample}` }, `sample ${frame.sample}`));
  }

  toggle() {
    if (this.timer) return this.stop();
    if (this.step === this.episode.frames.length - 1) this.show(0);
    this.button.textContent = "Pause";
    this.timer = setInterval(() => this.advance(), 1000 / this.episode.fps);
  }

  advance() {
    // The page may have been left while it played.
    if (!this.button.isConnected || this.step === this.episode.frames.length - 1) return this.stop();
    this.show(this.step + 1);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.button.textContent = "Play";
  }
}
