import { Model } from "./engine.js";
import { nameOfToken, shares, strongest, telling } from "./masks.js";
import { kept } from "./picture.js";

const MAX_PIXELS = 64_000_000; // as gsb_vit/data/pictures.py
const MAX_SIDE = 1024; // of the picture shown
const MIN_SIDE = 480;
const TINTS = ["31, 158, 128", "240, 170, 88", "226, 92, 74", "150, 110, 220"]; // of masks, as in the report
const SPOKEN_MS = 2000; // between two answers that a screen reader hears from the camera
const TOP = 5;
const NONE = "None of these";

const element = (id) => document.getElementById(id);
const decoder = document.createElement("canvas").getContext("2d", { willReadFrequently: true, alpha: true });
const view = element("view");
const video = element("video");
const sources = [...document.querySelectorAll("script.model")];
const loaded = new Map(); // index → Model

let runtime; // WebAssembly.Module
let model;
let picture = null; // { rgba, width, height } of what was opened last
let stream = null;
let spokenAt = 0;
let attention = null; // { masks, pixels } of the picture shown

function bytesOf(script) {
  const text = atob(script.textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; ++i) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function complain(error) {
  element("problem").textContent = error?.message ?? error;
}

/** Run something that may fail; what it says then is shown. */
async function attempt(action) {
  complain("");
  try {
    await action();
  } catch (error) {
    complain(error);
  }
}

async function choose(index) {
  if (!loaded.has(index)) loaded.set(index, await Model.load(runtime, bytesOf(sources[index])));
  model = loaded.get(index);
  element("size").textContent = `${(model.size / 1e6).toFixed(2)} MB`;
  element("reads").textContent = `${model.height} × ${model.width} pixels, ${model.classes} classes`;
  const rate = model.unknown && percent(model.unknown.false_alarm_rate);
  element("strangers").textContent = rate ? `${rate} false alarms` : "never said";
  element("false-alarms").textContent = rate ?? "";
  element("block").replaceChildren(...numbered(model.depth));
  element("head").replaceChildren(...numbered(model.heads));
  element("token").replaceChildren(...Array.from({ length: model.tokens }, (_, i) => new Option(nameOfToken(model, i))));
  attention = null;
  if (picture && !stream) answer(picture);
}

const numbered = (count) => Array.from({ length: count }, (_, i) => new Option(`${i + 1} of ${count}`));

/** Name what is in a picture: { rgba, width, height }. */
function answer({ rgba, width, height }) {
  const start = performance.now();
  const pixels = model.prepare(rgba, width, height);
  const middle = performance.now();
  const logits = model.logits(pixels);
  const answers = model.answers(logits, TOP);
  const none = model.unknown !== null && model.isUnknown(logits);
  const end = performance.now();
  element("time").textContent = milliseconds(end - middle);
  element("resizing").textContent = milliseconds(middle - start);
  showAnswers(answers, none);
  const isNew = attention === null;
  attention = { pixels, masks: null };
  element("looks").hidden = false;
  draw(isNew || !stream);
}

const milliseconds = (value) => `${value.toFixed(value < 10 ? 1 : 0)} ms`;
const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Show answers, best first; with `none` they are only what is closest, as the picture is none of the classes. */
function showAnswers(answers, none) {
  element("none").hidden = !none;
  element("answers").classList.toggle("doubted", none);
  element("answers").replaceChildren(
    ...answers.map(({ name, probability }) => {
      const item = document.createElement("li");
      const bar = document.createElement("div");
      bar.className = "bar";
      bar.style.width = `${100 * probability}%`;
      const label = document.createElement("span");
      label.textContent = name;
      const share = document.createElement("span");
      share.className = "share";
      share.textContent = percent(probability);
      item.append(bar, label, share);
      item.dataset.probability = probability;
      return item;
    }),
  );
  const [{ name, probability }] = answers;
  view.setAttribute("aria-label", `Picture: ${none ? NONE : name}`);
  if (stream && performance.now() - spokenAt < SPOKEN_MS) return;
  spokenAt = performance.now();
  const text = `${none ? `${NONE}. Closest: ` : ""}${name}, ${percent(probability)}`;
  if (element("spoken").textContent !== text) element("spoken").textContent = text;
}

/** Where the part that the model reads lies in the view: left, top, width, height. */
function frame() {
  const scale = view.width / picture.width;
  const [left, top, right, bottom] = kept(picture.width, picture.height, model.preprocessing);
  return [left * scale, top * scale, (right - left) * scale, (bottom - top) * scale];
}

/**
 * Draw the picture as large as it fits, what the model does not read in shadow, and the masks if they are wanted.
 * @param {boolean} choosing whether the most telling block, head and token are chosen anew
 */
function draw(choosing) {
  const { width, height } = picture;
  const side = Math.max(width, height);
  const scale = Math.min(MAX_SIDE / side, Math.max(1, MIN_SIDE / side));
  view.width = Math.max(1, Math.round(width * scale));
  view.height = Math.max(1, Math.round(height * scale));
  const context = view.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(decoder.canvas, 0, 0, view.width, view.height);
  const shadow = new Path2D();
  shadow.rect(0, 0, view.width, view.height);
  shadow.rect(...frame());
  context.fillStyle = "rgba(0, 0, 0, 0.45)";
  context.fill(shadow, "evenodd");
  element("invitation").hidden = true;
  const wanted = element("masks").checked;
  element("choices").hidden = element("legend").hidden = !wanted;
  if (wanted) drawMasks(context, choosing);
}

function drawMasks(context, choosing) {
  attention.masks ??= model.masks(attention.pixels);
  if (choosing) {
    const { block, head, token } = telling(model, attention.masks);
    element("block").selectedIndex = block;
    element("head").selectedIndex = head;
    element("token").selectedIndex = token;
  }
  const at = [element("block"), element("head"), element("token")].map((list) => list.selectedIndex);
  strongest(model, attention.masks, ...at).forEach((group, patch) => {
    context.fillStyle = group < 0 ? "rgba(0, 0, 0, 0.62)" : `rgba(${TINTS[group % TINTS.length]}, 0.5)`;
    context.fillRect(...placeOf(patch));
  });
  if (at[2] >= model.prefixTokens) {
    context.strokeStyle = "#fff";
    context.lineWidth = 3;
    context.strokeRect(...placeOf(at[2] - model.prefixTokens));
  }
  element("legend").replaceChildren(
    ...shares(model, attention.masks, ...at).map((share, group) => {
      const item = document.createElement("li");
      const swatch = document.createElement("i");
      swatch.style.background = `rgb(${TINTS[group % TINTS.length]})`;
      item.append(swatch, `mask ${group + 1}: ${(100 * share).toFixed(0)} % of the patches`);
      return item;
    }),
  );
}

/** A patch in the view: left, top, width, height in whole pixels, so that no line is left between neighbours. */
function placeOf(patch) {
  const { rows, columns } = model.grid;
  const [left, top, width, height] = frame();
  const x = (column) => Math.round(left + (column * width) / columns);
  const y = (row) => Math.round(top + (row * height) / rows);
  const [row, column] = [Math.floor(patch / columns), patch % columns];
  return [x(column), y(row), x(column + 1) - x(column), y(row + 1) - y(row)];
}

/** The token of the patch that was pointed at. */
function point({ offsetX, offsetY }) {
  if (!element("masks").checked || !attention) return;
  const [left, top, width, height] = frame();
  const x = (offsetX * view.width) / view.clientWidth - left;
  const y = (offsetY * view.height) / view.clientHeight - top;
  if (x < 0 || y < 0 || x >= width || y >= height) return;
  const { rows, columns } = model.grid;
  const patch = Math.floor((y * rows) / height) * columns + Math.floor((x * columns) / width);
  element("token").selectedIndex = model.prefixTokens + patch;
  draw(false);
}

function read(image, width, height) {
  if (width * height > MAX_PIXELS) {
    throw new Error(`${width} × ${height} pixels are more than 64 megapixels; give a smaller picture.`);
  }
  decoder.canvas.width = width;
  decoder.canvas.height = height;
  decoder.drawImage(image, 0, 0, width, height);
  return { rgba: decoder.getImageData(0, 0, width, height).data, width, height };
}

async function open(file) {
  stop();
  let image;
  try {
    image = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch {
    throw new Error(`${file.name || "This"} is no picture that this browser can read; give a JPEG or PNG file.`);
  }
  picture = read(image, image.width, image.height);
  image.close();
  answer(picture);
}

async function start() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error("The browser gives no camera to a page opened from disk. Open a picture instead.");
  }
  try {
    const wanted = { facingMode: "environment", width: { ideal: 640 }, height: { ideal: 480 } };
    stream = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
  } catch (error) {
    throw new Error(`There is no camera for this page (${error.message || error.name}). Open a picture instead.`);
  }
  video.srcObject = stream;
  await video.play();
  element("camera").setAttribute("aria-pressed", "true");
  element("rate-row").hidden = false;
  const times = [];
  const next = () => (video.requestVideoFrameCallback ? video.requestVideoFrameCallback(onFrame) : requestAnimationFrame(onFrame));
  const onFrame = () => {
    if (!stream) return;
    try {
      picture = read(video, video.videoWidth, video.videoHeight);
      answer(picture);
    } catch (error) {
      complain(error);
      stop();
      return;
    }
    times.push(performance.now());
    if (times.length > 20) times.shift();
    if (times.length > 1) {
      const rate = (1000 * (times.length - 1)) / (times.at(-1) - times[0]);
      element("rate").textContent = `${rate.toFixed(1)} frames/s`;
    }
    next();
  };
  next();
}

