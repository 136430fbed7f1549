// An agent plays a task on the server, and is watched: pictures, rewards, and the probabilities of its actions.
import { events } from "./api.js";
import { bars, by, made, show, tell } from "./dom.js";

let tasks = [];
let running = null; // the AbortController of the episode

export function begin(about) {
  tasks = about.tasks;
  const suites = [...new Set(tasks.map((task) => task.name.split("/")[0]))];
  by("suite").replaceChildren(...suites.map((suite) => made("option", { value: suite }, suite)));
  by("suite").onchange = listed;
  by("task").onchange = chosen;
  by("play").onclick = play;
  by("halt").onclick = () => running?.abort();
  by("task-form").onsubmit = (event) => { event.preventDefault(); play(); };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running && !by("agent").hidden) running.abort();
  });
  listed();
  numbers({});
}

function listed() {
  const own = tasks.filter((task) => task.name.startsWith(by("suite").value + "/"));
  by("task").replaceChildren(...own.map((task) => made("option", { value: task.name }, task.name.split("/")[1])));
  chosen();
}

function chosen() {
  const task = tasks.find((one) => one.name === by("task").value);
  by("instruction").placeholder = task ? task.instruction : "";
}

async function play() {
  if (running) return;
  tell("play-failed", "");
  if (!by("episode").checkValidity() || by("episode").value === "") {
    tell("play-failed", "Episode: give a whole number from 0 up.");
    return;
  }
  const body = { task: by("task").value, seed: Number(by("episode").value) };
  if (by("instruction").value) body.instruction = by("instruction").value;
  if (by("demonstration").value) body.demonstration = by("demonstration").value;
  busy(new AbortController());
  by("playing").textContent = body.demonstration ? "The expert plays its demonstration …" : "Making the environment …";
  let last = null;
  try {
    for await (const event of events("/v1/play", body, running.signal)) {
      if (event.begin) began(event.begin);
      else if (event.demonstration) demonstrated(event.demonstration, body.task);
      else if (event.stopped) by("playing").textContent += " · stopped: " + event.stopped;
      else last = draw(event);
    }
  } catch (error) {
    if (error.name !== "AbortError") tell("play-failed", error.message);
    else by("playing").textContent += " · stopped";
  } finally {
    busy(null);
  }
  if (last && last.score !== null) by("playing").textContent += " · over";
}

function busy(controller) {
  running = controller;
  by("play").disabled = Boolean(controller);
  show("halt", Boolean(controller));
  if (controller) {
    show("actions", false);
    numbers({});
  } else if (by("screen").hidden) by("playing").textContent = "";
}

function began(episode) {
  const [shown] = episode.demonstration_steps;
  const after = shown ? ", after " + shown + (shown === 1 ? " step" : " steps") + " of a demonstration" : "";
  by("playing").textContent = episode.task + ": “" + episode.instruction + "”" + after;
  by("screen").hidden = false;
  show("screen-empty", false);
}

// The demonstration is watched before the agent's own episode.
function demonstrated(moment, task) {
  by("playing").textContent = "Demonstration of " + task + ", by its expert: step " + moment.step;
  by("screen").src = moment.picture;
  by("screen").hidden = false;
  show("screen-empty", false);
}

function draw(moment) {
  by("screen").src = moment.picture;
  numbers(moment);
  if (moment.action) {
    show("actions", true);
    by("actions").replaceChildren(made("h2", {}, "How likely its actions were"), ...moment.action.map(dimension));
  }
  return moment;
}

function numbers(moment) {
  const written = (value) => (value === undefined || value === null ? "–" : Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(2));
  const percent = moment.percent === undefined || moment.percent === null ? "–" : moment.percent.toFixed(0) + "%";
  const told = { Step: moment.step === undefined ? "–" : String(moment.step), Reward: written(moment.reward), Score: written(moment.score), "Of the expert": percent };
  by("numbers").replaceChildren(...Object.entries(told).map(([name, value]) => made("div", {}, made("b", {}, value), name)));
}

function dimension(one) {
  if (one.discrete) {
    const first = Number(one.low);
    const list = bars(one.probabilities.map((share, at) => ({ name: one.values ? one.values[at] : one.name + " " + (first + at), share, chosen: at === one.chosen })));
    return made("div", { class: "dimension" }, list);
  }
  const canvas = made("canvas", { class: "histogram", width: 480, height: 60, role: "img", "aria-label": one.name + ": distribution from " + one.low + " to " + one.high });
  histogram(canvas, one);
  return made("div", { class: "dimension" }, made("div", { class: "head" }, made("span", {}, one.name), made("span", { class: "soft" }, one.low + " to " + one.high)), canvas);
}

// Bars of the bins; the chosen one has the accent's colour.
function histogram(canvas, one) {
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const most = Math.max(...one.probabilities);
  const width = canvas.width / one.probabilities.length;
  one.probabilities.forEach((share, at) => {
    const height = Math.max(1, (canvas.height * share) / most);
    context.fillStyle = style.getPropertyValue(at === one.chosen ? "--accent" : "--soft");
    context.globalAlpha = at === one.chosen ? 1 : 0.55;
    context.fillRect(at * width, canvas.height - height, Math.max(1, width - 1), height);
  });
}
