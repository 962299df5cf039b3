// Masks over the images of the viewer, and the record of the one under the cursor.

const KEPT_MASKS = 4;  // images whose masks stay in memory
const FILL = 0.55;  // as in storage/paint.py

const maskFiles = new Map();  // address -> promise of masks, or of null
const handed = new Map();
// What the columns of a record are called; a guess at the IoU may be above 1.
const FIELDS = {area: "area, pixels", bbox: "box x, y, w, h", predicted_iou: "IoU, as guessed", stability_score: "stability",
  point: "point x, y", crop_box: "crop x, y, w, h"};
let masks = null;  // of the image that is shown
let active = null;  // {choices, turn}: masks on a pixel, and which of them is shown alone

// Called by the files beside the page.
window.keepMasks = data => handed.set(document.currentScript, data);

// {width, height, labels, atoms, columns, records, areas}; null where the file is missing.
function loadMasks(address) {
  if (!maskFiles.has(address)) {
    maskFiles.set(address, new Promise(resolve => {
      const script = element("script", {src: address});
      script.onload = () => { resolve(readMasks(handed.get(script))); handed.delete(script); script.remove(); };
      script.onerror = () => { maskFiles.delete(address); script.remove(); resolve(null); };
      document.head.append(script);
    }));
    if (maskFiles.size > KEPT_MASKS) maskFiles.delete(maskFiles.keys().next().value);
  }
  return maskFiles.get(address);
}

function readMasks({size: [width, height], runs: [values, lengths], atoms, columns, records}) {
  const labels = new Uint16Array(width * height), areas = records.map(() => 0);
  let start = 0;
  values.forEach((atom, i) => {
    labels.fill(atom, start, start + lengths[i]);
    start += lengths[i];
    for (const mask of atoms[atom]) areas[mask] += lengths[i];
  });
  const bySize = records.map((_, mask) => mask).filter(mask => areas[mask]).sort((a, b) => areas[b] - areas[a]);
  return {width, height, labels, atoms, columns, records, areas, bySize};
}

// A canvas of the masks over an image: coloured in an image of masks, outlined in others.
function addOverlay(stage, layer, ofMasks) {
  const canvas = element("canvas", {});
  canvas.ofMasks = ofMasks;
  layer.append(canvas);
  stage.overlay = canvas;
}

const overlays = () => [...byId("stages").querySelectorAll("canvas")];
const isShown = canvas => masks && (byId("masks").value === "every" || byId("masks").value === "own" && canvas.ofMasks);

function paintOverlay(canvas) {
  canvas.hidden = !isShown(canvas);
  if (canvas.hidden) return;
  if (canvas.width !== masks.width || canvas.height !== masks.height) {
    Object.assign(canvas, {width: masks.width, height: masks.height});
  }
  const look = canvas.ofMasks ? {fill: FILL, outlines: "dark"} : {fill: 0, outlines: "bright"};
  paintMasks(canvas, masks.labels, masks.atoms, {...look, mask: active?.choices[active.turn]});
}

const paintOverlays = () => overlays().forEach(paintOverlay);

// The masks of an image take their place when they are there, unless another image is shown by then.
async function showMasksOf(image) {
  masks = null;
  showMask(null);
  if (!image.masks) return;
  const loaded = await loadMasks(image.masks);
  if (shown?.image !== image) return;
  masks = loaded;
  if (!loaded) sayMissing();
  paintOverlays();
}

// Show one mask alone, or all of them again: `next` as `active`, and a place of the window for its record.
function showMask(next, x = 0, y = 0) {
  const same = active?.choices[active.turn] === next?.choices[next.turn];
  active = next;
  if (!same) paintOverlays();
  const box = byId("record");
  box.hidden = !next;
  if (!next) return;
  const {choices, turn, words} = next, mask = choices[turn], list = element("dl", {});
  const fields = recordFields(masks.columns, masks.records[mask]);
  if (!fields.some(([name]) => name === "area")) fields.unshift(["area", [masks.areas[mask]]]);
  for (const [name, values] of fields) {
    list.append(element("dt", {textContent: FIELDS[name] ?? name}), element("dd", {textContent: values.join(", ")}));
  }
  box.replaceChildren(element("strong", {textContent: `mask ${mask}`}), list, element("small", {textContent: words}));
  placeNear(box, x, y);
}

function masksAt(event, stage) {
  const {x, y} = placeOf(event, stage);
  if (!stage.overlay || !isShown(stage.overlay) || x < 0 || y < 0 || x >= 1 || y >= 1) return [];
  return masks.atoms[masks.labels[Math.floor(y * masks.height) * masks.width + Math.floor(x * masks.width)]];
}

function showPixel(choices, turn, event) {
  const more = choices.length > 1 ? "; click for the next" : "";
  const words = `${turn + 1} of ${choices.length} masks on this pixel, by area${more}`;
  showMask(choices.length ? {choices, turn, words} : null, event.clientX, event.clientY);
}

function hoverMasks(event, stage) {
  const choices = masksAt(event, stage);
  const turn = active && choices === active.choices ? active.turn : 0;  // the same atom: the same list
  showPixel(choices, turn, event);
}

// The next mask of those on this pixel, from small to large and round again.
function clickMasks(event, stage) {
  const choices = masksAt(event, stage);
  const turn = active && choices === active.choices ? (active.turn + 1) % choices.length : 0;
  showPixel(choices, turn, event);
}

// From the keyboard: the masks one by one, from large to small.
function stepMask(step) {
  if (!masks?.bySize.length) return;
  if (!overlays().some(isShown)) byId("masks").value = "every";
  const canvas = overlays().find(isShown);
  const count = masks.bySize.length, now = masks.bySize.indexOf(active?.choices[active.turn]);
  const turn = now < 0 ? (step > 0 ? 0 : count - 1) : (now + step + count) % count;
  const box = canvas.closest(".stage").getBoundingClientRect(), [x, y] = centreOf(masks.bySize[turn]);
  setZoom(zoom.scale, 0.5 - x * zoom.scale, 0.5 - y * zoom.scale);
  showMask({choices: masks.bySize, turn, stepped: true, words: `${turn + 1} of ${count} masks, by area`}, box.left, box.top);
}

// The middle of the box around a mask, 0..1.
function centreOf(mask) {
  const {width, height, labels, atoms} = masks, inside = atoms.map(of => of.includes(mask));
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let i = 0; i < labels.length; i++) {
    if (!inside[labels[i]]) continue;
    const x = i % width, y = Math.floor(i / width);
    [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x + 1), Math.max(bottom, y + 1)];
  }
  return [(left + right) / 2 / width, (top + bottom) / 2 / height];
}

// What to keep in place when the zoom changes by a key or a button: the mask that was chosen, else the middle.
function middle() {
  if (!active?.stepped) return [0.5, 0.5];
  const [x, y] = centreOf(active.choices[active.turn]);
  return [zoom.x + x * zoom.scale, zoom.y + y * zoom.scale];
}

function turnMasks() {
  const select = byId("masks");
  select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
  showMask(null);
  paintOverlays();
}
