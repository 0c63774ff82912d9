// The explorer of a page without a kernel: every picture was computed beforehand (cards.py).
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const controls = document.getElementById("controls");
const deck = document.getElementById("deck");

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function choices(legend, type, name, options, checked) {
  const inputs = options.map(([value, ...label], i) =>
    make("label", {}, make("input", {type, name, value, checked: checked.includes(i)}), ...label));
  controls.append(make("fieldset", {}, make("legend", {textContent: legend}), ...inputs));
}

const thumbnails = data.images.map((image, i) =>
  [i, make("img", {src: image.url, alt: data.classes[image.label]})]);
choices("image", "radio", "image", thumbnails, [0]);
const start = ["Plain Net", "PGM Net", "2-Step L2L"].map((name) => data.defences.indexOf(name));
choices("classifiers", "checkbox", "defence", data.defences.map((name, i) => [i, name]), start);
const attack = make("select", {name: "attack"},
  ...data.attacks.map((name, i) => make("option", {value: i, textContent: name})));
attack.value = Math.max(data.attacks.findIndex((name) => name.startsWith("PGM")), 0);
controls.append(make("label", {}, "attack", attack));
const epsilon = make("input", {
  type: "range", name: "epsilon", min: 0, max: data.epsilons.length - 1,
  value: data.epsilons.indexOf(0.031),
});
const readout = make("output", {});
controls.append(make("label", {}, "ε", epsilon, readout));
choices("magnified", "radio", "times", [[1, "1×"], [5, "5×"], [30, "30×"]], [2]);

async function pixels(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = make("canvas", {width: image.width, height: image.height});
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(image, 0, 0);
  return context;
}

function card(title, verdict, kind, pictures, size, rows) {
  const parts = [make("h4", {textContent: title}),
    make("p", {className: `l2l-verdict l2l-${kind}`, textContent: verdict}),
    make("div", {className: "l2l-pictures"}, ...pictures)];
  parts.push(make("p", {className: "l2l-size", textContent: size}), rows);
  return make("section", {className: `l2l-card ${rows ? "" : "l2l-clean"}`}, ...parts);
}

function picture(values, side, alt, caption) {
  const canvas = make("canvas", {width: side.width, height: side.height});
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", alt);
  canvas.getContext("2d").putImageData(new ImageData(values, side.width, side.height), 0, 0);
  return make("figure", {}, canvas, make("figcaption", {textContent: caption}));
}

function table(before, after, kind) {
  const order = before.map((_, i) => i)
    .sort((a, b) => Math.max(before[b], after[b]) - Math.max(before[a], after[a]))
    .slice(0, 10).sort((a, b) => a - b);
  const percent = (value) => `${Math.round(value / 10)}%`;
  const bar = (tag, value, className) => {
    const element = make(tag, {className});
    element.style.width = `${value / 10}%`;
    return element;
  };
  const head = ["probability", "before", "after"].map((t) => make("td", {textContent: t}));
  return make("table", {},
    make("thead", {}, make("tr", {}, make("th", {textContent: "class"}), ...head)),
    make("tbody", {}, ...order.map((i) => make("tr", {},
      make("th", {textContent: data.classes[i]}),
      make("td", {className: "l2l-track"}, bar("i", before[i], ""), bar("b", after[i], `l2l-${kind}`)),
      make("td", {textContent: percent(before[i])}),
      make("td", {textContent: percent(after[i])})))));
}

const largest = (values) => values.indexOf(Math.max(...values));

function draw(clean, sprites) {
  const form = new FormData(controls);
  const image = Number(form.get("image")), a = Number(form.get("attack"));
  const step = Number(form.get("epsilon")), times = Number(form.get("times"));
  const eps = data.epsilons[step], label = data.images[image].label;
  readout.textContent = eps;
  epsilon.setAttribute("aria-valuetext", eps);
  const original = clean[image], side = {width: original.width, height: original.height};
  const name = data.classes[label];
  const cards = [card(`class ${name}`, `test image ${data.images[image].index}`, "",
    [picture(original.data, side, `clean image: ${name}`, "clean")], data.legend, "")];
  for (const d of form.getAll("defence").map(Number)) {
    const before = data.clean[d][image];
    const after = step ? data.cells[d][a].after[step - 1][image] : before;
    const delta = step
      ? sprites[d][a].getImageData((step - 1) * side.width, image * side.height, side.width, side.height).data
      : new Uint8ClampedArray(original.data.length).fill(128);
    const adversarial = new Uint8ClampedArray(original.data), magnified = adversarial.slice();
    let most = 0, sum = 0;
    for (let i = 0; i < delta.length; i++) {
      if (i % 4 === 3) continue;
      const value = eps * (delta[i] - 128) / 127;
      adversarial[i] = original.data[i] + 255 * value;
      magnified[i] = 255 * (0.5 + times * value);
      most = Math.max(most, Math.abs(value));
      sum += Math.abs(value);
    }
    const best = largest(after), says = `${data.classes[best]}, ${Math.round(after[best] / 10)}%`;
    const [kind, verdict] = largest(before) !== label ? ["wrong", `✗ wrong even clean: ${says}`]
      : best !== label ? ["fooled", `✗ fooled: ${says}`] : ["right", `✓ still right: ${says}`];
    const on = `${data.attacks[a]} on ${data.defences[d]}`;
    cards.push(card(data.defences[d], verdict, kind, [
      picture(adversarial, side, `adversarial image: ${on}, ${verdict}`, "adversarial"),
      picture(magnified, side, `perturbation × ${times}: ${on}, largest value ${most.toFixed(3)}`,
        `δ × ${times}`),
    ], `|δ|: largest ${most.toFixed(3)}, mean ${(sum / delta.length * 4 / 3).toFixed(3)}`,
    table(before, after, kind)));
  }
  deck.replaceChildren(...cards);
  document.getElementById("summary").textContent = cards.slice(1)
    .map((c) => `${c.querySelector("h4").textContent} ${c.querySelector("p").textContent}`)
    .join("; ");
}

(async () => {
  const clean = await Promise.all(data.images.map(async (image) => {
    const context = await pixels(image.url);
    return context.getImageData(0, 0, context.canvas.width, context.canvas.height);
  }));
  const sprites = await Promise.all(data.cells.map((row) =>
    Promise.all(row.map((cell) => pixels(cell.deltas)))));
  controls.addEventListener("input", () => draw(clean, sprites));
  draw(clean, sprites);
})();
