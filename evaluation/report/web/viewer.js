// One image: its sides side by side, one of them, or two under a slider.

const CAPTION = 40, GAP = 8, FEWEST = 200;  // pixels: height of a caption, between stages, width of a stage at least
const MAGNIFIED = 3;  // times a thumbnail is enlarged at most
// Black, violet, orange, pale yellow: the error from none to all that the scale shows.
const HEAT = {R: "0 .16 .45 .72 .93 .98 .99", G: "0 .05 .06 .19 .42 .71 1", B: "0 .35 .43 .33 .12 .10 .75"};

let shown = null;  // {image, views, network}
const way = {name: "all", one: null, left: null, right: null, border: 50};  // views by name

// What can be looked at: {name, source, note}; `masks` in colour; `over` for the difference of two.
function viewsOf(image, network) {
  const set = SETS[image.set], found = [], psnr = values => "psnr" in values ? decibel(values.psnr) : "";
  const results = resultsOf(image), judged = results.find(result => result.network === network) ?? results[0];
  if (image.blurred) {
    found.push({name: "blurred", source: image.blurred, note: psnr(judged.before)});
    if (image.masks) found.push({name: "masks", source: image.blurred, masks: true, note: ""});
  }
  for (const result of results) {
    const name = NETWORKS.length > 1 ? NETWORKS[result.network] : "result";
    const source = result.file ?? thumbnailOf(result), few = result.file ? [] : ["thumbnail"];
    const change = result.gain === null ? [] : [`${signed(result.gain)} dB`];
    const note = [psnr(result.after), ...change, ...few].filter(Boolean).join(", ");
    if (source) found.push({name, source, note, result, fallback: thumbnailOf(result)});
  }
  if (image.sharp) found.push({name: "sharp", source: image.sharp, note: ""});
  if (judged.file && image.blurred) {
    const other = image.sharp ? "sharp" : "blurred", owner = NETWORKS.length > 1 ? `${NETWORKS[judged.network]}, ` : "";
    const note = `${owner}difference from ${other}`;
    found.push({name: image.sharp ? "error" : "change", source: image[other], over: judged.file, note});
  }
  return found.filter((view, i) => found.findIndex(other => other.name === view.name) === i);
}

function sayMissing() {
  const {image} = shown, text = byId("missing");
  text.hidden = false;
  text.textContent = image.blurred ? "Originals of this image are not where the page expects them: beside it, in the folder images."
    : "The originals of this image were not kept; samdeblur-eval run keeps those of more images with --report-images.";
}

function imageElement(source, fallback) {
  const img = element("img", {alt: "", src: source, draggable: false, decoding: "async"});
  img.onerror = () => {
    img.onerror = null;
    if (fallback) img.src = fallback;
    else img.remove();
    sayMissing();
  };
  return img;
}

// The layers that zoom: an image, or the difference of two.
function layerOf({source, over, fallback}) {
  const img = imageElement(source, fallback);
  return element("div", {className: "layer"},
    over ? element("div", {className: "error"}, img, imageElement(over)) : img);
}

function stageOf(image, label) {
  const stage = element("div", {className: "stage", image});
  stage.setAttribute("role", "img");
  stage.setAttribute("aria-label", label);
  return stage;
}

function oneView(image, view) {
  const stage = stageOf(image, `${view.name} ${view.note}`), layer = layerOf(view);
  stage.append(layer);
  addOverlay(stage, layer, Boolean(view.masks));
  addGestures(stage, null);
  const number = shown.views.indexOf(view) + 1;
  const caption = element("figcaption", {}, element("kbd", {textContent: number}), ` ${view.name} `,
    element("span", {textContent: view.note}));
  if (view.over) caption.append(heatScale());
  const figure = element("figure", {className: "pane"}, stage, caption);
  figure.dataset.name = view.name;
  return figure;
}

