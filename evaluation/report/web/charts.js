// Two figures of a set: how PSNR changed, and PSNR of the result over PSNR of the blurred image.

const WIDTH = 640, HEIGHT = 330, MARGIN = {left: 52, right: 22, top: 16, bottom: 44};
const BINS = 40;  // at most
const STEPS = [0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 50];  // dB
const REACH = 10;  // pixels around the cursor in which a point is found

const scaled = ([low, high], [first, last]) => value => first + (value - low) / (high - low || 1) * (last - first);
const onX = domain => scaled(domain, [MARGIN.left, WIDTH - MARGIN.right]);
const onY = domain => scaled(domain, [HEIGHT - MARGIN.bottom, MARGIN.top]);

// Round numbers between two, about as many as asked for.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(size => size >= rough);
  const digits = Math.max(0, -Math.floor(Math.log10(step)));
  const found = [];
  for (let value = Math.ceil(low / step); value <= high / step; value++) found.push((value * step).toFixed(digits));
  return found;
}

const label = (x, y, text, attributes = {}) => drawing("text", {x, y, ...attributes}, text);

function axes(x, y, xTicks, yTicks, xTitle, yTitle) {
  const bottom = HEIGHT - MARGIN.bottom, right = WIDTH - MARGIN.right;
  return drawing("g", {class: "axes"},
    ...yTicks.map(([value, text]) => drawing("line", {x1: MARGIN.left, x2: right, y1: y(value), y2: y(value)})),
    drawing("line", {class: "base", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom}),
    ...xTicks.map(([value, text]) => label(x(value), bottom + 17, text, {"text-anchor": "middle"})),
    ...yTicks.map(([value, text]) => label(MARGIN.left - 7, y(value) + 4, text, {"text-anchor": "end"})),
    label((MARGIN.left + right) / 2, HEIGHT - 6, xTitle, {"text-anchor": "middle", class: "title"}),
    label(14, (MARGIN.top + bottom) / 2, yTitle,
      {"text-anchor": "middle", class: "title", transform: `rotate(-90 14 ${(MARGIN.top + bottom) / 2})`}));
}

function chart(title, ...content) {
  return drawing("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": title}, ...content);
}

// The scored results of a set as {image, result, position}, position that of the network in the set.
function scoredResults(set, network) {
  return set.images.flatMap(image => image.results
    .map((result, position) => ({image, result, position}))
    .filter(({result}) => result && result.gain !== null && (network === null || result.network === network)));
}

const pointClass = ({result}) => result.collapsed ? "collapsed" : isFlagged(result) ? "flagged" : "";
const networksOf = (set, network) => network === null ? set.networks : [network];
const collapseOf = (set, network) => set.collapse[network === null ? 0 : set.networks.indexOf(network)];

// Bins whose borders the collapse line is one of, so that no bar stands on both sides. Infinite changes go beyond the ends.
function binning(gains, collapse) {
  const finite = gains.filter(Number.isFinite);
  const low = Math.min(-collapse, 0, ...finite), high = Math.max(-collapse, 0, ...finite);
  const step = STEPS.find(size => (high - low) / size < BINS) ?? (high - low) / BINS;
  const place = gain => Math.floor((gain + collapse) / step);
  const first = place(low), last = place(high);
  const of = gain => gain === -Infinity ? first - 1 : gain === Infinity ? last + 1 : place(gain);
  return {first, last, step, of, edge: bin => bin * step - collapse};
}

// A bar per bin and network; `choose` takes what a bar holds: {network, of, bin, words}.
function histogram(set, network, choose) {
  const results = scoredResults(set, network), shown = networksOf(set, network), collapse = collapseOf(set, network);
  const bins = binning(results.map(({result}) => result.gain), collapse);
  const counts = new Map();
  for (const {result} of results) {
    const name = `${bins.of(result.gain)} ${result.network}`;
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  const infinite = [[bins.first - 1, "-\u221e"], [bins.last + 1, "\u221e"]]
    .filter(([bin]) => results.some(({result}) => bins.of(result.gain) === bin));
  const ends = [Math.min(bins.first, ...infinite.map(([bin]) => bin)), Math.max(bins.last, ...infinite.map(([bin]) => bin))];
  const domain = [bins.edge(ends[0]), bins.edge(ends[1] + 1)], most = Math.max(1, ...counts.values());
  const x = onX(domain), y = onY([0, most]);
  const xTicks = ticks(bins.edge(bins.first), bins.edge(bins.last + 1), 8).map(text => [Number(text), text])
    .concat(infinite.map(([bin, text]) => [bins.edge(bin + 0.5), text]));
  const yTicks = ticks(0, most, Math.min(5, most)).map(text => [Number(text), text]);

  const bars = [...counts].map(([name, count]) => {
    const [bin, owner] = name.split(" ").map(Number);
    const slot = (x(bins.edge(bin + 1)) - x(bins.edge(bin))) / shown.length;
    const left = x(bins.edge(bin)) + slot * shown.indexOf(owner), height = Math.max(2, y(0) - y(count));
    const lost = bin < 0 && shown.length === 1;
    const infinity = infinite.find(([other]) => other === bin);
    const span = infinity ? `${infinity[1]} dB` : `${bins.edge(bin).toFixed(2)} to ${bins.edge(bin + 1).toFixed(2)} dB`;
    const words = `${shown.length > 1 ? `${NETWORKS[owner]}: ` : ""}${span}`;
    const bar = drawing("rect", {x: left + 0.5, y: y(0) - height, width: Math.max(0.5, slot - 1), height, tabindex: 0,
      role: "button", class: lost ? "bar-of collapsed" : "bar-of", "data-bin": bin, "aria-label": `${words}: ${count} ${count === 1 ? "image" : "images"}`},
      drawing("title", {}, `${words}: ${count} ${count === 1 ? "image" : "images"}`));
    if (shown.length > 1) bar.style.fill = networkColour(owner);
    bar.onclick = () => choose({network: owner, of: bins.of, bin, words});
    bar.onkeydown = event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); bar.onclick(); } };
    return [bin, shown.indexOf(owner), bar];
  }).sort((a, b) => a[0] - b[0] || a[1] - b[1]).map(([, , bar]) => bar);

  const line = x(-collapse), zero = x(0), room = line - MARGIN.left > 70;  // for the word, on the left of the line
  return chart("change of PSNR, number of images",
    axes(x, y, xTicks, yTicks, "change of PSNR, dB", "images"),
    drawing("line", {class: "zero", x1: zero, x2: zero, y1: MARGIN.top, y2: y(0)}), ...bars,
    drawing("line", {class: "limit", x1: line, x2: line, y1: MARGIN.top, y2: y(0)}),
    label(line + (room ? -5 : 5), MARGIN.top + 9, room ? "collapsed" : "\u2190 collapsed",
      {"text-anchor": room ? "end" : "start", class: "limit"}));
}

