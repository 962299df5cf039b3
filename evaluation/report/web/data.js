// What the page shows: sets of images, and for each image a result of each network.

const {networks: NETWORKS, sets: SETS} = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);

// Text only: nothing from a data set is read as HTML.
function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function drawing(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// dB won; nothing lost between two perfect images.
const won = (after, before) => after === before ? 0 : after - before;

// A result as it is used: before and after by name of the metric, gain in dB, whether it collapsed.
function readResult(result, set, position) {
  if (!result) return null;
  const byName = values => Object.fromEntries(set.metrics.map(({name}, i) => [name, values?.[i] ?? null])
    .filter(([, value]) => value !== null).map(([name, value]) => [name, Number(value)]));
  const before = byName(result.before), after = byName(result.after);
  const gain = "psnr" in before && "psnr" in after ? won(after.psnr, before.psnr) : null;
  return {...result, before, after, gain, flags: result.flags ?? [], fallback: result.fallback ?? "",
    network: set.networks[position], collapsed: gain !== null && gain < -set.collapse[position]};
}

SETS.forEach((set, number) => {
  set.images.forEach((image, place) => {
    image.set = number;
    image.place = place;
    image.results = image.results.map((result, position) => readResult(result, set, position));
  });
  set.byKey = new Map(set.images.map(image => [image.key, image]));
  set.scored = set.images.some(image => image.results.some(result => result && result.gain !== null));
  set.flagged = set.images.some(image => image.results.some(isFlagged));
  set.kept = set.images.filter(image => image.blurred).length;
});

function isFlagged(result) {
  return Boolean(result && (result.flags.length || result.fallback));
}

// Results of an image by one network of the page, or by all.
function resultsOf(image, network = null) {
  return image.results.filter(result => result && (network === null || result.network === network));
}

// The result that lost most, of those.
function worstResult(image, network = null) {
  return resultsOf(image, network).reduce((worst, result) => worst && !(result.gain < worst.gain) ? worst : result, null);
}

const formatted = (value, digits) =>
  Number.isFinite(value) ? value.toFixed(digits) : `${value < 0 ? "-" : ""}\u221e`;
const signed = value => `${value > 0 ? "+" : ""}${formatted(value, 2)}`;
const decibel = value => `${formatted(value, 2)} dB`;
const thumbnailOf = result => result?.thumbnail ? `data:image/jpeg;base64,${result.thumbnail}` : null;
const routeTo = image => `#${image.set}/${encodeURIComponent(image.key).replaceAll("%2F", "/")}`;

// A colour for a network among several; red is for what collapsed.
const HUES = [211, 38, 280, 150, 320, 180, 75];
const networkColour = network => `hsl(${HUES[network % HUES.length]} 68% ${50 - 14 * (Math.floor(network / HUES.length) % 2)}%)`;
