// A deck of cards: a test image, and a card for each attack on it. Live notebooks show it through
// anywidget (`render`), the page without a kernel inlines this module and calls `page`.
// A deck is plain data (cards.py):
//   classes: their names; index, label: the test image's number and class;
//   image: its values 0 to 255, height × width × 1 or 3;
//   cards: {title, attack, delta: like image, in units of 1; before, after: chances of the classes}

const BARS = 10; // classes that a card has bars for
const LEGEND = "bars: above before, below after the attack";

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const text = (tag, textContent, className = "") => make(tag, {textContent, className});
const percent = (chance) => `${Math.round(100 * chance)}%`;
const largest = (values) => values.indexOf(Math.max(...values));

// A picture of the image's size with `value(i)`, 0 to 255, in place of the image's value i.
function picture({image, height, width}, value, alt, caption) {
  const canvas = make("canvas", {width, height, role: "img", ariaLabel: alt});
  const pixels = new ImageData(width, height), channels = image.length / (width * height);
  pixels.data.forEach((_, i) => {
    pixels.data[i] = i % 4 === 3 ? 255 : value((i >> 2) * channels + (i % 4) % channels);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return make("figure", {}, canvas, text("figcaption", caption));
}

function card(className, title, verdict, kind, pictures, size, ...rest) {
  return make("section", {className: `l2l-card ${className}`}, text("h4", title),
    text("p", verdict, `l2l-verdict ${kind}`),
    make("div", {className: "l2l-pictures"}, ...pictures), text("p", size, "l2l-size"), ...rest);
}

function cleanCard(deck) {
  const name = deck.classes[deck.label];
  const clean = picture(deck, (i) => deck.image[i], `clean image: class ${name}`, "clean");
  return card("l2l-clean", `class ${name}`, `test image ${deck.index}`, "", [clean], LEGEND);
}

function verdictOf({before, after}, {classes, label}) {
  const best = largest(after), says = `${classes[best]}, ${percent(after[best])}`;
  if (largest(before) !== label) return ["l2l-wrong", `✗ wrong even clean: ${says}`];
  if (best !== label) return ["l2l-fooled", `✗ fooled: ${says}`];
  return ["l2l-right", `✓ still right: ${says}`];
}

// The adversarial image, δ × `times` (grey is zero; at 1× as small as it is), and the chances.
function attackedCard(attacked, deck, times) {
  const {title, attack, delta} = attacked, [kind, verdict] = verdictOf(attacked, deck);
  const sizes = delta.map(Math.abs);
  const most = sizes.reduce((a, b) => Math.max(a, b)).toFixed(3);
  const mean = (sizes.reduce((a, b) => a + b) / sizes.length).toFixed(3);
  return card("", title, verdict, kind, [
    picture(deck, (i) => deck.image[i] + 255 * delta[i],
      `adversarial image: ${attack} on ${title}, ${verdict}`, "adversarial"),
    picture(deck, (i) => 255 * (0.5 + times * delta[i]),
      `perturbation × ${times}: ${attack} on ${title}, largest value ${most}`, `δ × ${times}`),
  ], `|δ|: largest ${most}, mean ${mean}`, bars(attacked, deck.classes, kind));
}

function bars({before, after}, classes, kind) {
  const size = (i) => Math.max(before[i], after[i]);
  const shown = classes.map((_, i) => i).sort((a, b) => size(b) - size(a)).slice(0, BARS);
  const bar = (tag, chance, className) => {
    const element = make(tag, {className});
    element.style.width = `${100 * chance}%`;
    return element;
  };
  const head = [text("th", "class"), ...["probability", "before", "after"].map((t) => text("td", t))];
  const rows = shown.sort((a, b) => a - b).map((i) => make("tr", {},
    make("th", {textContent: classes[i], title: classes[i]}),
    make("td", {className: "l2l-track"}, bar("i", before[i], ""), bar("b", after[i], kind)),
    text("td", percent(before[i])), text("td", percent(after[i]))));
  return make("table", {},
    make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
}

// Puts an empty deck into `parent`; the function returned fills it, and says so in words.
function deckIn(parent) {
  const summary = make("p", {role: "status", className: "l2l-unseen"});
  const place = make("div", {className: "l2l-deck"});
  parent.append(summary, place);
  return (deck, times) => {
    const cards = deck.cards.map((attacked) => attackedCard(attacked, deck, times));
    place.replaceChildren(cleanCard(deck), ...cards);
    const words = deck.cards.map((attacked) => `${attacked.title} ${verdictOf(attacked, deck)[1]}`);
    summary.textContent = words.join("; ");
  };
}

// Live: bytes come as DataViews into a message, at places that no Float32Array may begin at.
const bytes = (view) => view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);

function render({model, el}) {
  const show = deckIn(el);
  const draw = () => {
    const {image, cards, ...deck} = model.get("content");
    if (!cards) return; // nothing has been shown yet
    show({...deck, image: new Uint8Array(bytes(image)), cards: cards.map((attacked) =>
      ({...attacked, delta: new Float32Array(bytes(attacked.delta))}))}, model.get("times"));
  };
  model.on("change:content change:times", draw);
  draw();
}

export default {render};

// Without a kernel: the form, and decks of what was computed beforehand (cards.py, `page`).
export async function page(parent, data) {
  const controls = make("form", {});
  parent.prepend(controls);
  const choices = (legend, type, name, options, checked) => {
    const labels = options.map(([value, label], i) => make("label", {},
      make("input", {type, name, value, checked: checked.includes(i)}), label));
    controls.append(make("fieldset", {}, text("legend", legend), ...labels));
  };
  choices("image", "radio", "image", data.images.map(({url, label}, i) =>
    [i, make("img", {src: url, alt: data.classes[label]})]), [0]);
  const start = ["Plain Net", "PGM Net", "2-Step L2L"].map((name) => data.defences.indexOf(name));
  choices("classifiers", "checkbox", "defence", data.defences.map((name, i) => [i, name]), start);
  const attacks = data.attacks.map((name, value) => make("option", {value, textContent: name}));
  const attack = make("select", {name: "attack"}, ...attacks);
  attack.value = Math.max(data.attacks.findIndex((name) => name.startsWith("PGM")), 0);
  const epsilon = make("input", {type: "range", name: "epsilon", max: data.epsilons.length - 1});
  epsilon.value = data.epsilons.indexOf(0.031);
  const readout = make("output", {});
  controls.append(make("label", {}, "attack", attack), make("label", {}, "ε", epsilon, readout));
  choices("magnified", "radio", "times", [[1, "1×"], [5, "5×"], [30, "30×"]], [2]);

  const place = make("div", {});
  controls.after(place);
  const show = deckIn(place);
  const images = await Promise.all(data.images.map(({url}) => drawn(url)));
  const sprites = await Promise.all(data.cells.flat().map(({deltas}) => drawn(deltas)));
  const {width, height} = images[0].canvas;

  const attacked = (d, a, step, image) => {
    const cell = data.cells[d][a], before = data.clean[d][image].map((chance) => chance / 1000);
    const about = {title: data.defences[d], attack: data.attacks[a], before};
    if (!step) return {...about, after: before, delta: new Float32Array(3 * width * height)};
    const sprite = sprites[d * data.attacks.length + a];
    const steps = rgb(sprite, (step - 1) * width, image * height, width, height);
    const delta = Float32Array.from(steps, (v) => data.epsilons[step] * (v - 128) / 127);
    return {...about, after: cell.after[step - 1][image].map((chance) => chance / 1000), delta};
  };
  const draw = () => {
    const form = new FormData(controls);
    const [i, a, step, times] =
      ["image", "attack", "epsilon", "times"].map((name) => Number(form.get(name)));
    readout.textContent = epsilon.ariaValueText = data.epsilons[step];
    const {index, label} = data.images[i], image = rgb(images[i], 0, 0, width, height);
    const cards = form.getAll("defence").map((d) => attacked(Number(d), a, step, i));
    show({classes: data.classes, index, label, image, width, height, cards}, times);
  };
  controls.addEventListener("input", draw);
  draw();
}

async function drawn(url) {
  const image = make("img", {src: url});
  await image.decode();
  const {width, height} = image;
  const context = make("canvas", {width, height}).getContext("2d", {willReadFrequently: true});
  context.drawImage(image, 0, 0);
  return context;
}

const rgb = (context, ...box) => context.getImageData(...box).data.filter((_, i) => i % 4 < 3);
