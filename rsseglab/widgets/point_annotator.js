// Click points in a scene: a canvas over a pyramid of tiles, and a list of classes. See point_annotator.py.

const TILE = 256;
const KEPT = 300; // tiles

// --- what needs no browser, and is tested without one ---

/** The pyramid's level whose pixels are just finer than the screen's, for so many screen px a scene px. */
export function levelOf(scale, size) {
  const most = Math.max(0, Math.ceil(Math.log2(Math.max(...size) / TILE)));
  return Math.min(most, Math.max(0, Math.floor(Math.log2(1 / scale))));
}

/** Tiles of a level that a view shows: [row, column]. A view is {row, col, scale} of its centre, and its size in px. */
export function tilesIn(view, level, width, height, size) {
  const side = TILE * 2 ** level;
  const first = (centre, half) => Math.max(0, Math.floor((centre - half) / side));
  const last = (centre, half, length) => Math.min(Math.ceil(length / side) - 1, Math.floor((centre + half) / side));
  const [halfRows, halfCols] = [height / 2 / view.scale, width / 2 / view.scale];
  const out = [];
  for (let r = first(view.row, halfRows); r <= last(view.row, halfRows, size[0]); r++)
    for (let c = first(view.col, halfCols); c <= last(view.col, halfCols, size[1]); c++) out.push([r, c]);
  return out;
}

/** Where a place on the screen lies in the scene: [row, column]. */
export function toScene(x, y, view, width, height) {
  return [view.row + (y - height / 2) / view.scale, view.col + (x - width / 2) / view.scale];
}

/** Where a place in the scene lies on the screen: [x, y]. */
export function toScreen(row, col, view, width, height) {
  return [(col - view.col) * view.scale + width / 2, (row - view.row) * view.scale + height / 2];
}

/** The view after zooming by a factor, the place under (x, y) staying where it is. */
export function zoomed(view, factor, x, y, width, height) {
  const scale = Math.min(32, Math.max(1e-3, view.scale * factor));
  const [row, col] = toScene(x, y, view, width, height);
  return { scale, row: row - (y - height / 2) / scale, col: col - (x - width / 2) / scale };
}

/** Points with one more, or why it can't be: {points} or {said}. */
export function added(points, row, col, kind, who, size, classes) {
  if (row < 0 || col < 0 || row >= size[0] || col >= size[1]) return { said: "That is beside the scene." };
  const same = points.find((p) => Math.floor(p[0]) === Math.floor(row) && Math.floor(p[1]) === Math.floor(col));
  if (same) return { said: `This pixel is ${classes[same[2]].name} already; undo or delete that point first.` };
  return { points: [...points, [row, col, kind, who]] };
}

/** Number of the point nearest to a place, -1 if there is none. */
export function nearest(points, row, col) {
  let [best, least] = [-1, Infinity];
  points.forEach((p, i) => {
    const distance = (p[0] - row) ** 2 + (p[1] - col) ** 2;
    if (distance < least) [best, least] = [i, distance];
  });
  return best;
}

/** Points as GeoJSON in px, as rsseglab.scenes.points reads it. */
export function asGeoJSON(points, classes) {
  const features = points.map(([row, col, kind, who]) => ({
    type: "Feature",
    geometry: { type: "Point", coordinates: [col, row] },
    properties: { class: classes[kind].name, who },
  }));
  return JSON.stringify({ type: "FeatureCollection", pixel_coordinates: true, features }, null, 1);
}

/** Points of a GeoJSON in px: {points} or {said}. */
export function fromGeoJSON(text, classes) {
  try {
    const data = JSON.parse(text);
    if (!data.pixel_coordinates) return { said: "Without a kernel only files in pixels can be loaded." };
    const numbers = new Map(classes.map((c, i) => [c.name, i]));
    const points = data.features.map((f) => {
      const kind = numbers.get(f.properties.class);
      if (kind === undefined) throw new Error(`there is no class ${f.properties.class} here`);
      return [f.geometry.coordinates[1], f.geometry.coordinates[0], kind, f.properties.who ?? ""];
    });
    return { points };
  } catch (error) {
    return { said: `This is no file of points of this scene (${error.message}).` };
  }
}

// --- the widget ---