// Two views, the second to the right of a border.
function twoViews(image, left, right) {
  const stage = stageOf(image, `${left.name} to the left of the border, ${right.name} to the right`);
  const cover = element("div", {className: "cover"}, layerOf(right)), top = element("div", {className: "layer"});
  const handle = element("div", {className: "handle"});
  addOverlay(stage, top, Boolean(left.masks || right.masks));
  stage.append(layerOf(left), cover, top, handle,
    element("b", {className: "end left", textContent: left.name}), element("b", {className: "end right", textContent: right.name}));
  addGestures(stage, share => setBorder(100 * share));
  const figure = element("figure", {className: "pane"}, stage);
  figure.dataset.name = "slider";
  return figure;
}

function heatScale() {
  return element("span", {className: "heat"}, "0 ", element("i", {}), " ", element("output", {className: "full"}));
}

function setBorder(percent) {
  way.border = Math.min(100, Math.max(0, percent));
  byId("stages").style.setProperty("--border", `${way.border}%`);
  byId("border").value = way.border;
}

function setStretch(power) {
  const times = 2 ** power, row = Array(3).fill((times / 3).toFixed(4)).join(" ");
  byId("gain").setAttribute("values", `${row} 0 0 ${row} 0 0 ${row} 0 0 0 0 0 1 0`);
  byId("times").textContent = times < 10 ? +times.toFixed(1) : Math.round(times);
  for (const full of document.querySelectorAll(".full")) full.textContent = Math.round(255 / times);
}

// Sizes of the stages: as large as fits into the window without scrolling.
function layOut() {
  const stages = byId("stages"), panes = stages.children, count = panes.length;
  if (!shown || !count) return;
  const [width, height] = shown.image.size ?? thumbnailSize(), ratio = width / height;
  const below = byId("ends").hidden ? 0 : byId("ends").offsetHeight + GAP;
  const roomX = stages.clientWidth, roomY = innerHeight - (stages.getBoundingClientRect().top + scrollY) - below - GAP;
  const fits = columns => {
    const rows = Math.ceil(count / columns), caption = count > 1 || way.name !== "slider" ? CAPTION : 0;
    return Math.min((roomX - GAP * (columns - 1)) / columns, ((roomY - GAP * (rows - 1)) / rows - caption) * ratio);
  };
  const best = Math.max(...Array.from({length: count}, (_, i) => fits(i + 1)), Math.min(FEWEST, roomX));
  const most = shown.image.size ? roomX : MAGNIFIED * width;
  stages.style.setProperty("--pane", `${Math.floor(Math.min(best, most))}px`);
  stages.style.setProperty("--ratio", ratio);
  sharpenPixels();
}

function thumbnailSize() {
  const img = byId("stages").querySelector("img");
  return img?.naturalWidth ? [img.naturalWidth, img.naturalHeight] : [4, 3];
}

const named = (views, name, otherwise) => views.find(view => view.name === name) ?? otherwise;

// Draw the stages anew, for another image or another arrangement.
function arrange() {
  const {image, views, network} = shown, several = views.length > 1;
  const result = views.find(view => view.result?.network === network) ?? views.find(view => view.result);
  const left = named(views, way.left, views[0]), right = named(views, way.right, result ?? views.at(-1));
  const kind = several ? way.name : "one", one = named(views, way.one, views[0]);
  const panes = !views.length ? [] : kind === "all" ? views.map(view => oneView(image, view))
    : kind === "slider" ? [twoViews(image, left, right)] : [oneView(image, one)];
  byId("stages").replaceChildren(...panes);
  byId("ends").hidden = kind !== "slider";
  byId("ways").hidden = !several;
  byId("masked").hidden = !image.masks;
  byId("stretched").hidden = !views.some(view => view.over);
  byId("chosen").hidden = resultsOf(image).length < 2;
  for (const button of byId("ways").children) button.setAttribute("aria-pressed", button.dataset.way === kind);
  byId("views").hidden = !several;
  byId("views").replaceChildren(...views.map((view, i) => {
    const button = element("button", {type: "button", onclick: () => showOne(i)}, `${view.name} `,
      ...i < 9 ? [element("kbd", {textContent: i + 1})] : []);
    button.setAttribute("aria-pressed", kind === "one" && view === one);
    return button;
  }));
  for (const [id, view] of [["left", left], ["right", right]]) {
    byId(id).replaceChildren(...views.map(({name}) => new Option(name, name)));
    byId(id).value = view?.name ?? "";
  }
  setBorder(way.border);
  setStretch(Number(byId("stretch").value));
  layOut();
  const first = byId("stages").querySelector("img");
  if (first && !image.size) first.addEventListener("load", layOut);
  showMask(null);
  paintOverlays();
}

