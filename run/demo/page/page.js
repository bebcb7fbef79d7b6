// The page of --mode demo. It talks to its own server only: see run/demo/app.py for the requests.
"use strict";

const byId = (id) => document.getElementById(id);
const page = Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("");
let choices = [], maxBytes = 0, current = null; // current: the image that is filled in and scored

const tabs = ["draw", "fill", "score"];
const run = () => choices[byId("run").selectedIndex];
const runIndex = () => byId("run").selectedIndex;

// ---- Messages of the server ----

function complain(sentence) {
  byId("error").textContent = sentence;
  byId("error").hidden = !sentence;
  if (sentence) byId("error").scrollIntoView({ block: "nearest" });
}

async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error("The server does not answer: is it still running in its terminal?");
  }
  if (!response.ok) throw new Error((await response.json()).sentence);
  return response;
}

const post = (address, value) =>
  ask(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });

/** Calls handle for each message of a stream, which has one JSON object a line. */
async function stream(address, value, handle) {
  const response = await post(address, { page, run: runIndex(), ...value });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value: text, done } = await reader.read();
    if (done) return;
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) await handle(JSON.parse(line));
  }
}

// ---- Pictures ----

function loaded(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("A picture of the server cannot be shown."));
    image.src = url;
  });
}

/** One sample of a sheet on a canvas, pixel by pixel. */
function cut(canvas, image, sheet, k) {
  canvas.width = sheet.width;
  canvas.height = sheet.height;
  const [x, y] = [(k % sheet.columns) * sheet.width, Math.floor(k / sheet.columns) * sheet.height];
  canvas.getContext("2d").drawImage(image, x, y, sheet.width, sheet.height, 0, 0, sheet.width, sheet.height);
}

/** Samples as tiles, which can be chosen if choose is given. */
class Tiles {
  constructor(root, choose) {
    this.root = root;
    this.choose = choose;
  }

  async show(sheet, names) {
    const image = await loaded(sheet.png);
    if (names && names.length !== sheet.count) names = null; // of points in one picture
    if (this.root.childElementCount !== sheet.count) this.make(sheet);
    [...this.root.children].forEach((tile, k) => {
      cut(tile.firstChild, image, sheet, k);
      tile.lastChild.textContent = names ? names[k] : "";
      tile.setAttribute("aria-label", `sample ${k + 1}${names ? `, ${names[k]}` : ""}`);
    });
  }

  make(sheet) {
    const widest = sheet.width > 200 ? 34 : sheet.count === 1 ? 12 : 7; // of a tile, rem
    this.root.style.gridTemplateColumns = `repeat(${sheet.columns}, minmax(0, ${widest}rem))`;
    this.root.replaceChildren(...Array.from({ length: sheet.count }, () => {
      const tile = document.createElement(this.choose ? "button" : "div");
      tile.className = sheet.width > 200 ? "tile whole" : "tile";
      tile.append(document.createElement("canvas"), document.createElement("span"));
      if (this.choose) {
        tile.type = "button";
        tile.disabled = true;
        tile.onclick = () => this.pick(tile);
      }
      return tile;
    }));
  }

  allowChoice() {
    if (this.choose) for (const tile of this.root.children) tile.disabled = false;
  }

  pick(tile) {
    for (const other of this.root.children) other.setAttribute("aria-pressed", other === tile);
    this.choose(tile.firstChild, tile.getAttribute("aria-label"));
  }
}

/** The path from noise: frames that come one by one, and can be gone through afterwards. */
class PathView {
  constructor(section, choose) {
    const find = (selector) => section.querySelector(selector);
    find(".path-here").replaceWith(byId("path").content.cloneNode(true));
    this.tiles = new Tiles(find(".tiles"), choose);
    [this.view, this.scrub, this.slider, this.time, this.player] =
      [".view", ".scrub", ".frames", ".time", ".play"].map(find);
    this.radios = section.querySelectorAll(".switch input");
    this.frames = [];
    this.slider.oninput = () => { this.pause(); this.show(Number(this.slider.value)); };
    for (const radio of this.radios) {
      radio.name = `${section.id}-view`;
      radio.onchange = () => this.show(Number(this.slider.value));
    }
    this.player.onclick = () => (this.timer ? this.pause() : this.play());
  }

  clear() {
    this.pause();
    this.frames = [];
    this.tiles.root.replaceChildren();
    this.view.hidden = this.scrub.hidden = true;
    this.time.textContent = "";
  }

