// The images of a set as cards: sorted, filtered, and drawn as far as the page is scrolled.

const CHUNK = 120;  // cards drawn at once
const collator = new Intl.Collator("en", {numeric: true});

const choice = {set: 0, network: null, sort: "worst", collapsed: false, flagged: false, kept: false, words: "", range: null};
let listed = [];  // images that pass, in their order

const byNumber = (number, last) => (a, b) => {  // those without a number come last
  const [x, y] = [number(a), number(b)].map(value => value ?? last);
  return x === y ? a.place - b.place : x - y;
};
const lowestGain = image => worstResult(image, choice.network)?.gain;
const highestGain = image => Math.max(...resultsOf(image, choice.network).map(result => result.gain ?? -Infinity));
const spread = image => {
  const gains = resultsOf(image).map(result => result.gain).filter(gain => gain !== null);
  return gains.length > 1 ? won(Math.max(...gains), Math.min(...gains)) : null;
};
const SORTS = {
  worst: ["worst first", byNumber(lowestGain, Infinity)],
  best: ["best first", byNumber(image => -highestGain(image), Infinity)],
  apart: ["networks differ most", byNumber(image => spread(image) === null ? null : -spread(image), Infinity)],
  blurriest: ["blurriest first", byNumber(image => worstResult(image)?.before.psnr, Infinity)],
  name: ["by name", (a, b) => collator.compare(a.key, b.key)],
  order: ["order of the set", (a, b) => a.place - b.place],
};

function passes(image) {
  const results = resultsOf(image, choice.network), {range} = choice;
  return results.length > 0
    && (!choice.collapsed || results.some(result => result.collapsed))
    && (!choice.flagged || results.some(isFlagged))
    && (!choice.kept || image.blurred)
    && (!range || resultsOf(image, range.network).some(({gain}) => gain !== null && range.of(gain) === range.bin))
    && image.key.toLowerCase().includes(choice.words.toLowerCase());
}

function marks(result) {
  const words = [...result.collapsed ? ["collapsed"] : [], ...result.flags,
    ...result.fallback ? [`shown instead: ${result.fallback}`] : []];
  return words.map((text, i) => element("mark", {textContent: text, className: i === 0 && result.collapsed ? "collapsed" : ""}));
}

// What a card or a tip says of an image: the result that lost most of those chosen.
function summary(image) {
  const result = worstResult(image, choice.network), several = networksOf(SETS[image.set], choice.network).length > 1;
  const scored = result.gain !== null;
  return [
    element("strong", {textContent: scored ? `${signed(result.gain)} dB` : "", className: result.collapsed ? "collapsed" : ""}),
    element("small", {textContent: scored ? `${formatted(result.before.psnr, 2)} \u2192 ${formatted(result.after.psnr, 2)}` : ""}),
    element("span", {className: "key", textContent: image.key}),
    element("span", {className: "marks"},
      ...several ? [element("mark", {className: "network", textContent: NETWORKS[result.network]})] : [], ...marks(result)),
  ];
}

const thumbnails = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries) {
    if (!isIntersecting) continue;
    thumbnails.unobserve(target);
    target.src = target.shown;
  }
}, {rootMargin: "300px"});

// A thumbnail that is decoded when it comes near the window.
function thumbnail(image) {
  const result = resultsOf(image, choice.network).find(one => one.thumbnail) ?? resultsOf(image).find(one => one.thumbnail);
  const img = element("img", {alt: "", decoding: "async", shown: thumbnailOf(result)});
  if (result) thumbnails.observe(img);
  return img;
}

function card(image) {
  return element("a", {className: `card${image.blurred ? " kept" : ""}`, href: routeTo(image), title: image.key, image},
    element("span", {className: "image"}, thumbnail(image)), ...summary(image));
}

function drawMore() {
  const list = byId("list"), start = list.childElementCount;
  list.append(...listed.slice(start, start + CHUNK).map(card));
}

const more = new IntersectionObserver(([{isIntersecting}]) => {
  if (!isIntersecting || byId("list").childElementCount >= listed.length) return;
  drawMore();
  more.unobserve(byId("more"));  // asked again, for the end of the page may still be in sight
  more.observe(byId("more"));
}, {rootMargin: "800px"});

function drawList() {
  const set = SETS[choice.set];
  listed = set.images.filter(passes).sort(SORTS[choice.sort][1]);
  thumbnails.disconnect();
  byId("list").replaceChildren();
  drawMore();
  byId("count").textContent = `${listed.length} of ${set.images.length}`;
  byId("range").hidden = !choice.range;
  byId("range").textContent = choice.range ? `${choice.range.words} \u00d7` : "";
  byId("range").setAttribute("aria-label", `show all again, not only ${choice.range?.words}`);
}

