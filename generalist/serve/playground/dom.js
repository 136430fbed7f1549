// Elements. Whatever comes from a model, a file or a user is set as text, never as markup.
export function made(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.includes("-")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const by = (id) => document.getElementById(id);

export function show(id, shown) {
  by(id).hidden = !shown;
}

// A message in its place, or none.
export function tell(id, text) {
  by(id).textContent = text || "";
  show(id, Boolean(text));
}

// The number in a field; throws an Error for the user.
export function numberOf(id) {
  const field = by(id);
  if (!field.checkValidity() || field.value === "") throw new Error(field.parentElement.firstChild.textContent.trim() + ": " + (field.validationMessage || "give a number."));
  return Number(field.value);
}

// Spaces and line ends as signs, for single tokens.
export function visible(text) {
  return text === "" ? "end" : text.replace(/ /g, "·").replace(/\n/g, "⏎");
}

export function percent(share) {
  if (share > 0 && share < 0.0005) return "<0.1%";
  return share >= 0.0995 ? Math.round(100 * share) + "%" : (100 * share).toFixed(1) + "%";
}

// Rows of name, bar and percentage.
export function bars(entries) {
  const list = made("div", { class: "bars" });
  for (const { name, share, chosen, title } of entries) {
    const bar = made("i");
    bar.style.setProperty("--p", Math.min(1, Math.max(0, share)));
    list.append(
      made("span", { class: "name" + (chosen ? " chosen" : ""), title: title || name }, name),
      made("span", { class: "bar" }, bar),
      made("span", { class: "number" }, percent(share)),
    );
  }
  return list;
}
