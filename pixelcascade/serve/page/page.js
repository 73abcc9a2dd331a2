// The page: a form, a stream of events, a gallery of this visit. Nothing is loaded from elsewhere, nothing is kept.
"use strict";

const $ = (id) => document.getElementById(id);
const state = { key: "", model: null, running: null };

function make(template) {
  return $(template).content.firstElementChild.cloneNode(true);
}

function tell(problem) {
  $("problem").textContent = problem;
  $("problem").hidden = !problem;
}

async function call(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) $("door").hidden = false;
  if (answer.ok) return answer;
  let words = `the server answered ${answer.status}`;
  try { words = (await answer.json()).error.message; } catch { /* not in words */ }
  const wait = answer.headers.get("Retry-After");
  if (answer.status === 429 && wait && !words.includes("try again")) words += `; try again in ${wait} s`;
  throw new Error(words);
}

// ---- the form

async function open() {
  tell("");
  try {
    const list = await (await call("/v1/models")).json();
    state.model = list.data[0];
  } catch (error) {
    tell(error.message);
    return;
  }
  $("door").hidden = true;
  const { id, stages, styles } = state.model;
  $("model").textContent = `${id}: ${stages.map((stage) => `${stage.width} px`).join(" → ")}`;
  $("styles").replaceChildren(...styles.map(chip));
  $("size").replaceChildren(...stages.map(({ width, height }) => new Option(`${width} × ${height}`, `${width}x${height}`)));
  $("size").selectedIndex = Math.min(1, stages.length - 1);
  $("stages").replaceChildren(...stages.map(stageFields));
}

function chip(style) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = style.replace(/ style$/, "");
  button.dataset.style = style;
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", () => {
    const chosen = button.getAttribute("aria-pressed") === "true";
    for (const other of $("styles").children) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", String(!chosen));
  });
  return button;
}

function stageFields(stage) {
  const fields = make("stage");
  fields.querySelector("legend").textContent = `${stage.name}, ${stage.width} px`;
  fields.querySelector(".steps").placeholder = stage.steps ?? "";
  fields.querySelector(".guidance").placeholder = stage.guidance ?? "";
  return fields;
}

function numbers(kind) {
  const wanted = $("size").selectedIndex + 1;
  const values = [...document.querySelectorAll(`#stages .${kind}`)].slice(0, wanted).map((input) => input.value);
  return values.some((value) => value !== "") ? values.map((value) => (value === "" ? null : Number(value))) : null;
}

function request() {
  const style = $("styles").querySelector("[aria-pressed=true]");
  const words = $("prompt").value.trim();
  const body = {
    prompt: style ? `${words}, ${style.dataset.style}` : words,
    n: Number($("count").value) || 1,
    size: $("size").value,
    stream: true,
    partial_images: Math.min(3, $("size").selectedIndex + 1),
    progress: true,
  };
  if ($("seed").value) body.seed = Number($("seed").value);
  if ($("negative").value.trim()) body.negative_prompt = $("negative").value.trim();
  for (const kind of ["steps", "guidance"]) {
    const values = numbers(kind);
    if (values) body[kind] = values;
  }
  return body;
}

// ---- painting

async function paint(body) {
  if (state.running) return;
  tell("");
  const run = { stop: new AbortController(), cards: new Map(), bars: new Map(), left: body.n };
  state.running = run;
  busy(true);
  const stages = state.model.stages.slice(0, stagesFor(body.size));
  $("progress").replaceChildren(...stages.map((stage) => bar(run, stage.name)));
  run.free = Array.from({ length: body.n }, () => waitingCard(body));
  $("now").replaceChildren(...run.free);
  try {
    const answer = await call("/v1/images/generations", {
      method: "POST", body: JSON.stringify(body), signal: run.stop.signal,
    });
    for await (const event of events(answer.body)) show(run, body, event);
    if (run.left > 0) throw new Error("the server ended the stream before all pictures were there");
  } catch (error) {
    tell(error.name === "AbortError" ? "" : error instanceof TypeError ? "the server cannot be reached" : error.message);
  }
  state.running = null;
  $("now").replaceChildren();
  busy(false);
}

function stagesFor(size) {
  const index = state.model.stages.findIndex((stage) => `${stage.width}x${stage.height}` === size);
  return index < 0 ? state.model.stages.length : index + 1;
}

function busy(yes) {
  $("paint").disabled = yes;
  $("cancel").hidden = !yes;
  $("progress").hidden = !yes;
  for (const button of document.querySelectorAll(".again")) button.disabled = yes;
}

function bar(run, name) {
  const row = make("bar");
  row.dataset.stage = name;
  row.querySelector(".name").textContent = name;
  row.querySelector("progress").setAttribute("aria-label", name);
  run.bars.set(name, row);
  return row;
}

function waitingCard(body) {
  const card = make("card");
  card.querySelector(".words").textContent = body.prompt;
  card.querySelector(".tools").remove();
  return card;
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    for (let end; (end = held.indexOf("\n\n")) >= 0; held = held.slice(end + 2)) {
      const line = held.slice(0, end).split("\n").find((part) => part.startsWith("data:"));
      if (line) yield JSON.parse(line.slice(5));
    }
  }
}

function show(run, body, event) {
  if (event.error) throw new Error(event.error.message);
  if (event.type === "pixelcascade.progress") {
    const row = run.bars.get(event.stage);
    if (row) {
      row.querySelector("progress").value = event.index / event.of;
      row.querySelector(".count").textContent = `${event.index}/${event.of}`;
    }
    return;
  }
  const card = cardOf(run, event.seed);
  const image = card.querySelector("img");
  image.src = `data:image/${event.output_format};base64,${event.b64_json}`;
  image.alt = body.prompt;
  card.querySelector(".frame").classList.toggle("preview", event.type.endsWith("partial_image"));
  if (event.type.endsWith("completed")) {
    run.left -= 1;
    card.remove();
    $("gallery-title").hidden = false;
    $("gallery").prepend(finished(body, event, image.src));
  }
}

function cardOf(run, seed) {
  if (!run.cards.has(seed)) run.cards.set(seed, run.free.shift());
  return run.cards.get(seed);
}

function finished(body, event, source) {
  const card = make("card");
  const image = card.querySelector("img");
  image.src = source;
  image.alt = body.prompt;
  card.querySelector(".words").textContent = body.prompt;
  card.querySelector(".seed").textContent = `seed ${event.seed}, ${event.size.replace("x", " × ")}`;
  const download = card.querySelector(".download");
  download.href = source;
  download.download = `${body.prompt.toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 60)}-${event.seed}.${event.output_format}`;
  card.querySelector(".copy").addEventListener("click", async (click) => {
    try {
      await navigator.clipboard.writeText(String(event.seed));
      click.target.textContent = "Copied";
    } catch {
      $("seed").value = event.seed;
      click.target.textContent = "In the form";
    }
  });
  card.querySelector(".again").addEventListener("click", () => {
    const { seed, ...rest } = body;
    paint({ ...rest, n: 1 });
  });
  return card;
}

// ---- keys and buttons

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.model) paint(request()); else open();
});
$("cancel").addEventListener("click", () => state.running?.stop.abort());
$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value.trim();
  $("key").value = "";
  open();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") state.running?.stop.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && $("form").reportValidity()) $("form").requestSubmit();
});
open();
