"use strict";
const LONG = { NCP: "COVID-19 pneumonia", CP: "common pneumonia", Normal: "no pneumonia" };
const FLAGS = {
  "out-of-distribution": "This scan is unlike those that the model was trained on: its answer is not to be relied on.",
  "no-lungs-found": "No two lungs were found in this scan: is it a chest CT? The whole body was analysed.",
};
// grey, of which the darkest third is not seen in 3D: in the window for lungs, the air around the patient
const ANATOMY = { R: [0, 85, 255], G: [0, 85, 255], B: [0, 85, 255], A: [0, 0, 128], I: [0, 85, 255] };
const MAP_FROM = 64; // of 255: fainter evidence leaves the anatomy as it is
const $ = (id) => document.getElementById(id);
const buttons = document.querySelectorAll("button[data-phantom]");
const slices = [...document.querySelectorAll(".slice")];
let busy = false;
let token = "";
let again = null;
let viewer = null;

function show(id) {
  for (const name of ["work", "fault", "answer"]) $(name).hidden = name !== id;
}

function send(url, body, origin) {
  if (busy) return;
  busy = true;
  for (const button of buttons) button.disabled = true;
  const request = new XMLHttpRequest(); // fetch can't tell how much of a body is sent
  request.open("POST", url);
  request.setRequestHeader("Accept", "multipart/form-data");
  if (token) request.setRequestHeader("Authorization", "Bearer " + token);
  request.responseType = "blob";
  request.upload.onprogress = (event) => {
    if (!event.lengthComputable) return;
    $("progress").max = event.total;
    $("progress").value = event.loaded;
    $("phase").textContent = "Sending…";
  };
  request.upload.onload = analysing;
  request.onload = () => received(request, origin).catch(() => fault("The server's answer can't be read."));
  request.onerror = () => fault("The server can't be reached.");
  request.onloadend = () => {
    busy = false;
    for (const button of buttons) button.disabled = false;
  };
  again = () => send(url, body, origin);
  analysing();
  show("work");
  request.send(body);
}

function analysing() {
  $("progress").removeAttribute("value");
  $("phase").textContent = "Analysing…";
}

async function received(request, origin) {
  $("access").hidden = request.status !== 401;
  if (request.status !== 200) {
    const text = await request.response.text();
    let reason = "The server answered with status " + request.status + ".";
    try { reason = JSON.parse(text).error || reason; } catch { /* not from this server: a proxy's own page */ }
    fault(reason);
    return;
  }
  const type = request.getResponseHeader("Content-Type");
  const form = await new Response(request.response, { headers: { "Content-Type": type } }).formData();
  answer(JSON.parse(await form.get("answer").text()), origin);
  await draw(await form.get("scan").arrayBuffer(), await form.get("map").arrayBuffer());
}

function fault(reason) {
  $("reason").textContent = reason.charAt(0).toUpperCase() + reason.slice(1) + (/[.!?]$/.test(reason) ? "" : ".");
  show("fault");
}

function answer(result, origin) {
  const percent = (p) => (100 * p).toFixed(p > 0.9995 || p < 0.0005 ? 0 : 1) + " %";
  const label = LONG[result.label] || result.label;
  $("verdict").textContent = "Most probable: " + label + ", " + percent(result.probabilities[result.label]);
  $("origin").textContent = origin;
  $("flags").replaceChildren(...result.flags.map((flag) => {
    const item = document.createElement("li");
    item.textContent = FLAGS[flag] || flag.charAt(0).toUpperCase() + flag.slice(1) + ".";
    if (FLAGS[flag]) item.className = "warn";
    return item;
  }));
  $("classes").replaceChildren(...Object.entries(result.probabilities).map(([name, p]) => {
    const row = document.createElement("div");
    row.className = name === result.label ? "class top" : "class";
    row.innerHTML = '<dt></dt><meter aria-hidden="true"></meter><dd></dd>';
    row.children[0].textContent = name + " ";
    if (LONG[name]) row.children[0].append(Object.assign(document.createElement("span"), { textContent: LONG[name] }));
    row.children[1].value = p;
    row.children[2].textContent = percent(p);
    return row;
  }));
  const seconds = (s) => s < 0.1 ? (1000 * s).toFixed(s < 0.01 ? 1 : 0) + " ms" : s.toFixed(1) + " s";
  const phases = Object.entries(result.seconds).filter(([, s]) => s > 0).map(([name, s]) => name + " " + seconds(s));
  $("facts").textContent = "Time: " + phases.join(", ") + ". Unlikeness to the training data: " +
    result.novelty.toFixed(2) + ", flagged above 0" + ". Model version " + result.model_version + ".";
  $("canvas").setAttribute("aria-label", "Slices and 3D view of the scan with the map for " + label);
  show("answer");
  $("answer").focus({ preventScroll: true });
}

