// What the model looked at for each token: images with a map of their cells, positions, gates, and the sequence itself.
import { json } from "./api.js";
import { bars, made, visible } from "./dom.js";

const MOST = 64; // tokens that the server looks into
let found = null; // the server's answer, with arrays as Float32Array
let pictures = [];
let layer = -1; // -1: the mean of all

export async function inspect(model, prompt, tokens) {
  found = null;
  const ids = tokens.slice(0, MOST).map((token) => token.id);
  const answer = await json("/v1/inspect", { model, messages: prompt.messages, answer: ids });
  for (const name of ["attention", "images"]) answer[name] = { shape: answer[name].shape, values: numbers(answer[name].data) };
  pictures = prompt.pictures;
  layer = -1;
  found = answer;
}

function numbers(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

// The sections for a token of the answer.
export function look(token) {
  if (!found) return [];
  if (token >= found.attention.shape[1]) return [made("p", { class: "soft" }, "Only the first " + MOST + " tokens are looked into.")];
  const sections = [positions(token)];
  const seen = images(token);
  if (seen) sections.unshift(seen);
  if (found.gates.length) sections.push(gates());
  sections.push(sequence());
  return sections;
}

// The values of one token in a layer, or their mean over all layers: shape [layers, tokens, ...rest].
function slice(array, token, at) {
  const [layers, tokens, ...rest] = array.shape;
  const size = rest.reduce((product, one) => product * one, 1);
  const chosen = at >= 0 ? [at] : [...Array(layers).keys()];
  const sum = new Float32Array(size);
  for (const one of chosen) {
    const begin = (one * tokens + token) * size;
    for (let place = 0; place < size; place++) sum[place] += array.values[begin + place] / chosen.length;
  }
  return sum;
}

function images(token) {
  const crossed = found.images.shape[0] > 0 && found.images.shape[2] > 0;
  if (!crossed && !found.inline.length) return null;
  const section = made("section", { class: "card", id: "seen" }, made("h2", {}, "Images it looked at"));
  const row = made("div", { class: "looked" });
  const cells = found.images.shape[3] || 0;
  const weights = crossed ? slice(found.images, token, -1) : [];
  const inline = slice(found.attention, token, layer);
  pictures.forEach((uri, number) => {
    const own = crossed ? weights.slice(number * cells, (number + 1) * cells) : [];
    const share = own.reduce((sum, one) => sum + one, 0);
    const within = (found.inline[number] || []).reduce((sum, place) => sum + inline[place], 0);
    const map = crossed ? own : (found.inline[number] || []).map((place) => inline[place]);
    const frame = made("div", { class: "frame" }, made("img", { src: uri, alt: "image " + (number + 1) }));
    if (found.grid && (crossed ? share : within) > 0) frame.append(heat(map, found.grid));
    const told = [];
    if (crossed) told.push(Math.round(100 * share) + "% of the cross-attention");
    if (found.inline.length) told.push((100 * within).toFixed(1) + "% of the self-attention");
    row.append(made("figure", { class: share + within > 0 ? "" : "none" }, frame, made("figcaption", {}, told.join(", "))));
  });
  section.append(row);
  if (!crossed && found.grid) section.append(made("p", { class: "soft small" }, "The map: self-attention to the image's positions, mean over layers and heads."));
  if (crossed) section.append(made("p", { class: "soft small" }, "The map: cross-attention to the cells of the image encoder, traced through the resampler; mean over gated layers and heads."));
  return section;
}

// Darker where less is seen, so that what the model looked at stays bright.
function heat(cells, [rows, columns]) {
  const canvas = made("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const most = Math.max(...cells);
  cells.forEach((value, place) => {
    context.fillStyle = "rgba(10, 14, 30, " + (0.95 * (1 - value / most)).toFixed(3) + ")";
    context.fillRect(place % columns, Math.floor(place / columns), 1, 1);
  });
  return canvas;
}

function positions(token) {
  const section = made("section", { class: "card", id: "positions" }, made("h2", {}, "Positions it looked at"));
  const places = made("div", { class: "places" });
  const layers = made("div", { class: "layers", role: "group", "aria-label": "Layer" }, made("span", { class: "soft small" }, "Layer"));
  const buttons = [-1, ...Array(found.attention.shape[0]).keys()].map((one) =>
    made("button", { type: "button", onclick: () => { layer = one; draw(); } }, one < 0 ? "all" : String(one + 1)));
  layers.append(...buttons);
  const cells = found.sequence.rows[0].cells;
  const here = found.attention.shape[2] - found.attention.shape[1] + token - 1;

  function draw() {
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(at - 1 === layer)));
    const weights = slice(found.attention, token, layer).slice(0, here + 1);
    const most = Math.max(...weights);
    places.replaceChildren(...[...weights].map((weight, at) => {
      const text = cells[at].modality === "text" && Boolean(cells[at].value);
      const place = made("span", {
        class: "place" + (text ? "" : " other") + (at === here ? " self" : ""),
        title: "position " + at + ": " + (100 * weight).toFixed(1) + "%",
      }, label(cells[at]));
      place.style.setProperty("--a", weight / most);
      return place;
    }));
  }

  draw();
  section.append(layers, places, made("p", { class: "soft small" }, "Self-attention from the position before this token, mean over heads. The strongest position has the full colour."));
  return section;
}

// A piece of text; of other positions what they are.
function label(cell) {
  if (["image", "frame", "patch"].includes(cell.modality)) return cell.modality;
  return cell.value ? visible(cell.value) : cell.part.replace("_", " ");
}

function gates() {
  const entries = found.gates.flatMap((gate) => [
    { name: "before layer " + (gate.layer + 1) + ": images", share: Math.abs(gate.attention), title: "tanh α = " + gate.attention.toFixed(3) },
    { name: "before layer " + (gate.layer + 1) + ": feed-forward", share: Math.abs(gate.feed_forward), title: "tanh β = " + gate.feed_forward.toFixed(3) },
  ]);
  return made("section", { class: "card", id: "gates" }, made("h2", {}, "How far the gates are open"), bars(entries));
}

function sequence() {
  const rows = made("div", { id: "rows" });
  const details = made("div", { id: "details" });
  const whole = made("details", { class: "card", id: "sequence" }, made("summary", {}, "The sequence as the model sees it: " + found.attention.shape[2] + " positions"), rows, details);
  whole.addEventListener("toggle", () => { if (whole.open && !rows.childElementCount) window.showRows(found.sequence, rows, details); });
  return whole;
}
