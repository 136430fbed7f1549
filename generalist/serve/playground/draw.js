// Images of a text, drawn by the weights on the server if they can.
import { json } from "./api.js";
import { by, made, numberOf, show, tell } from "./dom.js";

let about = {};
let running = null; // the AbortController of the drawing

export function begin(found) {
  about = found;
  by("draw-start").onclick = draw;
  by("draw-halt").onclick = () => running?.abort();
  by("draw-form").onsubmit = (event) => { event.preventDefault(); draw(); };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running && !by("draw").hidden) running.abort();
  });
  by("draw-start").disabled = !about.draws;
  if (!about.draws) by("draw-state").textContent = about.no_drawing[0].toUpperCase() + about.no_drawing.slice(1) + ".";
}

async function draw() {
  if (running || !about.draws) return;
  tell("draw-failed", "");
  const text = by("draw-text").value.trim() || by("draw-text").placeholder;
  const started = performance.now();
  try {
    const body = {
      model: about.model, prompt: text, n: numberOf("draw-count"), guidance: numberOf("draw-guidance"),
      temperature: numberOf("draw-temperature"), seed: numberOf("draw-seed"),
    };
    busy(new AbortController());
    by("draw-state").textContent = "Drawing “" + text + "” …";
    const found = await json("/v1/images/generations", body, running.signal);
    by("drawn").replaceChildren(...found.data.map((one) => made("img", { src: "data:image/png;base64," + one.b64_json, alt: text })));
    by("draw-state").textContent = "“" + text + "”, " + ((performance.now() - started) / 1000).toFixed(1) + " s";
  } catch (error) {
    by("draw-state").textContent = error.name === "AbortError" ? "Stopped." : "";
    if (error.name !== "AbortError") tell("draw-failed", error.message);
  } finally {
    busy(null);
  }
}

function busy(controller) {
  running = controller;
  by("draw-start").disabled = Boolean(controller);
  show("draw-halt", Boolean(controller));
  if (controller) by("drawn").replaceChildren();
}
