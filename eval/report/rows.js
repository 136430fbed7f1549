"use strict";
// Draws rows of positions. Texts are only ever set as text, never as markup.
// data: { rows, images }; main: where the rows go; details: where a touched position is described.
function showRows(data, main, details) {
  let pinned = null; // the cell whose marks stay when the pointer leaves

  function made(tag, kind, text) {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function picture(index) {
    const image = made("img");
    image.src = data.images[index];
    image.alt = "";
    return image;
  }

  function short(cell) {
    if (cell.value) return cell.value.replace(/\n/g, "⏎");
    return cell.part;
  }

  function tile(cell, number) {
    const element = made("button", "cell " + cell.modality + (cell.segment % 2 ? "" : " even"));
    element.type = "button";
    element.append(made("small", "", String(number)));
    if (cell.picture !== undefined && cell.picture !== null) element.append(picture(cell.picture));
    else element.append(made("b", "", short(cell)));
    const predicted = (cell.targets || []).map((one) => one.value || one.part).join(", ");
    element.append(made("i", "", cell.weight > 0 ? "→ " + predicted : ""));
    return element;
  }

  function inside(ranges, place) {
    return (ranges || []).some(([low, high]) => low <= place && place < high);
  }

  function mark(row, number) {
    const cell = row.cells[number];
    const near = cell.near === undefined ? cell.sees : cell.near;
    row.element.classList.add("marked");
    row.tiles.forEach((element, place) => {
      element.classList.toggle("self", place === number);
      element.classList.toggle("seen", inside(near, place));
      element.classList.toggle("far", inside(cell.sees, place));
      element.classList.toggle("shown", (cell.images || []).includes(place));
    });
    describe(row, cell, number);
  }

  function clear() {
    for (const row of data.rows) row.element.classList.remove("marked");
    details.replaceChildren();
  }

  function ranges(list) {
    return (list || []).map(([low, high]) => (high - low > 1 ? low + "–" + (high - 1) : String(low))).join(", ") || "nothing";
  }

  function describe(row, cell, number) {
    const list = made("dl");
    function line(name, value) {
      list.append(made("dt", "", name), made("dd", "", value));
    }
    line("position", number + " of the row, " + (cell.position || 0) + " of segment " + cell.segment);
    line("segment", row.segments[cell.segment - 1]);
    line("holds", cell.part + (cell.value ? ": " + cell.value : ""));
    line("modality", cell.modality + ", token " + cell.token);
    line("local position", String(cell.local || 0));
    for (const one of cell.targets || []) {
      line("predicts", one.part + (one.value ? ": " + one.value : "") + " (token " + one.token + ")");
    }
    line("loss weight", String(cell.weight || 0));
    line("attends to", ranges(cell.sees) + (cell.near ? "; in layers with a window " + ranges(cell.near) : ""));
    if (cell.image_index) line("image", "number " + cell.image_index + " of the row, by cross-attention: position " + ((cell.images || []).join(", ") || "none"));
    details.replaceChildren();
    if (cell.picture !== undefined && cell.picture !== null) details.append(picture(cell.picture));
    details.append(list);
  }

  function choose(row, number) {
    pinned = { row: row, number: number };
    clear();
    mark(row, number);
    row.tiles[number].focus();
  }

  function draw(row, index) {
    const padding = row.length - row.cells.length;
    if (data.rows.length > 1) main.append(made("h2", "", "Row " + (index + 1)));
    row.element = made("div", "row");
    row.tiles = [];
    row.cells.forEach((cell, number) => {
      if (number === 0 || row.cells[number - 1].segment !== cell.segment) {
        row.element.append(made("div", "segment", "segment " + cell.segment + ": " + row.segments[cell.segment - 1]));
      }
      const element = tile(cell, number);
      element.addEventListener("pointerenter", () => { if (!pinned) mark(row, number); });
      element.addEventListener("pointerleave", () => { if (!pinned) clear(); });
      element.addEventListener("click", () => {
        const again = pinned && pinned.row === row && pinned.number === number;
        if (again) { pinned = null; clear(); } else choose(row, number);
      });
      row.tiles.push(element);
      row.element.append(element);
    });
    if (padding) row.element.append(made("div", "pad", padding + " positions of padding of " + row.length + " (" + Math.round((100 * padding) / row.length) + "%)"));
    main.append(row.element);
  }

  main.replaceChildren();
  details.replaceChildren();
  data.rows.forEach(draw);
  main.onkeydown = (event) => {
    if (!pinned) return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") { pinned = null; clear(); }
    if (!step || !pinned) return;
    const next = pinned.number + step;
    if (next >= 0 && next < pinned.row.cells.length) {
      event.preventDefault();
      choose(pinned.row, next);
    }
  };
}

// A page of rows alone has its data in it.
const written = document.getElementById("data");
if (written) showRows(JSON.parse(written.textContent), document.getElementById("rows"), document.getElementById("details"));
