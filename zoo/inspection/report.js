"use strict";
// The page's data is in #data; what is chosen is in `state`; every panel is drawn from the two by a function of its own.
// Texts reach the page as text nodes only, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const state = { map: 0, layer: 0, head: 0, query: 0, allBars: false };
const MEAN = -1;
const BARS = 16;
const current = () => data.maps[state.map];

// ---- reading the arrays ------------------------------------------------------------------------------------------

function slice(numbers, ...index) {
  // The numbers behind the first axes, as Float64Array; what is not finite is NaN.
  let size = numbers.data.length, start = 0;
  index.forEach((place, axis) => { size /= numbers.shape[axis]; start += place * size; });
  return Float64Array.from(numbers.data.slice(start, start + size), (x) => x === null ? NaN : x * numbers.unit);
}

function weightsOf(query, head = state.head) {
  const map = current();
  if (head !== MEAN) return slice(map.weights, state.layer, head, query);
  const rows = [...Array(map.heads).keys()].map((n) => slice(map.weights, state.layer, n, query));
  return rows[0].map((_, s) => rows.reduce((sum, row) => sum + row[s], 0) / map.heads);
}

const percent = (x) => (100 * x).toFixed(x > 0 && x < 0.0995 ? 1 : 0) + " %";
const round = (x) => Number.isNaN(x) ? "masked" : x.toFixed(Math.abs(x) < 10 ? 3 : 1);
const label = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length)) || "∅";
const short = (text) => label(text).length > 16 ? label(text).slice(0, 15) + "…" : label(text);
const headName = (head) => head === MEAN ? "mean of all heads" : `head ${head + 1}`;
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// ---- small parts ---------------------------------------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function options(select, names, first = 0) {
  select.replaceChildren(...names.map((name, place) => make("option", { value: place + first, textContent: name })));
}

function paint(node, share) {
  // Colour a box by a share from 0 to 1; ink turns where the colour is deep.
  const deep = Math.pow(Math.max(0, Math.min(1, share)), 0.6) * 0.9;
  node.style.backgroundColor = `rgba(${css("--mark")}, ${deep.toFixed(3)})`;
  node.style.color = deep > 0.5 ? css("--ground") : "";
}

function rove(container, columns) {
  // One tab stop for a group of buttons; arrow keys walk inside. `columns()` says how far up and down are.
  container.addEventListener("keydown", (event) => {
    const items = [...container.querySelectorAll("button")], place = items.indexOf(document.activeElement);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
    const wanted = event.key === "Home" ? 0 : event.key === "End" ? items.length - 1 : place + (steps[event.key] ?? NaN);
    if (place < 0 || !items[wanted]) return;
    event.preventDefault();
    items.forEach((item) => { item.tabIndex = -1; });
    items[wanted].tabIndex = 0;
    items[wanted].focus();
  });
}

function oneStop(container, chosen) {
  const items = [...container.querySelectorAll("button")];
  items.forEach((item, place) => { item.tabIndex = place === Math.max(0, chosen) ? 0 : -1; });
}

