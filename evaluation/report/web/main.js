// Which of the two is shown, the list or an image, and the keys.

let scrolled = 0;  // where the list was left
let focused = null;  // the image whose card had the focus

function route() {
  const [, number, rest] = /^#(\d+)\/(.*)$/s.exec(location.hash) ?? [];
  let image;
  try {
    image = SETS[number]?.byKey.get(decodeURIComponent(rest));
  } catch { /* not an address of this page: the list */ }
  if (image && shown?.image === image) return;
  const viewer = byId("viewer"), overview = byId("overview");
  byId("tip").hidden = true;
  if (!image) {
    const left = shown?.image;
    Object.assign(viewer, {hidden: true});
    Object.assign(overview, {hidden: false});
    byId("top").hidden = false;
    byId("stages").replaceChildren();
    showMask(null);
    shown = null;
    if (left) returnTo(left);
    return;
  }
  if (viewer.hidden) scrolled = scrollY;
  if (image.set !== choice.set) chooseSet(image.set);
  overview.hidden = byId("top").hidden = true;
  viewer.hidden = false;
  const first = !shown;
  showImage(image);
  if (first) {
    scrollTo(0, 0);
    byId("key").focus({preventScroll: true});
  }
}

// The list as it was left, with the focus on the image that was looked at.
function returnTo(image) {
  const place = listed.indexOf(image), list = byId("list");
  while (place >= list.childElementCount && list.childElementCount < listed.length) drawMore();
  scrollTo(0, scrolled);
  list.children[place]?.focus({preventScroll: true});
  list.children[place]?.scrollIntoView({block: "nearest"});
}

function leave() {
  location.hash = "";
  route();
}

const PAN = 0.1;  // of the stage
const everywhere = [["?", "these keys", () => byId("help").showModal()]];
const listKeys = [
  ["j k", "next, previous image of the list; arrows too, once an image has the focus"],
  ["Enter", "open the image that has the focus"],
  ["/", "to the field for names", () => byId("words").focus()],
  ["c", "collapsed only, or all", () => byId("collapsed").parentElement.hidden || byId("collapsed").click()],
  ["f", "flagged only, or all", () => byId("flagged").parentElement.hidden || byId("flagged").click()],
];
const viewerKeys = [
  ["Escape", "back to the list", leave],
  ["ArrowRight j", "next image", () => step(1)],
  ["ArrowLeft k", "previous image", () => step(-1)],
  ["1 2 3 4 5 6 7 8 9", "one image alone", key => showOne(Number(key) - 1)],
  ["a", "all images side by side", () => setWay("all")],
  ["s", "two images under a slider", () => setWay("slider")],
  ["[", "border of the slider to the left", () => setBorder(way.border - 2)],
  ["]", "border of the slider to the right", () => setBorder(way.border + 2)],
  ["m", "masks in their image, in every image, hidden", turnMasks],
  [".", "next smaller mask and its record", () => stepMask(1)],
  [",", "next larger mask and its record", () => stepMask(-1)],
  ["n", "next network, for the error and the slider", nextNetwork],
  ["+ =", "zoom in", () => zoomBy(1.5, ...middle())],
  ["-", "zoom out", () => zoomBy(1 / 1.5, ...middle())],
  ["0", "fit", () => setZoom(1, 0, 0)],
  ["Shift+ArrowRight", "see more of the right", () => panBy(-PAN, 0)],
  ["Shift+ArrowLeft", "see more of the left", () => panBy(PAN, 0)],
  ["Shift+ArrowDown", "see more below", () => panBy(0, -PAN)],
  ["Shift+ArrowUp", "see more above", () => panBy(0, PAN)],
];
const SYMBOLS = {ArrowRight: "\u2192", ArrowLeft: "\u2190", ArrowDown: "\u2193", ArrowUp: "\u2191", Escape: "Esc"};

function describeKeys() {
  const heading = text => element("dt", {textContent: text, className: "heading"});
  const rows = keys => keys.flatMap(([names, words]) => [
    element("dt", {}, ...names.split(" ").flatMap(name => [element("kbd", {textContent:
      name.split("+").map(part => SYMBOLS[part] ?? part).join("+") || name}), " "])),
    element("dd", {textContent: words})]);
  byId("keys").replaceChildren(heading("in the list"), ...rows(listKeys), heading("in an image"), ...rows(viewerKeys),
    heading("everywhere"), ...rows(everywhere));
  for (const button of document.querySelectorAll("button.help")) button.onclick = () => byId("help").showModal();
}

document.addEventListener("keydown", event => {
  const {target, key} = event;
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (target.matches("input[type=search]") && key === "Escape") target.blur();
  if (target.matches("input[type=search]") || target.matches("select") && key !== "Escape") return;
  if (target.matches("input[type=range]") && key.startsWith("Arrow")) return;
  const pressed = event.shiftKey && key.startsWith("Arrow") ? `Shift+${key}` : key;
  const keys = [...everywhere, ...shown ? viewerKeys : listKeys];
  const action = keys.find(([names]) => names.split(" ").includes(pressed))?.[2];
  if (action) action(key);
  if (action || !shown && moveFocus(key)) event.preventDefault();
});

window.addEventListener("hashchange", route);
describeKeys();
startList();
startViewer();
route();
performance.mark("drawn");
