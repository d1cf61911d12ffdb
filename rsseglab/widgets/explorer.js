// The knobs of a figure whose settings are all drawn already. See explorer.py.

/** Number of a setting's picture: the last knob's values lie side by side. */
export function numberOf(knobs, chosen) {
  return knobs.reduce((number, knob, i) => number * knob.values.length + chosen[i], 0);
}

/** A text with the value of each knob in the place of its name in braces. */
export function filled(text, knobs, chosen) {
  return knobs.reduce((done, knob, i) => done.replaceAll(`{${knob.name}}`, knob.values[chosen[i]]), text);
}

function render({ model, el }) {
  const knobs = model.get("knobs");
  const picture = element("img", {});
  const controls = knobs.map((knob, i) => {
    const shown = element("output", {});
    const input = knob.slider
      ? element("input", { type: "range", min: "0", max: String(knob.values.length - 1), step: "1" })
      : element("select", {}, ...knob.values.map((text, k) => element("option", { value: String(k) }, text)));
    input.addEventListener("input", () => {
      model.set("chosen", model.get("chosen").map((k, j) => (j === i ? Number(input.value) : k)));
      model.save_changes();
      refresh();
    });
    const label = element("label", {}, element("span", { class: "name" }, knob.name), input, ...(knob.slider ? [shown] : []));
    return { input, shown, label };
  });
  el.append(
    element("div", { class: "rsseglab-explorer" }, element("div", { class: "knobs" }, ...controls.map((c) => c.label)), picture),
  );

  function refresh() {
    const chosen = model.get("chosen");
    picture.src = model.get("pictures")[numberOf(knobs, chosen)];
    picture.alt = filled(model.get("alt"), knobs, chosen);
    controls.forEach(({ input, shown }, i) => {
      const text = knobs[i].values[chosen[i]];
      input.value = String(chosen[i]);
      if (knobs[i].slider) input.setAttribute("aria-valuetext", text);
      shown.textContent = text;
    });
  }

  model.on("change:chosen", refresh);
  refresh();
}

export default { render };