function setWay(name) {
  way.name = name;
  arrange();
}

function showOne(place) {
  const view = shown.views[place];
  if (!view) return;
  way.one = view.name;
  setWay("one");
}

// All metrics of the image, and what is wrong with its results.
function scoreTable(image) {
  const set = SETS[image.set], results = resultsOf(image), first = results.find(result => "psnr" in result.before);
  const cell = (values, {name, digits}) => element("td", {textContent: name in values ? formatted(values[name], digits) : ""});
  const row = (title, values, ...more) =>
    element("tr", {}, element("th", {textContent: title, scope: "row"}), ...set.metrics.map(metric => cell(values, metric)), ...more);
  const columns = ["", ...set.metrics.map(metric => metric.label), ...set.scored ? ["change, dB"] : [], ""];
  const head = element("tr", {}, ...columns.map(text => element("th", {textContent: text, scope: "col"})));
  const rows = results.map(result => row(NETWORKS[result.network], result.after,
    ...set.scored ? [element("td", {textContent: result.gain === null ? "" : signed(result.gain)})] : [],
    element("td", {className: "marks"}, ...marks(result))));
  if (first) rows.unshift(row("blurred", first.before, element("td", {}), element("td", {})));
  byId("scores").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

function showImage(image) {
  const results = resultsOf(image), wanted = shown?.network ?? choice.network;
  const network = (results.find(result => result.network === wanted) ?? worstResult(image)).network;
  shown = {image, network, views: viewsOf(image, network)};
  const place = listed.indexOf(image);
  byId("key").textContent = image.key;
  byId("place").textContent = `${place < 0 ? "not in the list, of" : `${place + 1} of`} ${listed.length}`;
  byId("missing").hidden = true;
  if (!image.blurred) sayMissing();
  byId("judged").replaceChildren(...results.map(result => new Option(NETWORKS[result.network], result.network)));
  byId("judged").value = network;
  scoreTable(image);
  setZoom(1, 0, 0);
  arrange();
  showMasksOf(image);
}

// The network whose error is shown and whose result the slider begins with.
function judge(network) {
  Object.assign(shown, {network, views: viewsOf(shown.image, network)});
  byId("judged").value = network;
  way.right = null;
  arrange();
}

function nextNetwork() {
  const options = [...byId("judged").options].map(option => Number(option.value));
  judge(options[(options.indexOf(shown.network) + 1) % options.length]);
}

// The image some places on in the list, as it is sorted and filtered.
function step(places) {
  const next = listed[listed.indexOf(shown.image) + places];
  if (!next) return;
  location.replace(routeTo(next));
  route();  // at once, for keys that come faster than the event
}

function startViewer() {
  for (const [channel, values] of Object.entries(HEAT)) byId(`heat${channel}`).setAttribute("tableValues", values);
  byId("previous").onclick = () => step(-1);
  byId("next").onclick = () => step(1);
  byId("back").onclick = leave;
  for (const button of byId("ways").children) button.onclick = () => setWay(button.dataset.way);
  byId("judged").onchange = event => judge(Number(event.target.value));
  byId("masks").onchange = () => { showMask(null); paintOverlays(); };
  byId("stretch").oninput = event => setStretch(Number(event.target.value));
  byId("border").oninput = event => setBorder(Number(event.target.value));
  byId("left").onchange = event => { way.left = event.target.value; arrange(); };
  byId("right").onchange = event => { way.right = event.target.value; arrange(); };
  byId("in").onclick = () => zoomBy(1.5, ...middle());
  byId("out").onclick = () => zoomBy(1 / 1.5, ...middle());
  byId("fit").onclick = () => setZoom(1, 0, 0);
  window.addEventListener("resize", layOut);
}