function render({ model, el }) {
  const size = model.get("size");
  const classes = model.get("classes");
  const canvas = element("canvas", { tabindex: "0", role: "application" });
  canvas.setAttribute(
    "aria-label",
    "Scene. Arrows move, plus and minus zoom, digits choose a class, Enter sets a point at the crosshair, U undoes, " +
      "Delete removes the nearest point, S saves.",
  );
  const said = element("div", { class: "said", role: "status", "aria-live": "polite" });
  const buttons = classes.map((c, i) => {
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = c.color;
    const count = element("span", { class: "count" });
    const label = i < 9 ? `${i + 1}  ${c.name}` : c.name;
    const button = element("button", { class: "class", type: "button" }, swatch, label, count);
    button.addEventListener("click", () => choose(i));
    return { button, count };
  });
  const action = (text, title, run) => {
    const button = element("button", { type: "button", title }, text);
    button.addEventListener("click", run);
    return button;
  };
  const chosen = element("input", { type: "file", accept: ".geojson,.json,.csv", hidden: "" });
  const row = element(
    "div",
    { class: "row" },
    action("Undo", "take the last change back (u)", undo),
    action("See all", "the whole scene (0)", fit),
    action("Save", "to the notebook's file (s)", save),
    action("Load", "points of a file", () => chosen.click()),
    action("Download", "points in px, as GeoJSON", download),
  );
  const keys = element("div", { class: "keys" }, "click or Enter: point · 1–9: class · drag, arrows: move · wheel, + −: zoom · u: undo · Delete: remove nearest · s: save");
  const side = element("div", { class: "side" }, ...buttons.map((b) => b.button), row, chosen, said, keys);
  const root = element("div", { class: "rsseglab-points" }, canvas, side);
  el.append(root);

  const context = canvas.getContext("2d");
  const tiles = new Map(); // "level/row/col" -> picture, or null while it is asked for
  const before = []; // lists of points, to undo
  const preview = new Image();
  preview.onload = draw;
  preview.src = model.get("preview");
  let [width, height, view, mask, byKeys, said_] = [0, 0, null, null, false, 0];

  function fit() {
    view = { row: size[0] / 2, col: size[1] / 2, scale: Math.min(width / size[1], height / size[0]) * 0.98 };
    draw();
  }

  function tell(text) {
    said.textContent = text;
    clearTimeout(said_);
    if (text) said_ = setTimeout(() => (said.textContent = ""), 8000);
  }

  function change(points) {
    before.push(model.get("points"));
    put(points);
  }

  function put(points) {
    mask = null;
    model.set("points", points);
    model.save_changes();
    refresh();
  }

  function refresh() {
    const points = model.get("points");
    buttons.forEach(({ button, count }, i) => {
      count.textContent = points.filter((p) => p[2] === i).length;
      button.setAttribute("aria-pressed", String(model.get("current") === i));
    });
    draw();
  }

  function choose(i) {
    if (i >= classes.length) return;
    model.set("current", i);
    model.save_changes();
    refresh();
    canvas.focus();
  }

  function add(place) {
    const result = added(model.get("points"), ...place, model.get("current"), model.get("who"), size, classes);
    if (result.said) return tell(result.said);
    change(result.points);
    tell(`${classes[model.get("current")].name}: ${result.points.length} points in all`);
    if (model.get("has_masks")) model.send({ kind: "mask", number: result.points.length - 1 });
  }

  function undo() {
    if (before.length) put(before.pop());
    else tell("There is nothing to undo.");
  }

  function remove() {
    const points = model.get("points");
    const number = nearest(points, view.row, view.col);
    if (number >= 0) change(points.filter((_, i) => i !== number));
  }

  function save() {
    tell("saving ... (without a kernel: Download)");
    model.send({ kind: "save" });
  }

  function download() {
    const blob = new Blob([asGeoJSON(model.get("points"), classes)], { type: "application/geo+json" });
    const link = element("a", { href: URL.createObjectURL(blob), download: model.get("file_name").replace(/\.csv$/i, ".geojson") });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  chosen.addEventListener("change", async () => {
    const [file] = chosen.files;
    if (!file) return;
    const text = await file.text();
    const here = fromGeoJSON(text, classes);
    if (here.points) change(here.points);
    else if (live()) model.send({ kind: "load", name: file.name, text });
    else tell(here.said);
    chosen.value = "";
  });

  // A tile that came tells that there is a kernel.
  let answered = false;
  const live = () => answered;

  model.on("msg:custom", async (message, buffers) => {
    if (message.kind === "tile") {
      answered = true;
      const picture = await createImageBitmap(new Blob([buffers[0]]));
      const key = `${message.level}/${message.row}/${message.col}`;
      tiles.delete(key);
      tiles.set(key, picture);
      if (tiles.size > KEPT) tiles.delete(tiles.keys().next().value);
    } else if (message.kind === "mask") {
      if (message.number !== model.get("points").length - 1) return;
      mask = message.box && { box: message.box, picture: await createImageBitmap(new Blob([buffers[0]])) };
      if (!message.box) tell("No mask holds this point and no other class's.");
    }
    draw();
  });
  model.on("change:points", refresh);
  model.on("change:said", () => tell(model.get("said")));

  let waiting = false;
  function draw() {
    if (waiting || !view) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      paint();
    });
  }

  function place(picture, top, left, rows, cols) {
    const [x, y] = toScreen(top, left, view, width, height);
    context.drawImage(picture, x, y, cols * view.scale, rows * view.scale);
  }

  function paint() {
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = view.scale < 2;
    if (preview.complete && preview.naturalWidth) place(preview, 0, 0, ...size);
    const level = levelOf(view.scale * ratio, size);
    for (const [r, c] of tilesIn(view, level, width, height, size)) {
      const key = `${level}/${r}/${c}`;
      const tile = tiles.get(key);
      if (tile) place(tile, r * TILE * 2 ** level, c * TILE * 2 ** level, tile.height * 2 ** level, tile.width * 2 ** level);
      else if (tile === undefined) {
        tiles.set(key, null);
        model.send({ kind: "tile", level, row: r, col: c });
      }
    }
    if (mask) place(mask.picture, ...mask.box);
    const points = model.get("points");
    for (const [row, col, kind] of points) {
      const [x, y] = toScreen(row, col, view, width, height);
      context.beginPath();
      context.arc(x, y, 5, 0, 2 * Math.PI);
      context.fillStyle = classes[kind].color;
      context.strokeStyle = "white";
      context.lineWidth = 1.5;
      context.fill();
      context.stroke();
    }
    if (byKeys) {
      context.strokeStyle = "white";
      for (const [line, color] of [[3, "white"], [1, "black"]]) {
        context.lineWidth = line;
        context.strokeStyle = color;
        context.beginPath();
        context.moveTo(width / 2 - 12, height / 2);
        context.lineTo(width / 2 + 12, height / 2);
        context.moveTo(width / 2, height / 2 - 12);
        context.lineTo(width / 2, height / 2 + 12);
        context.stroke();
      }
    }
  }

  // --- pointer and keys ---

  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    byKeys = false;
    drag = { x: event.offsetX, y: event.offsetY, view, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const [dx, dy] = [event.offsetX - drag.x, event.offsetY - drag.y];
    if (Math.hypot(dx, dy) > 4) drag.moved = true;
    if (!drag.moved) return;
    view = { ...view, row: drag.view.row - dy / view.scale, col: drag.view.col - dx / view.scale };
    draw();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved) add(toScene(event.offsetX, event.offsetY, view, width, height));
    drag = null;
  });
  canvas.addEventListener("pointercancel", () => (drag = null));
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      view = zoomed(view, Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY, width, height);
      draw();
    },
    { passive: false },
  );
  const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  root.addEventListener("keydown", (event) => {
    const onCanvas = event.target === canvas;
    const step = (event.shiftKey ? 4 : 40) / view.scale;
    if (onCanvas && STEPS[event.key]) {
      view = { ...view, row: view.row + STEPS[event.key][0] * step, col: view.col + STEPS[event.key][1] * step };
    } else if (onCanvas && event.key === "Enter") add([view.row, view.col]);
    else if (onCanvas && event.key === "Delete") remove();
    else if (event.key >= "1" && event.key <= "9" && !event.ctrlKey && !event.metaKey) choose(Number(event.key) - 1);
    else if (event.key === "0") fit();
    else if (event.key === "+" || event.key === "=") view = zoomed(view, 1.5, width / 2, height / 2, width, height);
    else if (event.key === "-") view = zoomed(view, 1 / 1.5, width / 2, height / 2, width, height);
    else if (event.key === "u" || (event.key === "z" && (event.ctrlKey || event.metaKey))) undo();
    else if (event.key === "s" && !event.ctrlKey && !event.metaKey) save();
    else return;
    byKeys = onCanvas;
    event.preventDefault();
    event.stopPropagation(); // the notebook has these keys too
    draw();
  });

  const watch = new ResizeObserver(() => {
    const ratio = window.devicePixelRatio || 1;
    [width, height] = [canvas.clientWidth, canvas.clientHeight];
    [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (!width) return;
    if (view) draw();
    else fit();
  });
  watch.observe(canvas);
  refresh();
  return () => watch.disconnect();
}

export default { render };