  add(frame) {
    this.frames.push(frame);
    this.slider.max = this.frames.length - 1;
    this.slider.value = this.frames.length - 1;
    this.view.hidden = false;
    return this.show(this.frames.length - 1);
  }

  finish(names) {
    for (const frame of this.frames) frame.names = names;
    this.scrub.hidden = this.frames.length < 2;
    this.tiles.allowChoice();
  }

  async show(k) {
    const frame = this.frames[k];
    if (!frame) return;
    const guess = [...this.radios].find((radio) => radio.checked).value === "guess";
    await this.tiles.show((guess && frame.guess) || frame.state, frame.names);
    this.time.textContent = frame.evaluation
      ? `t = ${frame.t.toPrecision(3)} · α = ${frame.alpha.toPrecision(3)} · σ = ${frame.sigma.toPrecision(3)}`
      : "samples";
  }

  play() {
    let k = Number(this.slider.value) === this.frames.length - 1 ? 0 : Number(this.slider.value);
    this.player.textContent = "❚❚";
    const step = () => {
      this.slider.value = k;
      this.show(k);
      if (++k === this.frames.length) this.pause();
    };
    this.timer = setInterval(step, 90);
    step();
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.player.textContent = "▶";
  }
}

// ---- Work: one piece at a time ----

let busy = false;

function setBusy(section, value) {
  busy = value;
  for (const button of document.querySelectorAll(".go")) button.disabled = value;
  for (const button of document.querySelectorAll(".stop")) {
    button.disabled = !(value && section.contains(button));
  }
  byId("run").disabled = value;
}

function report(section, text, part) {
  const status = section.querySelector(".status");
  status.replaceChildren(...(part === undefined ? [] : [document.createElement("progress")]), text);
  if (part !== undefined && part !== null) status.firstChild.value = part;
}

/** Does work of a tab: sends the request, shows where it stands, and gives frames and the result to handle. */
async function work(section, address, value, handle) {
  if (busy) return;
  complain("");
  setBusy(section, true);
  report(section, "starting", null);
  let finished = false;
  try {
    await stream(address, value, async (message) => {
      const { kind } = message;
      finished ||= ["done", "stopped", "error"].includes(kind);
      if (kind === "error") { complain(message.sentence); report(section, ""); }
      if (kind === "stopped") report(section, "stopped");
      if (kind === "waiting" && message.ahead) report(section, `waiting: ${message.ahead} ahead`, null);
      if (kind === "progress") report(section, `evaluation ${message.evaluation}`, null);
      if (kind === "frame") {
        const { evaluation, planned } = message;
        const part = planned ? Math.min(1, evaluation / planned) : null;
        report(section, `evaluation ${evaluation}${planned ? ` of ${planned}` : ""}`, part);
      }
      if (kind === "done") report(section, `${message.nfe} evaluations, ${message.seconds.toFixed(1)} s`);
      if (kind === "frame" || kind === "done") await handle(message);
    });
    if (!finished) complain("The connection to the server was lost.");
  } catch (error) {
    complain(error.message);
    report(section, "");
  }
  setBusy(section, false);
}

for (const button of document.querySelectorAll(".stop")) {
  button.onclick = () => post("stop", { page }).catch((error) => complain(error.message));
}
for (const button of document.querySelectorAll(".next-seed")) {
  button.onclick = () => { const field = button.form.elements.seed; field.value = Number(field.value) + 1; };
}

// ---- Draw ----

const drawn = new PathView(byId("draw"), (canvas, name) => {
  choose(canvas, `${name.replace("sample", "drawn sample")}, seed ${byId("draw").querySelector("form").elements.seed.value}`);
});

const samplerOf = (form) => run().samplers.find((sampler) => sampler.name === form.elements.sampler.value);

function showSampler() {
  const form = byId("draw").querySelector("form"), sampler = samplerOf(form);
  byId("sampler-about").textContent = sampler.about;
  form.elements.nfe.value = sampler.nfe ?? "";
  form.elements.nfe.disabled = sampler.nfe === null;
  form.elements.nfe.placeholder = sampler.nfe === null ? "its own" : "";
}

function showGuidance() {
  const form = byId("draw").querySelector("form");
  const guidance = run().guidances.find((one) => one.name === form.elements.guidance.value);
  form.elements.scale.disabled = guidance.name === "none";
  if (guidance.name !== "none") form.elements.scale.value = guidance.scale;
  document.querySelector("[data-needs=guiding_prompt]").hidden = !guidance.has_prompt;
}

