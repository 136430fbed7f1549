// The prompt: examples with their answers, then the question. Each has images, which are dragged, pasted or picked.
import { by, made, tell } from "./dom.js";
import { readPicture } from "./pictures.js";

let limits = { images: 0 };
let cards = []; // the examples, and last the question

export function begin(found) {
  limits = found;
  by("add-shot").onclick = () => addShot().text.focus();
  by("clear").onclick = clear;
  by("try").onclick = tryThis;
  document.addEventListener("paste", pasted);
  // A file that is dropped beside the cards must not replace the page.
  for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
  clear();
}

function clear() {
  by("shots").replaceChildren();
  by("question").replaceChildren();
  tell("refused", "");
  cards = [card(by("question"), "Question", false)];
}

// A question to begin with: a sample image if there is one, another one each time.
let tried = 0;

function tryThis() {
  clear();
  const question = cards[0];
  const sample = limits.images && limits.samples.length ? limits.samples[tried++ % limits.samples.length] : null;
  if (sample) put(question, sample.image, "sample image");
  question.text.value = sample ? sample.text : "once upon a time";
  grow(question.text);
  question.text.focus();
}

function addShot() {
  const element = made("form", { class: "card shot", autocomplete: "off" });
  const shot = card(element, "Example", true);
  by("shots").append(element);
  cards.splice(cards.length - 1, 0, shot);
  return shot;
}

function card(element, title, answered) {
  const own = { element, pictures: [] };
  own.text = made("textarea", {
    rows: 1, maxLength: 20000, "aria-label": title + ": text",
    placeholder: answered ? "Text (optional)" : "Text that the model continues",
  });
  own.text.addEventListener("input", () => grow(own.text));
  own.answer = answered ? made("input", { type: "text", placeholder: "Its answer", "aria-label": "Answer of the example", maxLength: 2000 }) : null;
  const remove = made("button", { type: "button", class: "quiet", "aria-label": "Remove this example", onclick: () => {
    element.remove();
    cards = cards.filter((other) => other !== own);
  } }, "✕");
  element.onsubmit = (event) => event.preventDefault();
  element.append(made("div", { class: "head" }, made("h2", {}, title), answered ? remove : null));
  if (limits.images) element.append(zone(own));
  element.append(own.text);
  if (answered) element.append(own.answer);
  return own;
}

// As high as its text, up to the limit of the style sheet.
function grow(box) {
  box.style.height = "auto";
  box.style.height = box.scrollHeight + 2 + "px";
}

function zone(own) {
  const picker = made("input", { type: "file", accept: "image/*", multiple: true, hidden: true });
  picker.onchange = () => { add(own, [...picker.files]); picker.value = ""; };
  const pick = made("button", { type: "button", class: "pick", onclick: () => picker.click() });
  pick.append(made("b", {}, "Choose images"), made("span", {}, ", drop or paste them"));
  own.zone = made("div", { class: "pictures" }, pick, picker);
  own.pick = pick;
  own.zone.addEventListener("dragover", () => own.zone.classList.add("over"));
  own.zone.addEventListener("dragleave", () => own.zone.classList.remove("over"));
  own.element.addEventListener("drop", (event) => {
    own.zone.classList.remove("over");
    add(own, [...event.dataTransfer.files]);
  });
  return own.zone;
}

function pasted(event) {
  const files = [...(event.clipboardData?.files || [])];
  if (!files.length || !limits.images) return;
  event.preventDefault();
  add(cards.find((own) => own.element.contains(document.activeElement)) || cards[cards.length - 1], files);
}

// files: a list of its own, since the browser empties its lists.
async function add(own, files) {
  tell("refused", "");
  for (const file of files) {
    try {
      const count = cards.reduce((sum, one) => sum + one.pictures.length, 0);
      if (count >= limits.images) throw new Error("A prompt may have " + limits.images + " images. " + file.name + " was left out.");
      const uri = await readPicture(file, limits);
      put(own, uri, file.name || "pasted image");
    } catch (error) {
      tell("refused", error.message);
    }
  }
}

function put(own, uri, name) {
  const picture = { uri };
  const figure = made("figure", {}, made("img", { src: uri, alt: name }));
  figure.append(made("button", { type: "button", "aria-label": "Remove " + name, onclick: () => {
    figure.remove();
    own.pictures = own.pictures.filter((other) => other !== picture);
  } }, "✕"));
  own.pictures.push(picture);
  own.zone.insertBefore(figure, own.pick);
}

// The messages of a chat, and the images in the order in which the model gets them; throws an Error for the user.
export function written() {
  const messages = [];
  const system = by("system").value;
  if (system) messages.push({ role: "system", content: system });
  for (const own of cards) {
    const content = own.pictures.map((picture) => ({ type: "image_url", image_url: { url: picture.uri } }));
    if (own.text.value) content.push({ type: "text", text: own.text.value });
    if (!content.length) throw new Error(own.answer ? "An example is empty: give it an image or a text, or remove it." : "Give the model an image or a text to continue.");
    messages.push({ role: "user", content });
    if (own.answer) {
      if (!own.answer.value.trim()) throw new Error("An example has no answer: write it, or remove the example.");
      messages.push({ role: "assistant", content: own.answer.value });
    }
  }
  return { messages, pictures: cards.flatMap((own) => own.pictures.map((picture) => picture.uri)) };
}