function stop() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  video.srcObject = null;
  element("camera").setAttribute("aria-pressed", "false");
  element("rate-row").hidden = true;
}

function openFirst(files) {
  const file = files?.[0];
  if (file) attempt(() => open(file));
}

function listen() {
  for (const id of ["file", "photo"]) {
    element(id).addEventListener("change", ({ target }) => {
      openFirst(target.files);
      target.value = ""; // the same file may be chosen again
    });
  }
  element("camera").addEventListener("click", () => (stream ? stop() : attempt(start)));
  element("model").addEventListener("change", ({ target }) => attempt(() => choose(target.selectedIndex)));
  for (const id of ["masks", "block", "head", "token"]) {
    element(id).addEventListener("change", () => attempt(() => draw(id === "masks")));
  }
  view.addEventListener("click", (event) => attempt(() => point(event)));
  document.addEventListener("paste", ({ clipboardData }) => openFirst(clipboardData?.files));
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      document.body.classList.toggle("dropping", name === "dragenter" || name === "dragover");
      if (name === "drop") openFirst(event.dataTransfer?.files);
    });
  }
}

await attempt(async () => {
  runtime = await WebAssembly.compile(bytesOf(element("runtime"))).catch((error) => {
    throw new Error(`This browser cannot run the page: it needs WebAssembly with SIMD (${error.message}).`);
  });
  element("model").replaceChildren(...sources.map((source) => new Option(source.dataset.name)));
  await choose(0);
  listen();
  document.documentElement.dataset.ready = "";
});