function sized(canvas, width, height) {
  // A canvas of CSS pixels that is sharp on every screen.
  const ratio = window.devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.width = width + "px";
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

function placeIn(canvas, event) {
  // Where the pointer is, in the units that were drawn in.
  const box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
  return [(event.clientX - box.left) * canvas.width / box.width / ratio, (event.clientY - box.top) * canvas.height / box.height / ratio];
}

function best(row, count) {
  return [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, count);
}

// ---- controls ------------------------------------------------------------------------------------------------------

function fillControls() {
  const map = current();
  state.layer = Math.min(state.layer, map.layers - 1);
  state.head = Math.min(state.head, map.heads - 1);
  state.query = Math.min(state.query, map.queries.length - 1);
  options($("layer"), [...Array(map.layers).keys()].map((n) => `${n + 1} of ${map.layers}`));
  options($("head"), ["mean of all", ...[...Array(map.heads).keys()].map((n) => `${n + 1} of ${map.heads}`)], MEAN);
  options($("token"), map.queries.map((text, place) => `${place + 1}: ${label(text)}`));
  options($("figure"), figures().map((figure) => figure.name));
}

function choose(changes) {
  const kind = changes.map !== undefined && changes.map !== state.map;
  Object.assign(state, changes);
  if (kind) {
    // The same token where it is there; of another sequence, the last one.
    if (changes.query === undefined) state.query = current().queries.length - 1;
    fillControls();
  }
  draw();
}

function draw() {
  $("kind").value = state.map;
  $("layer").value = state.layer;
  $("head").value = state.head;
  $("token").value = state.query;
  for (const panel of [drawPicture, drawTokens, drawMatrix, drawHeads, drawBars, drawNumbers, drawRollout, drawLens]) panel();
}

// ---- the panels ----------------------------------------------------------------------------------------------------

function drawTokens() {
  const map = current(), fill = (id, texts, tag) => $(id).replaceChildren(...texts.map((text, place) => {
    const chip = make(tag, { className: "chip", textContent: label(text), title: `position ${place + 1}` });
    if (tag === "button") chip.type = "button";
    chip.dataset.index = place;
    return chip;
  }));
  const focused = $("queries").contains(document.activeElement) ? Number(document.activeElement.dataset.index) : null;
  fill("queries", map.queries, "button");
  fill("keys", map.keys, "span");
  oneStop($("queries"), state.query);
  if (focused !== null) $("queries").children[focused]?.focus();
  look(state.query);
}

function look(query) {
  const map = current(), row = weightsOf(query), largest = Math.max(...row) || 1;
  [...$("queries").children].forEach((chip, place) => {
    chip.classList.toggle("chosen", place === query);
    chip.setAttribute("aria-pressed", place === state.query);
  });
  [...$("keys").children].forEach((chip, place) => {
    paint(chip, row[place] / largest);
    chip.title = `position ${place + 1}: ${percent(row[place])}`;
  });
  const total = row.reduce((sum, x) => sum + x, 0);
  const said = best(row, 3).filter((s) => row[s] > 0).map((s) => `“${label(map.keys[s])}” ${percent(row[s])}`);
  const rest = total > 0 && total < 0.995 ? `; ${percent(1 - total)} goes to a sink, which is no token` : "";
  $("tokens-said").textContent =
    `Layer ${state.layer + 1}, ${headName(state.head)}: “${label(map.queries[query])}” looks at ` +
    (said.length ? said.join(", ") : "nothing") + rest + ".";
}

const matrix = { size: 1, left: 0, top: 0, row: 0, column: 0 };

function drawMatrix() {
  const map = current(), canvas = $("matrix"), T = map.queries.length, S = map.keys.length;
  const size = Math.max(2, Math.min(26, Math.floor(880 / S), Math.floor(640 / T)));
  const context = canvas.getContext("2d"), named = size >= 11;
  context.font = "12px ui-monospace, monospace";
  const widest = (texts) => named ? Math.min(120, Math.max(...texts.map((text) => context.measureText(short(text)).width))) + 8 : 0;
  matrix.size = size;
  matrix.left = widest(map.queries);
  matrix.top = widest(map.keys);
  const brush = sized(canvas, matrix.left + S * size + 1, matrix.top + T * size + 1);
  brush.font = `${Math.min(12, size - 1)}px ui-monospace, monospace`;
  const rows = map.queries.map((_, t) => weightsOf(t)), largest = Math.max(...rows.map((row) => Math.max(...row))) || 1;
  const mark = css("--mark");
  rows.forEach((row, t) => row.forEach((weight, s) => {
    brush.fillStyle = `rgba(${mark}, ${Math.pow(weight / largest, 0.6).toFixed(3)})`;
    brush.fillRect(matrix.left + s * size, matrix.top + t * size, size, size);
  }));
  $("matrix-legend").textContent = `The deepest colour is ${percent(largest)}, no colour is 0 %.`;
  if (named) {
    brush.fillStyle = css("--ink");
    brush.textBaseline = "middle";
    map.queries.forEach((text, t) => brush.fillText(short(text), 2, matrix.top + (t + 0.5) * size, matrix.left - 4));
    brush.save();
    brush.rotate(-Math.PI / 2);
    map.keys.forEach((text, s) => brush.fillText(short(text), 4 - matrix.top, matrix.left + (s + 0.5) * size, matrix.top - 6));
    brush.restore();
  }
  brush.strokeStyle = css("--line");
  brush.strokeRect(matrix.left + 0.5, matrix.top + 0.5, S * size, T * size);
  brush.strokeStyle = css("--chosen");
  brush.lineWidth = 2;
  brush.strokeRect(matrix.left, matrix.top + state.query * size, S * size, size);
  canvas.setAttribute("aria-label", `Attention map, ${map.name}, layer ${state.layer + 1}, ${headName(state.head)}: ` +
    `${T} rows of tokens that look, ${S} columns of tokens looked at. Arrow keys walk, Enter chooses.`);
  sayCell(state.query, Math.min(matrix.column, S - 1));
}

function sayCell(row, column) {
  const map = current();
  if (row < 0 || column < 0 || row >= map.queries.length || column >= map.keys.length) return false;
  Object.assign(matrix, { row, column });
  $("matrix-said").textContent = `“${label(map.queries[row])}” (${row + 1}) looks at “${label(map.keys[column])}” ` +
    `(${column + 1}): ${percent(weightsOf(row)[column])}`;
  return true;
}

function figures() {
  const map = current(), found = [{
    name: "spread (entropy)", rows: map.entropy, format: (x) => x.toFixed(2),
    note: `Bits, the mean over tokens: 0 is one key alone, ${Math.log2(map.keys.length).toFixed(2)} is all ${map.keys.length} keys alike.`,
  }];
  if (map.distance) found.push({
    name: "reach (mean distance)", rows: map.distance, format: (x) => x.toFixed(1),
    note: "How many positions away from itself a token looks, on average.",
  });
  const effects = data.ablation?.effects[map.path];
  if (effects && effects.length === map.layers) found.push({
    name: "worth (rise of the loss without it)", rows: effects, format: (x) => x.toPrecision(2),
    note: `Rise of the ${data.ablation.measure} when the head is silenced.`,
  });
  return found;
}

function drawHeads() {
  const map = current(), figure = figures()[Number($("figure").value)] ?? figures()[0];
  const all = figure.rows.flat(), low = Math.min(...all), high = Math.max(...all), grid = $("heads");
  const focused = grid.contains(document.activeElement);
  grid.style.gridTemplateColumns = `auto repeat(${map.heads}, max-content)`;
  grid.replaceChildren(...figure.rows.flatMap((row, layer) => [make("span", { textContent: `layer ${layer + 1}` }), ...row.map((value, head) => {
    const cell = make("button", { type: "button", textContent: figure.format(value), title: `layer ${layer + 1}, head ${head + 1}` });
    cell.setAttribute("aria-label", `layer ${layer + 1}, head ${head + 1}: ${figure.format(value)}`);
    const chosen = layer === state.layer && head === state.head;
    cell.classList.toggle("chosen", chosen);
    cell.setAttribute("aria-pressed", chosen);
    paint(cell, high > low ? (value - low) / (high - low) : 0);
    cell.addEventListener("click", () => choose({ layer, head }));
    return cell;
  })]));
  const place = state.head === MEAN ? 0 : state.layer * map.heads + state.head;
  oneStop(grid, place);
  if (focused) grid.querySelectorAll("button")[place]?.focus();
  $("figure-said").textContent = figure.note;
}

function drawBars() {
  if (!data.ablation) return;
  $("panel-ablation").hidden = false;
  $("ablation-said").textContent = `Measured: ${data.ablation.measure}; ${data.ablation.whole.toPrecision(4)} with all heads.`;
  const all = data.maps.flatMap((map, index) => (data.ablation.effects[map.path] ?? []).flatMap((row, layer) =>
    row.map((effect, head) => ({ index, map, layer, head, effect }))));
  all.sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect));
  const shown = all.slice(0, state.allBars ? all.length : BARS).sort((a, b) => b.effect - a.effect);
  const largest = Math.max(...all.map((bar) => Math.abs(bar.effect))) || 1;
  const focused = $("bars").contains(document.activeElement) ? [...$("bars").children].indexOf(document.activeElement) : null;
  $("bars").replaceChildren(...shown.map(({ index, map, layer, head, effect }) => {
    const bar = make("b"), width = 50 * Math.abs(effect) / largest;
    bar.style.width = width + "%";
    bar.style.left = (effect >= 0 ? 50 : 50 - width) + "%";
    bar.style.backgroundColor = effect >= 0 ? `rgb(${css("--mark")})` : css("--good");
    const line = make("button", { type: "button" }, make("span", { textContent: `${map.name}, layer ${layer + 1}, head ${head + 1}` }),
      make("i", {}, bar), make("span", { textContent: (effect >= 0 ? "+" : "") + effect.toPrecision(3) }));
    line.setAttribute("aria-label", `${map.name}, layer ${layer + 1}, head ${head + 1}: loss ${effect.toPrecision(3)}`);
    line.classList.toggle("chosen", index === state.map && layer === state.layer && head === state.head);
    line.addEventListener("click", () => choose({ map: index, layer, head }));
    return line;
  }));
  if (focused !== null) $("bars").children[focused]?.focus();
  $("more-bars").hidden = all.length <= BARS;
  $("more-bars").textContent = state.allBars ? `Show the ${BARS} largest` : `Show all ${all.length} heads`;
}

