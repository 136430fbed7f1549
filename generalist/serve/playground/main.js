// The page: the door, the tabs, light and dark.
import { Refused, json, setToken } from "./api.js";
import { begin as beginAgent } from "./agent.js";
import { begin as beginAnswer } from "./answer.js";
import { by, show, tell } from "./dom.js";
import { begin as beginDrawing } from "./draw.js";
import { begin as beginPrompt } from "./prompt.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
let chosen = ""; // light or dark; empty: as the system has it

function colour() {
  const theme = chosen || (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
  by("theme").textContent = theme === "dark" ? "☀" : "☾";
}

function tab(name) {
  for (const button of document.querySelectorAll("[role=tab]")) {
    const own = button.id === "tab-" + name;
    button.setAttribute("aria-selected", String(own));
    button.tabIndex = own ? 0 : -1;
    show(button.getAttribute("aria-controls"), own);
  }
}

async function connect() {
  tell("failed", "");
  let about;
  try {
    about = await json("/v1/playground");
  } catch (error) {
    show("door", error instanceof Refused && error.status === 401);
    const again = by("token").value !== "";
    if (error.status !== 401) tell("failed", error.message);
    else if (again) tell("failed", "This is not the server's token.");
    by("token").focus();
    return;
  }
  show("door", false);
  by("token").value = "";
  by("model").textContent = about.model;
  beginPrompt(about);
  beginAnswer(about);
  beginDrawing(about);
  show("tab-agent", about.tasks.length > 0);
  if (about.tasks.length) beginAgent(about);
  tab("ask");
}

dark.addEventListener("change", colour);
by("theme").onclick = () => {
  chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  colour();
};
by("door").onsubmit = (event) => {
  event.preventDefault();
  // A header takes no other characters, so a token has none.
  if (!/^[\x21-\x7e]+$/.test(by("token").value)) {
    tell("failed", "This is not the server's token.");
    return;
  }
  setToken(by("token").value);
  connect();
};
for (const button of document.querySelectorAll("[role=tab]")) {
  button.onclick = () => tab(button.id.slice(4));
  button.onkeydown = (event) => {
    const shown = [...document.querySelectorAll("[role=tab]:not([hidden])")];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = shown[(shown.indexOf(button) + step + shown.length) % shown.length];
    tab(next.id.slice(4));
    next.focus();
  };
}
colour();
connect();