byId("draw").querySelector("form").onsubmit = (event) => {
  event.preventDefault();
  const section = byId("draw"), fields = event.target.elements, sampler = samplerOf(event.target);
  const nfe = fields.nfe.value === "" || Number(fields.nfe.value) === sampler.nfe ? null : Number(fields.nfe.value);
  for (const selector of [".hint", ".chosen", ".command"]) section.querySelector(selector).hidden = true;
  drawn.clear();
  work(section, "draw", {
    count: Number(fields.count.value), sampler: sampler.name, nfe, planned: sampler.nfe,
    seed: Number(fields.seed.value), label: fields.label.value, guidance: fields.guidance.value,
    scale: Number(fields.scale.value), prompt: fields.prompt.value, guiding_prompt: fields.guiding_prompt.value,
  }, async (message) => {
    if (message.kind === "frame") return drawn.add(message);
    await drawn.add({ state: message.sheet, names: message.names });
    drawn.finish(message.names);
    section.querySelector(".chosen").hidden = Boolean(run().missing);
    section.querySelector(".command").hidden = false;
    section.querySelector("code").textContent = message.command;
  });
};

// ---- The image to fill in or to score ----

function choose(canvas, words) {
  current = { canvas: document.createElement("canvas"), words };
  current.canvas.width = canvas.width;
  current.canvas.height = canvas.height;
  current.canvas.getContext("2d").drawImage(canvas, 0, 0);
  byId("source-words").textContent = words;
  cut(byId("scored"), current.canvas, { columns: 1, width: canvas.width, height: canvas.height }, 0);
  mask.start();
  filled.clear();
  byId("fill").querySelector(".summary").hidden = true;
}

/** Takes the image that the server answers with; an answer about a run that was left meanwhile is dropped. */
async function fetchImage(waiting, address, options) {
  const asked = runIndex();
  complain("");
  byId("source-words").textContent = waiting;
  try {
    const sheet = await (await ask(address, options)).json(), canvas = document.createElement("canvas");
    cut(canvas, await loaded(sheet.png), sheet, 0);
    if (asked === runIndex()) choose(canvas, sheet.words);
  } catch (error) {
    complain(error.message);
    byId("source-words").textContent = current ? current.words : "none yet";
  }
}

let heldOut = -1;
async function nextHeldOut() {
  await fetchImage("reading the data …", `held_out?run=${runIndex()}&index=${++heldOut}`);
}
byId("held-out").onclick = nextHeldOut;

async function upload(file) {
  complain("");
  if (file.size > maxBytes) {
    const mib = (bytes) => (bytes / 2 ** 20).toFixed(1);
    complain(`The file has ${mib(file.size)} MiB, and at most ${mib(maxBytes)} MiB can be uploaded.`);
    return;
  }
  const options = { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: file };
  await fetchImage("sending …", `upload?run=${runIndex()}`, options);
}
byId("file").onchange = async (event) => {
  if (event.target.files.length) await upload(event.target.files[0]);
  event.target.value = "";
};
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files.length && !run().missing) upload(event.dataTransfer.files[0]);
});

// ---- Fill in ----