function vectorCell(vector, largest) {
  const cell = make("td", { className: "vector" });
  if ($("as-numbers").checked) {
    cell.textContent = Array.from(vector, (x) => x.toFixed(2)).join(" ");
    return cell;
  }
  const canvas = make("canvas", { title: Array.from(vector, (x) => x.toFixed(2)).join(" ") });
  const size = Math.max(2, Math.min(7, Math.floor(224 / vector.length)));
  const brush = sized(canvas, vector.length * size, 16), cold = css("--cold"), hot = css("--hot");
  vector.forEach((x, place) => {
    const strength = Math.min(1, Math.abs(x) / largest);
    brush.fillStyle = `rgba(${x < 0 ? cold : hot}, ${strength.toFixed(3)})`;
    brush.fillRect(place * size, 0, size, 16);
  });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${vector.length} components`);
  cell.append(canvas);
  return cell;
}

function drawNumbers() {
  const map = current(), row = weightsOf(state.query), one = state.head !== MEAN, vectors = one && map.query !== null;
  $("as-numbers").parentElement.hidden = !vectors;
  $("numbers-note").textContent = !one ? "Choose one head above to see its queries, keys and values; this is the mean of all."
    : !vectors ? "This page holds no queries, keys and values: the attention has none of the usual kind, or they were too many. " +
      "zoo.inspection.inspect gives them in Python." : `Layer ${state.layer + 1}, ${headName(state.head)}.`;
  const head = (text) => make("th", { textContent: text, scope: "col" });
  const named = (text) => make("td", { className: "token", textContent: text });
  const number = (text) => make("td", { textContent: text });
  const lines = [];
  let largest = 1, values = 1, keyHead = 0;
  if (vectors) {
    keyHead = Math.floor(state.head / (map.heads / map.key.shape[2]));
    const all = [slice(map.query, state.layer, state.query, state.head), ...map.keys.map((_, s) => slice(map.key, state.layer, s, keyHead))];
    largest = Math.max(1e-9, ...all.map((x) => Math.max(...x.map(Math.abs))));
    values = Math.max(1e-9, ...map.keys.map((_, s) => Math.max(...slice(map.value, state.layer, s, keyHead).map(Math.abs))));
    lines.push(make("tr", { className: "strong" }, named(`query of “${label(map.queries[state.query])}”`), number(""), number(""),
      vectorCell(all[0], largest), number("")));
  }
  const scores = vectors ? slice(map.scores, state.layer, state.head, state.query) : null;
  map.keys.forEach((text, s) => {
    const weight = number(percent(row[s]));
    paint(weight, row[s]);
    const cells = [named(`${s + 1} ${label(text)}`)];
    if (vectors) cells.push(number(round(scores[s])));
    cells.push(weight);
    if (vectors) cells.push(vectorCell(slice(map.key, state.layer, s, keyHead), largest), vectorCell(slice(map.value, state.layer, s, keyHead), values));
    lines.push(make("tr", {}, ...cells));
  });
  if (vectors) lines.push(make("tr", { className: "strong" }, named("context vector"), number(""), number("Σ"), number(""),
    vectorCell(slice(map.context, state.layer, state.query, state.head), values)));
  const heads = vectors ? ["looked at", "score", "weight", "key", "value"] : ["looked at", "weight"];
  $("numbers").replaceChildren(make("table", {}, make("thead", {}, make("tr", {}, ...heads.map(head))), make("tbody", {}, ...lines)));
}

function drawRollout() {
  const map = current();
  $("panel-rollout").hidden = !map.rollout;
  if (!map.rollout) return;
  const row = slice(map.rollout, state.layer, state.query), largest = Math.max(...row) || 1;
  $("rollout").replaceChildren(...map.keys.map((text, place) => {
    const chip = make("span", { className: "chip", textContent: label(text), title: percent(row[place]) });
    paint(chip, row[place] / largest);
    return chip;
  }));
  $("rollout-said").textContent = `After layer ${state.layer + 1}, “${label(map.queries[state.query])}” is made of ` +
    best(row, 4).map((s) => `“${label(map.keys[s])}” ${percent(row[s])}`).join(", ") + ".";
}

function drawLens() {
  const lens = data.lens;
  if (!lens || $("lens").firstChild) { // what it shows depends on nothing that is chosen
    if (lens) $("lens").querySelectorAll("button").forEach((cell) => paint(cell, Number(cell.dataset.share)));
    return;
  }
  $("panel-lens").hidden = false;
  $("lens-note").textContent = "A row for each layer. Each cell is the likeliest answer if the model stopped there, the deeper the colour the surer; " +
    (lens.causal ? "a column is a token that was read, and the answer is the token that it expects next. " : "") +
    "The last row is the model's own answer. Point at a cell, or walk with the arrow keys, to see the runners-up.";
  const rows = lens.answers.map((layer, l) => make("tr", {}, make("th", { scope: "row", textContent: l ? `layer ${l}` : "embeddings" }),
    ...layer.map((cell, t) => {
      const share = lens.probabilities[l][t];
      const button = make("button", { type: "button", textContent: label(cell[0]) });
      button.dataset.share = share[0];
      paint(button, share[0]);
      const say = () => {
        $("lens").querySelectorAll(".chosen").forEach((other) => other.classList.remove("chosen"));
        button.classList.add("chosen");
        $("lens-said").textContent = `${l ? `After layer ${l}` : "From the embeddings"}, at “${label(lens.columns[t])}”: ` +
          cell.map((answer, k) => `“${label(answer)}” ${percent(share[k])}`).join(", ");
      };
      for (const event of ["pointerenter", "focus", "click"]) button.addEventListener(event, say);
      return make("td", {}, button);
    })));
  const head = make("tr", {}, make("th"), ...lens.columns.map((text) => make("th", { className: "token", scope: "col", textContent: label(text) })));
  $("lens").append(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  oneStop($("lens"), 0);
  rove($("lens"), () => lens.columns.length);
}

const picture = { image: null, scale: 1 };

function drawPicture() {
  const map = current(), shown = data.picture;
  $("panel-picture").hidden = !shown || !map.pictured;
  if (!shown || !map.pictured || !picture.image) return;
  const patches = Boolean(map.rollout), whole = picture.image;
  const scale = Math.max(1, Math.min(24, Math.round(420 / whole.width))), canvas = $("picture");
  const brush = sized(canvas, whole.width * scale, whole.height * scale);
  brush.imageSmoothingEnabled = false;
  brush.drawImage(whole, 0, 0, whole.width * scale, whole.height * scale);
  const [height, width] = [whole.height * scale / shown.rows, whole.width * scale / shown.columns];
  const wanted = document.querySelector("input[name=overlay]:checked").value;
  document.querySelector("input[value=rollout]").disabled = !map.rollout;
  const row = wanted === "rollout" && map.rollout ? slice(map.rollout, state.layer, state.query) : weightsOf(state.query);
  const looked = row.slice(shown.first), largest = Math.max(...looked) || 1;
  if (wanted !== "none") looked.forEach((weight, place) => {
    const [y, x] = [Math.floor(place / shown.columns), place % shown.columns];
    brush.fillStyle = `rgba(10, 12, 20, ${(0.82 * (1 - weight / largest)).toFixed(3)})`;
    brush.fillRect(x * width, y * height, width, height);
  });
  const place = state.query - shown.first;
  if (patches && place >= 0) {
    brush.strokeStyle = css("--chosen");
    brush.lineWidth = 3;
    brush.strokeRect((place % shown.columns) * width + 1.5, Math.floor(place / shown.columns) * height + 1.5, width - 3, height - 3);
  }
  $("class-token").hidden = !patches || shown.first === 0;
  const [top] = best(looked, 1), toPatches = looked.reduce((sum, x) => sum + x, 0);
  $("picture-said").textContent = wanted === "none" ? "" : `“${label(map.queries[state.query])}” ` +
    `${wanted === "rollout" ? "is made" : "looks"} most ${wanted === "rollout" ? "of" : "at"} the patch in row ` +
    `${Math.floor(top / shown.columns) + 1}, column ${top % shown.columns + 1}: ${percent(looked[top])}; ` +
    `all patches together have ${percent(toPatches)}.`;
  canvas.setAttribute("aria-label", `The picture in ${shown.rows} by ${shown.columns} patches. ${$("picture-said").textContent}`);
}

// ---- what the reader does ------------------------------------------------------------------------------------------

function listen() {
  for (const [id, name] of [["kind", "map"], ["layer", "layer"], ["head", "head"], ["token", "query"]])
    $(id).addEventListener("change", (event) => choose({ [name]: Number(event.target.value) }));
  $("figure").addEventListener("change", drawHeads);
  $("as-numbers").addEventListener("change", drawNumbers);
  $("more-bars").addEventListener("click", () => choose({ allBars: !state.allBars }));
  const place = (event) => event.target.closest?.("[data-index]")?.dataset.index;
  for (const kind of ["pointerover", "focusin"]) $("queries").addEventListener(kind, (event) => {
    if (place(event) !== undefined) look(Number(place(event)));
  });
  for (const kind of ["pointerleave", "focusout"]) $("queries").addEventListener(kind, () => look(state.query));
  $("queries").addEventListener("click", (event) => { if (place(event) !== undefined) choose({ query: Number(place(event)) }); });
  rove($("queries"), () => 1);
  rove($("heads"), () => current().heads);
  rove($("bars"), () => 1);

  const cell = (event) => {
    const [x, y] = placeIn($("matrix"), event);
    return [Math.floor((y - matrix.top) / matrix.size), Math.floor((x - matrix.left) / matrix.size)];
  };
  $("matrix").addEventListener("pointermove", (event) => sayCell(...cell(event)));
  $("matrix").addEventListener("click", (event) => { if (sayCell(...cell(event))) choose({ query: matrix.row }); });
  $("matrix").addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (step) { event.preventDefault(); sayCell(matrix.row + step[0], matrix.column + step[1]); }
    if (event.key === "Enter") choose({ query: matrix.row });
  });

  const patch = (row, column) => {
    const shown = data.picture, map = current();
    if (!map.rollout || row < 0 || column < 0 || row >= shown.rows || column >= shown.columns) return;
    choose({ query: shown.first + row * shown.columns + column });
  };
  $("picture").addEventListener("click", (event) => {
    const [x, y] = placeIn($("picture"), event), box = $("picture"), ratio = window.devicePixelRatio || 1;
    patch(Math.floor(y / (box.height / ratio / data.picture.rows)), Math.floor(x / (box.width / ratio / data.picture.columns)));
  });
  $("picture").addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = Math.max(0, state.query - data.picture.first), columns = data.picture.columns;
    patch(Math.floor(at / columns) + step[0], at % columns + step[1]);
  });
  $("class-token").addEventListener("click", () => choose({ query: 0 }));
  document.querySelectorAll("input[name=overlay]").forEach((input) => input.addEventListener("change", drawPicture));
  $("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
  draw();
}

function start() {
  $("title").textContent = data.title;
  $("facts").textContent = data.facts.join(" · ");
  options($("kind"), data.maps.map((map) => map.name));
  state.query = data.picture ? 0 : data.maps[0].queries.length > 1 && data.maps[0].path.includes("encoder") ? 1 : data.maps[0].queries.length - 1;
  fillControls();
  listen();
  setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  if (data.picture) {
    const image = new Image();
    image.addEventListener("load", () => { picture.image = image; drawPicture(); });
    image.src = data.picture.source;
  }
}

start();
