// The answer: streamed as text, then as tokens, each with the likeliest alternatives at its place.
import { events } from "./api.js";
import { bars, by, made, numberOf, show, tell, visible } from "./dom.js";
import { inspect, look } from "./inside.js";
import { written } from "./prompt.js";

const ALTERNATIVES = 8;
let about = {};
let running = null; // the AbortController of the answer that is being written
let tokens = [];

export function begin(found) {
  about = found;
  by("send").onclick = send;
  by("stop").onclick = stop;
  document.addEventListener("keydown", (event) => {
    if (by("ask").hidden) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
    if (event.key === "Escape" && running) stop();
  });
  by("tokens").addEventListener("keydown", moved);
}

function stop() {
  running?.abort();
}

function settings() {
  const found = { temperature: numberOf("temperature"), top_p: numberOf("top_p"), max_tokens: numberOf("max_tokens"), seed: numberOf("seed") };
  return by("stop-text").value ? { ...found, stop: by("stop-text").value } : found;
}

async function send() {
  if (running) return;
  tell("refused", "");
  let prompt, body;
  try {
    prompt = written();
    body = { model: about.model, messages: prompt.messages, stream: true, logprobs: true, top_logprobs: ALTERNATIVES, ...settings() };
  } catch (error) {
    tell("refused", error.message);
    return;
  }
  busy(new AbortController());
  const started = performance.now();
  try {
    let reason = "";
    for await (const event of events("/v1/chat/completions", body, running.signal)) {
      const choice = event.choices[0];
      by("text").textContent += choice.delta.content || "";
      tokens.push(...(choice.logprobs?.content || []));
      by("state").textContent = "Writing …";
      reason = choice.finish_reason || reason;
    }
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    by("state").textContent = tokens.length + (tokens.length === 1 ? " token" : " tokens") + " in " + seconds + " s" + (reason === "length" ? ", cut off" : "");
    if (!tokens.length) by("state").textContent = "The model ended at once: it expects no more text here.";
  } catch (error) {
    if (error.name === "AbortError") by("state").textContent = "Stopped after " + tokens.length + " tokens.";
    else tell("refused", error.message);
    if (error.name !== "AbortError") by("state").textContent = "";
  } finally {
    busy(null);
  }
  list();
  if (tokens.length) {
    if (about.inspects) await inspect(about.model, prompt, tokens).catch((error) => tell("refused", error.message));
    select(0);
  }
}

function busy(controller) {
  running = controller;
  by("send").disabled = Boolean(controller);
  show("stop", Boolean(controller));
  by("text").classList.toggle("writing", Boolean(controller));
  if (!controller) return;
  tokens = [];
  by("text").textContent = "";
  by("state").textContent = "Reading …";
  show("tokens", false);
  show("inside", false);
}

function list() {
  const chips = tokens.map((token, at) => {
    const chip = made("button", { type: "button", class: "token", role: "option", "aria-selected": "false", tabIndex: -1, onclick: () => select(at) }, visible(token.token));
    chip.style.setProperty("--p", Math.exp(token.logprob));
    return chip;
  });
  by("tokens").replaceChildren(...chips);
  show("tokens", chips.length > 0);
}

function moved(event) {
  const chips = [...by("tokens").children];
  const at = chips.findIndex((chip) => chip.getAttribute("aria-selected") === "true");
  const next = at + ({ ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key] || 0);
  if (next === at || !chips[next]) return;
  event.preventDefault();
  select(next);
  chips[next].focus();
}

function select(at) {
  [...by("tokens").children].forEach((chip, place) => {
    chip.setAttribute("aria-selected", String(place === at));
    chip.tabIndex = place === at ? 0 : -1;
  });
  const token = tokens[at];
  const likeliest = token.top_logprobs.map((other) => ({ name: visible(other.token), share: Math.exp(other.logprob), chosen: other.id === token.id }));
  if (!likeliest.some((other) => other.chosen)) likeliest.push({ name: visible(token.token), share: Math.exp(token.logprob), chosen: true });
  const card = made("section", { class: "card", id: "alternatives" }, made("h2", {}, "Likeliest here"), bars(likeliest));
  by("inside").replaceChildren(card, ...(about.inspects ? look(at) : []));
  show("inside", true);
}
