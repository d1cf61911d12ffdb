// Two pictures, one over the other, cut at a handle. See swipe.py.

/** Where the handle is after a key: percent of the width; the same where the key means nothing. */
export function moved(place, key) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10, Home: -100, End: 100 };
  return Math.min(100, Math.max(0, place + (steps[key] ?? 0)));
}

/** Where a pointer at x is over a box: percent of its width. */
export function placeOf(x, left, width) {
  return Math.min(100, Math.max(0, (100 * (x - left)) / width));
}

function render({ model, el }) {
  const pictures = model.get("pictures");
  const data = new Map(pictures.map((p) => [p.title, p.data]));
  const choose = (side) => {
    const select = element("select", { "aria-label": `picture on the ${side}` });
    for (const { title } of pictures) select.append(element("option", { value: title }, title));
    select.addEventListener("change", () => put(side, select.value));
    return select;
  };
  const selects = { left: choose("left"), right: choose("right") };
  const under = element("img", { draggable: "false" });
  const over = element("img", { class: "over", draggable: "false", alt: "" });
  const line = element("div", { class: "line", "aria-hidden": "true" });
  const range = element("input", { type: "range", min: "0", max: "100", step: "1", "aria-label": "handle: how much of the left picture is seen" });
  const stage = element("div", { class: "stage" }, under, over, line);
  const names = model.get("legend").map(({ name, color }) => {
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = color;
    return element("span", { class: "class" }, swatch, name);
  });
  const head = element("div", { class: "head" }, selects.left, element("span", { class: "turn" }, "◀ swipe ▶"), selects.right);
  el.append(element("div", { class: "rsseglab-swipe" }, head, stage, range, element("div", { class: "legend" }, ...names)));

  function put(name, value) {
    model.set(name, value);
    model.save_changes();
    refresh();
  }

  function refresh() {
    const place = model.get("place");
    over.src = data.get(model.get("left"));
    under.src = data.get(model.get("right"));
    under.alt = `${model.get("alt")} Left: ${model.get("left")}; right: ${model.get("right")}.`;
    over.style.clipPath = `inset(0 ${100 - place}% 0 0)`;
    line.style.left = `${place}%`;
    range.value = String(Math.round(place));
    for (const side of ["left", "right"]) selects[side].value = model.get(side);
  }

  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    put("place", placeOf(event.clientX, box.left, box.width));
  };
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => event.buttons && follow(event));
  range.addEventListener("input", () => put("place", Number(range.value)));
  range.addEventListener("keydown", (event) => {
    const place = moved(model.get("place"), event.key);
    if (place === model.get("place")) return;
    event.preventDefault();
    put("place", place);
  });
  model.on("change:place change:left change:right", refresh);
  refresh();
}

export default { render };