// A line of slope 1 through (0, shift), inside the square domain.
function slope(domain, shift, x, y) {
  const [low, high] = domain, from = Math.max(low, low - shift), to = Math.min(high, high - shift);
  return {x1: x(from), y1: y(from + shift), x2: x(to), y2: y(to + shift)};
}

// A point per image and network; those that `passes` refuses are faint. `point` takes the one under the cursor, or null.
function scatter(set, network, passes, point) {
  const results = scoredResults(set, network), shown = networksOf(set, network), collapse = collapseOf(set, network);
  const values = results.flatMap(({result}) => [result.before.psnr, result.after.psnr]);
  const finite = values.filter(Number.isFinite), low = Math.min(...finite, Infinity), high = Math.max(...finite, -Infinity);
  const pad = Number.isFinite(low) ? Math.max(0.5, (high - low) * 0.04) : 0;
  const inner = Number.isFinite(low) ? [low - pad, high + pad] : [0, 1];
  const endless = values.some(value => value === Infinity), infinity = inner[1] + Math.max(0.05 * (inner[1] - inner[0]), 1.1 * collapse);
  const domain = [inner[0], endless ? infinity : inner[1]];
  const x = onX(domain), y = onY(domain), at = value => value === Infinity ? infinity : value;
  const marks = count => ticks(...inner, count).map(text => [Number(text), text]).concat(endless ? [[infinity, "\u221e"]] : []);

  const points = results.map(one => {
    const {image, result} = one, [cx, cy] = [x(at(result.before.psnr)), y(at(result.after.psnr))];
    const dot = drawing("circle", {cx, cy, r: 3, class: `dot ${pointClass(one)} ${passes(image) ? "" : "faint"}`});
    if (shown.length > 1) dot.style.fill = networkColour(result.network);
    return {...one, cx, cy, dot};
  });
  const content = chart(`PSNR of ${points.length} results over PSNR of the blurred images`,
    axes(x, y, marks(8), marks(6), "PSNR of the blurred image, dB", "PSNR of the result, dB"),
    drawing("line", {class: "zero", ...slope(domain, 0, x, y)}),
    drawing("line", {class: "limit", ...slope(domain, -collapse, x, y)}),
    label(WIDTH - MARGIN.right - 6, HEIGHT - MARGIN.bottom - 8, `collapsed: more than ${+collapse.toFixed(2)} dB lost`,
      {"text-anchor": "end", class: "limit"}),
    ...points.map(({dot}) => dot));
  content.classList.add("scatter");

  const nearest = event => {
    const box = content.getBoundingClientRect(), ratio = WIDTH / box.width;
    const [px, py] = [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
    let best = null, distance = REACH * ratio;
    for (const one of points) {
      const away = Math.hypot(one.cx - px, one.cy - py);
      if (away < distance) [best, distance] = [one, away];
    }
    return best;
  };
  content.onpointermove = event => {
    const found = nearest(event);
    content.style.cursor = found ? "pointer" : "";
    point(found, event);
  };
  content.onpointerleave = event => point(null, event);
  content.onclick = event => {
    const found = nearest(event);
    if (found) location.hash = routeTo(found.image);
  };
  return content;
}

// What the colours mean, where there are several networks.
function legend(set, network) {
  const shown = networksOf(set, network);
  return element("p", {className: "legend", hidden: shown.length < 2}, ...shown.map(one => {
    const swatch = element("i", {});
    swatch.style.background = networkColour(one);
    return element("span", {}, swatch, NETWORKS[one]);
  }));
}