/** The image with a mask that is painted over it; 1 for each pixel that is missing. */
const mask = {
  canvas: byId("mask"),

  start() {
    const { width, height } = current.canvas;
    if (!this.missing || this.width !== width || this.height !== height) {
      [this.width, this.height] = [width, height];
      this.missing = new Uint8Array(width * height);
      const brush = byId("fill").querySelector("[name=brush]");
      brush.max = Math.max(2, Math.round(Math.max(width, height) / 4));
      brush.value = Math.max(0.5, Math.max(width, height) / 14);
    }
    this.scale = Math.max(1, Math.floor(560 / Math.max(width, height)));
    this.draw();
  },

  draw() {
    const { canvas, scale, width, height } = this, context = canvas.getContext("2d");
    [canvas.width, canvas.height] = [width * scale, height * scale];
    context.imageSmoothingEnabled = false;
    context.drawImage(current.canvas, 0, 0, canvas.width, canvas.height);
    context.fillStyle = context.createPattern(this.stripes(), "repeat");
    context.globalAlpha = 0.85;
    this.missing.forEach((value, k) => {
      if (value) context.fillRect((k % width) * scale, Math.floor(k / width) * scale, scale, scale);
    });
  },

  /** A tile of stripes, which stand out from an image of any colour. */
  stripes() {
    const tile = document.createElement("canvas"), context = tile.getContext("2d");
    tile.width = tile.height = 16;
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--mask");
    context.fillRect(0, 0, 16, 16);
    context.strokeStyle = "#ffffff";
    context.lineWidth = 4;
    for (const shift of [-16, 0, 16]) {
      context.moveTo(shift - 2, 18);
      context.lineTo(shift + 18, -2);
    }
    context.stroke();
    return tile;
  },

  set(predicate) {
    this.missing.forEach((_, k) => (this.missing[k] = predicate(k % this.width, Math.floor(k / this.width)) ? 1 : 0));
    this.draw();
  },

  /** Paints the pixels whose middles are within the brush of the way from the last place to this one. */
  paint(event) {
    const box = this.canvas.getBoundingClientRect(), fields = byId("fill").querySelector("form").elements;
    const to = [(event.clientX - box.left) / box.width * this.width, (event.clientY - box.top) / box.height * this.height];
    const from = this.last ?? to, radius = Math.max(Number(fields.brush.value), 0.5);
    const steps = Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) * 2) + 1;
    for (let i = 1; i <= steps; i++) {
      const [x, y] = from.map((start, axis) => start + (to[axis] - start) * i / steps);
      this.missing.forEach((_, k) => {
        const [column, row] = [k % this.width, Math.floor(k / this.width)];
        const hit = column === Math.floor(x) && row === Math.floor(y);
        if (hit || Math.hypot(column + 0.5 - x, row + 0.5 - y) <= radius) {
          this.missing[k] = fields.erase.checked ? 0 : 1;
        }
      });
    }
    this.last = to;
    this.draw();
  },
};

mask.canvas.onpointerdown = (event) => {
  if (!current) return;
  event.preventDefault();
  mask.canvas.setPointerCapture(event.pointerId);
  mask.last = null;
  mask.painting = true;
  mask.paint(event);
};
mask.canvas.onpointermove = (event) => { if (mask.painting) mask.paint(event); };
mask.canvas.onpointerup = mask.canvas.onpointercancel = () => { mask.painting = false; };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => current && mask.draw());

const presets = {
  center: (x, y) => {
    const inside = (k, size) => k >= Math.floor((size - Math.floor(size / 2)) / 2) &&
      k < Math.floor((size - Math.floor(size / 2)) / 2) + Math.floor(size / 2);
    return inside(x, mask.width) && inside(y, mask.height);
  },
  left: (x) => x < Math.floor(mask.width / 2),
  clear: () => false,
};
for (const button of document.querySelectorAll("[data-mask]")) {
  button.onclick = () => current && mask.set(presets[button.dataset.mask]);
}

const filled = new PathView(byId("fill"), null);
const mean = new Tiles(byId("fill").querySelector(".mean"));
const deviation = new Tiles(byId("fill").querySelector(".deviation"));

byId("fill").querySelector("form").onsubmit = (event) => {
  event.preventDefault();
  if (!current) return complain("There is no image yet: take a held-out one, upload one, or click on a sample.");
  if (!mask.missing.includes(1)) return complain("Nothing is masked: paint over the part of the image to fill in.");
  const section = byId("fill"), fields = event.target.elements;
  filled.clear();
  section.querySelector(".summary").hidden = true;
  work(section, "fill", {
    image: current.canvas.toDataURL("image/png"), mask: mask.missing.join(""), count: Number(fields.count.value),
    method: fields.method.value, nfe: Number(fields.nfe.value), seed: Number(fields.seed.value),
    label: fields.label.value, prompt: fields.prompt.value,
  }, async (message) => {
    if (message.kind === "frame") return filled.add(message);
    await filled.add({ state: message.sheet });
    filled.finish();
    await Promise.all([mean.show(message.mean), deviation.show(message.deviation)]);
    section.querySelector(".deviation-text").textContent = `deviation (white: ${message.most.toFixed(2)})`;
    section.querySelector(".summary").hidden = false;
  });
};

// ---- Score ----

let scores = [];
const number = (value, digits) => value.toFixed(digits).replace("-", "−");

function showScores() {
  const row = ({ url, words, bits, error, logProb }) => {
    const line = document.createElement("tr"), picture = document.createElement("img");
    picture.src = url;
    picture.alt = "";
    const cells = [picture, words, number(bits, 3), error === null ? "–" : error.toFixed(3), `${number(logProb, 1)} nats`];
    line.append(...cells.map((content) => {
      const cell = document.createElement("td");
      cell.append(content);
      return cell;
    }));
    return line;
  };
  byId("history").hidden = !scores.length;
  byId("history").querySelector("tbody").replaceChildren(...scores.map(row));
}