async function draw(scan, map) {
  $("viewer").setAttribute("aria-busy", "true");
  if (!viewer) viewer = await open();
  if (!viewer) return;
  while (viewer.volumes.length) viewer.removeVolumeByIndex(0);
  const load = (url, name, more) => niivue.NVImage.loadFromUrl({ url, name, ...more });
  viewer.addVolume(await load(scan, "scan.nii", { colormap: "anatomy" }));
  viewer.addVolume(await load(map, "map.nii", { colormap: "inferno", cal_min: MAP_FROM, cal_max: 255 }));
  const { img, dims } = viewer.volumes[0];
  const grey = img instanceof Uint8Array || !img.some((value) => value < 0); // pictures, without Hounsfield units
  $("windows").disabled = grey;
  slices.forEach((slider) => { slider.max = dims[1 + Number(slider.dataset.axis)]; });
  applyWindow(grey ? [0, 255] : null);
  applyView();
  applyOpacity();
  goTo(strongest(viewer.volumes[1].img, dims));
  $("viewer").setAttribute("aria-busy", "false");
}

async function open() {
  const made = new niivue.Niivue({
    backColor: [0, 0, 0, 1], crosshairColor: [0.37, 0.9, 0.9, 0.6], crosshairGap: 8, isColorbar: false,
    isRadiologicalConvention: true, sagittalNoseLeft: true, multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
    show3Dcrosshair: false, isSliceMM: true, fontSizeScaling: 0.3, fontMinPx: 12,
    dragMode: niivue.DRAG_MODE.contrast, loadingText: "",
  });
  try {
    await made.attachToCanvas($("canvas"), false);
  } catch {
    $("place").textContent = "The slices can't be shown: this browser has no WebGL 2.";
    $("viewer").hidden = true;
    return null;
  }
  made.addColormap("anatomy", ANATOMY);
  made.setMultiplanarLayout(niivue.MULTIPLANAR_TYPE.GRID);
  made.onLocationChange = (location) => place(turned(location.vox));
  return made;
}

/** Say where most evidence lies, and its voxel as sliders count: from the patient's right, front and head. */
function strongest(evidence, dims) {
  let best = 0;
  for (let i = 1; i < evidence.length; i++) if (evidence[i] > evidence[best]) best = i;
  const [width, height, depth] = [dims[1], dims[2], dims[3]];
  const voxel = [best % width, Math.floor(best / width) % height, Math.floor(best / width / height)];
  const third = (axis, names) => names[Math.min(2, Math.floor(3 * voxel[axis] / dims[1 + axis]))];
  $("place").textContent = evidence[best] === 0 ? "The map has no evidence for this class anywhere." :
    "Strongest in the " + third(2, ["upper", "middle", "lower"]) + " third, " + third(1, ["front", "middle", "back"]) +
    ", " + third(0, ["patient's right", "midline", "patient's left"]) + ": axial slice " + (voxel[2] + 1) + " of " + depth + ".";
  return voxel;
}

/** Sliders count as the file does; niivue from left, back and foot. */
function turned(voxel) {
  return slices.map((_, axis) => viewer.volumes[0].dims[1 + axis] - 1 - voxel[axis]);
}

function goTo(voxel) {
  viewer.scene.crosshairPos = viewer.vox2frac(turned(voxel));
  viewer.drawScene();
  place(voxel);
}

function place(voxel) {
  for (const slider of slices) {
    slider.value = 1 + Math.round(voxel[Number(slider.dataset.axis)]);
    slider.nextElementSibling.textContent = slider.value + " of " + slider.max;
    slider.setAttribute("aria-valuetext", "slice " + slider.value + " of " + slider.max);
  }
}

function applyWindow(fixed) {
  const chosen = document.querySelector("[name=window]:checked").value.split(",").map(Number);
  [viewer.volumes[0].cal_min, viewer.volumes[0].cal_max] = fixed || chosen;
  viewer.updateGLVolume();
}

function applyView() {
  const name = document.querySelector("[name=view]:checked").value;
  const types = { all: "MULTIPLANAR", axial: "AXIAL", coronal: "CORONAL", sagittal: "SAGITTAL", render: "RENDER" };
  viewer.setSliceType(niivue.SLICE_TYPE[types[name]]);
}

function applyOpacity() {
  $("opacity").nextElementSibling.textContent = $("opacity").value + " %";
  viewer.setOpacity(1, $("opacity").value / 100);
}

$("file").addEventListener("change", () => {
  const file = $("file").files[0];
  if (file) send("/v1/scans", file, file.name);
  $("file").value = "";
});
for (const button of buttons) {
  const kind = button.dataset.phantom;
  button.addEventListener("click", () => send("/v1/phantoms/" + kind, null, "A synthetic scan of the class " + kind));
}
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  if (again) again();
});
for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", type === "dragenter" || type === "dragover");
    if (type === "drop" && event.dataTransfer.files[0]) {
      send("/v1/scans", event.dataTransfer.files[0], event.dataTransfer.files[0].name);
    }
  });
}
$("opacity").addEventListener("input", applyOpacity);
for (const input of document.querySelectorAll("[name=window]")) input.addEventListener("change", () => applyWindow(null));
for (const input of document.querySelectorAll("[name=view]")) input.addEventListener("change", applyView);
for (const slider of slices) {
  slider.addEventListener("input", () => goTo([...slices].reverse().map((each) => each.value - 1)));
}
