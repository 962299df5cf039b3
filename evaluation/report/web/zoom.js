// One zoom for all images of the viewer: a scale, and where the left top corner of the image is in its stage.

const MOST = 64;  // times
const zoom = {scale: 1, x: 0, y: 0};  // x, y in sides of the stage, from 1 - scale to 0

function setZoom(scale, x, y) {
  const inside = place => Math.min(0, Math.max(1 - scale, place));
  Object.assign(zoom, {scale, x: inside(x), y: inside(y)});
  const stages = byId("stages");
  stages.style.setProperty("--scale", scale);
  stages.style.setProperty("--x", zoom.x);
  stages.style.setProperty("--y", zoom.y);
  byId("scale").textContent = `${Math.round(100 * scale)}%`;
  sharpenPixels();
}

// Large pixels are drawn as squares.
function sharpenPixels() {
  const stage = byId("stages").querySelector(".stage"), width = stage?.image?.size?.[0];
  const large = width && stage.clientWidth * zoom.scale * devicePixelRatio / width > 2;
  byId("stages").classList.toggle("pixels", Boolean(large));
}

// Zoom and keep the place (u, v) of the stage, 0..1, where it is.
function zoomBy(factor, u = 0.5, v = 0.5) {
  const scale = Math.min(MOST, Math.max(1, zoom.scale * factor)), ratio = scale / zoom.scale;
  setZoom(scale, u - (u - zoom.x) * ratio, v - (v - zoom.y) * ratio);
}

const panBy = (x, y) => setZoom(zoom.scale, zoom.x + x, zoom.y + y);

// Where an event is in its stage, 0..1, and in the image.
function placeOf(event, stage) {
  const box = stage.getBoundingClientRect();
  const u = (event.clientX - box.left) / box.width, v = (event.clientY - box.top) / box.height;
  return {u, v, x: (u - zoom.x) / zoom.scale, y: (v - zoom.y) / zoom.scale};
}

const STILL = 4;  // pixels a press may move and still be a click

// Wheel and drag on a stage. A drag of the handle, or of anything while nothing is zoomed, moves the border of the slider.
function addGestures(stage, slide) {
  let press = null;
  stage.addEventListener("wheel", event => {
    event.preventDefault();
    const {u, v} = placeOf(event, stage);
    zoomBy(2 ** (-event.deltaY / (event.deltaMode ? 6 : 240)), u, v);
  }, {passive: false});
  stage.onpointerdown = event => {
    if (event.button !== 0) return;
    const sliding = slide && (event.target.classList.contains("handle") || zoom.scale === 1);
    press = {x: event.clientX, y: event.clientY, sliding, moved: false};
    stage.setPointerCapture(event.pointerId);
  };
  stage.onpointermove = event => {
    if (!press) return hoverMasks(event, stage);
    const [dx, dy] = [event.clientX - press.x, event.clientY - press.y];
    if (!press.moved && Math.hypot(dx, dy) < STILL) return undefined;
    press.moved = true;
    if (press.sliding) return slide(placeOf(event, stage).u);
    panBy(dx / stage.clientWidth, dy / stage.clientHeight);
    Object.assign(press, {x: event.clientX, y: event.clientY});
    return undefined;
  };
  stage.onpointerup = event => {
    if (press && !press.moved) {
      if (press.sliding && event.target.classList.contains("handle")) slide(placeOf(event, stage).u);
      else clickMasks(event, stage);
    }
    press = null;
  };
  stage.onpointercancel = () => { press = null; };
  stage.onpointerleave = () => { if (!press) showMask(null); };
  stage.ondblclick = event => {
    const {u, v} = placeOf(event, stage);
    if (zoom.scale > 1) setZoom(1, 0, 0);
    else zoomBy(4, u, v);
  };
}