byId("score").querySelector("form").onsubmit = (event) => {
  event.preventDefault();
  if (!current) return complain("There is no image yet: take a held-out one, upload one, or click on a sample.");
  const fields = event.target.elements, url = current.canvas.toDataURL("image/png"), { words } = current;
  byId("bits").textContent = "…";
  work(byId("score"), "score", {
    image: url, draws: Number(fields.draws.value), seed: Number(fields.seed.value), label: fields.label.value,
  }, (message) => {
    const { bits_per_dim: bits, standard_error: error, log_prob: logProb } = message;
    byId("bits").textContent = number(bits, 3) + (error === null ? "" : ` ± ${error.toFixed(3)}`);
    byId("bits-words").textContent =
      `bits per dimension${error === null ? "" : " and standard error"}; log p(x) = ${number(logProb, 1)} nats`;
    const chosen = fields.label.selectedOptions[0];
    scores.push({ url, words: chosen?.value ? `${words}, given ${chosen.text}` : words, bits, error, logProb });
    scores.sort((a, b) => a.bits - b.bits);
    showScores();
  }).then(() => { if (byId("bits").textContent === "…") byId("bits").textContent = "–"; });
};

// ---- The run, the tabs ----

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

function showRun() {
  const now = run(), form = byId("draw").querySelector("form"), points = now.size.length === 1;
  byId("about").textContent = now.missing ? `${now.about}. ${now.missing}` : now.about;
  options(form.elements.sampler, now.samplers.map(({ name }) => [name, name]), now.sampler);
  options(form.elements.label, now.labels);
  options(form.elements.guidance, now.guidances.map(({ name }) => [name, name]), now.guidance);
  form.elements.count.max = points ? 2000 : 64;
  form.elements.count.value = points ? 500 : 16;
  for (const id of ["fill", "score"]) {
    options(byId(id).querySelector("[name=label]"), now.labels_of_images);
    byId(`tab-${id}`).disabled = Boolean(now.missing);
    byId(`tab-${id}`).title = now.missing;
  }
  options(byId("fill").querySelector("[name=method]"), now.methods.map((name) => [name, name]));
  byId("prompts").replaceChildren(...now.prompts.map((text) => new Option(text)));
  const has = {
    labels: now.labels.length, labels_of_images: now.labels_of_images.length, has_prompt: now.has_prompt,
    guided: now.guidances.length > 1, guiding_prompt: false,
  };
  for (const part of document.querySelectorAll("[data-needs]")) part.hidden = !has[part.dataset.needs];
  showTypical(now.held_out_bits);
  showSampler();
  showGuidance();
  drawn.clear();
  filled.clear();
  [current, heldOut, scores, mask.missing] = [null, -1, [], null];
  byId("source-words").textContent = "none yet";
  showScores();
  if (now.missing) openTab("draw");
  else if (!byId("draw").hidden) return;
  else nextHeldOut();
}

function showTypical(heldOut) {
  byId("typical").hidden = !heldOut;
  if (!heldOut) return;
  const [bits, error] = heldOut;
  byId("typical").textContent = `Held-out images of this run have ${number(bits, 3)}` +
    `${error === null ? "" : ` ± ${error.toFixed(3)}`} bits/dim on average (--mode likelihood).`;
}

function openTab(name) {
  for (const tab of tabs) {
    byId(tab).hidden = tab !== name;
    byId(`tab-${tab}`).setAttribute("aria-selected", tab === name);
  }
  const place = byId(name).querySelector(".source-here");
  byId("source").hidden = !place;
  if (place) place.append(byId("source"));
  if (place && !current) nextHeldOut();
}

byId("run").onchange = showRun;
byId("draw").querySelector("[name=sampler]").onchange = showSampler;
byId("draw").querySelector("[name=guidance]").onchange = showGuidance;
for (const tab of tabs) byId(`tab-${tab}`).onclick = () => { complain(""); openTab(tab); };
document.querySelector("nav").onkeydown = (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const open = tabs.filter((tab) => !byId(`tab-${tab}`).disabled);
  const next = open[(open.indexOf(document.activeElement.id.slice(4)) + step + open.length) % open.length];
  openTab(next);
  byId(`tab-${next}`).focus();
};

openTab("draw");
ask("choices").then(async (response) => {
  ({ runs: choices, max_bytes: maxBytes } = await response.json());
  options(byId("run"), choices.map(({ name }) => [name, name]));
  showRun();
  document.body.dataset.ready = "true";
}).catch((error) => complain(error.message));