function showTip(found, event) {
  const tip = byId("tip");
  tip.hidden = !found;
  if (!found) return;
  const {image, result} = found, shown = thumbnailOf(result) ?? thumbnailOf(resultsOf(image).find(one => one.thumbnail));
  tip.replaceChildren(...shown ? [element("img", {src: shown, alt: ""})] : [],
    element("strong", {textContent: `${signed(result.gain)} dB`, className: result.collapsed ? "collapsed" : ""}),
    element("small", {textContent: `${decibel(result.before.psnr)} \u2192 ${decibel(result.after.psnr)}`}),
    element("span", {textContent: NETWORKS.length > 1 ? `${NETWORKS[result.network]}: ${image.key}` : image.key}));
  placeNear(tip, event.clientX, event.clientY);
}

// Beside a place of the window, inside it.
function placeNear(box, x, y) {
  const {offsetWidth: width, offsetHeight: height} = box;
  box.style.left = `${Math.max(4, x + 18 + width < innerWidth ? x + 18 : x - 18 - width)}px`;
  box.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - height - 8))}px`;
}

function drawCharts() {
  const set = SETS[choice.set], figures = byId("charts");
  figures.hidden = !set.scored;
  if (!set.scored) return;
  const choose = range => { choice.range = range; refresh(); };
  const caption = text => element("figcaption", {textContent: text});
  figures.replaceChildren(
    element("figure", {}, histogram(set, choice.network, choose), caption("Choose a bar to list its images.")),
    element("figure", {}, scatter(set, choice.network, passes, showTip), caption("Choose a point to open its image.")),
    legend(set, choice.network));
}

function refresh() {
  drawCharts();
  drawList();
}

function fill(select, options, value) {
  select.replaceChildren(...options.map(([of, text]) => new Option(text, of)));
  select.value = value;
  select.parentElement.hidden = options.length < 2;
}

// The controls that suit a set, and what it shows.
function chooseSet(number) {
  const set = SETS[number], network = set.networks.includes(choice.network) ? choice.network : null;
  const sorts = Object.entries(SORTS).filter(([name]) => set.scored ? name !== "apart" || set.networks.length > 1
    : ["name", "order"].includes(name));
  const sort = sorts.some(([name]) => name === choice.sort) ? choice.sort : sorts.at(set.scored ? 0 : -1)[0];
  Object.assign(choice, {set: number, network, sort, range: null});
  choice.collapsed &&= set.scored;
  choice.flagged &&= set.flagged;
  choice.kept &&= set.kept > 0;
  fill(byId("set"), SETS.map(({name}, i) => [i, name]), number);
  const names = set.networks.map(i => [i, NETWORKS[i]]);
  fill(byId("network"), names.length > 1 ? [["", "all"], ...names] : names, network ?? names[0]?.[0] ?? "");
  if (names.length > 1 && network === null) byId("network").value = "";
  fill(byId("sort"), sorts.map(([name, [text]]) => [name, text]), sort);
  for (const [name, usable] of [["collapsed", set.scored], ["flagged", set.flagged], ["kept", set.kept > 0]]) {
    byId(name).checked = choice[name];
    byId(name).parentElement.hidden = !usable;
  }
  const kept = `originals of ${set.kept} of ${set.images.length} images lie beside this page`;
  byId("notes").replaceChildren(...[...set.notes, kept].map(text => element("li", {textContent: text})));
  byId("choice").hidden = SETS.length < 2 && names.length < 2;
  refresh();
}

// The focus to a card some places on; up and down by rows.
function moveFocus(key) {
  const list = byId("list"), cards = [...list.children], now = cards.indexOf(document.activeElement);
  const firstRow = cards.findIndex(one => one.offsetTop > cards[0].offsetTop), columns = firstRow < 0 ? cards.length : firstRow;
  const step = {ArrowRight: 1, ArrowLeft: -1, j: 1, k: -1, ArrowDown: columns, ArrowUp: -columns}[key];
  if (step === undefined || !cards.length || (now < 0 && key.startsWith("Arrow"))) return false;
  const next = now < 0 ? 0 : now + step;
  if (next < 0 || next >= listed.length) return true;
  if (next >= cards.length) drawMore();
  list.children[next].focus();
  return true;
}

function startList() {
  byId("set").onchange = event => chooseSet(Number(event.target.value));
  byId("network").onchange = event => {
    choice.network = event.target.value === "" ? null : Number(event.target.value);
    choice.range = null;
    refresh();
  };
  byId("sort").onchange = event => { choice.sort = event.target.value; drawList(); };
  for (const name of ["collapsed", "flagged", "kept"]) {
    byId(name).onchange = event => { choice[name] = event.target.checked; refresh(); };
  }
  byId("words").oninput = event => { choice.words = event.target.value.trim(); refresh(); };
  byId("range").onclick = () => { choice.range = null; refresh(); byId("sort").focus(); };
  more.observe(byId("more"));
  if (SETS.length) chooseSet(0);
}
