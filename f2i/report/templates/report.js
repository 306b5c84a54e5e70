"use strict";
const photos = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

// Tabs: arrow keys move, Home and End jump, the address keeps the part that is open.
const tabs = [...document.querySelectorAll("[role=tab]")];
const open = (tab, focus) => {
  for (const t of tabs) {
    const on = t === tab;
    t.setAttribute("aria-selected", on);
    t.tabIndex = on ? 0 : -1;
    $(t.getAttribute("aria-controls")).hidden = !on;
  }
  if (focus) tab.focus();
  tab.parentElement.scrollTo({ left: tab.offsetLeft - 60 });
};
const keep = (tab) => history.replaceState(null, "", "#" + tab.getAttribute("aria-controls"));
tabs.forEach((tab, k) => {
  tab.addEventListener("click", () => { open(tab); keep(tab); });
  tab.addEventListener("keydown", (e) => {
    const to = { ArrowRight: k + 1, ArrowLeft: k - 1, Home: 0, End: tabs.length - 1 }[e.key];
    if (to === undefined) return;
    e.preventDefault();
    const next = tabs[(to + tabs.length) % tabs.length];
    open(next, true);
    keep(next);
  });
});
const asked = tabs.find((t) => "#" + t.getAttribute("aria-controls") === location.hash);
// The address is left alone: one that named a part would scroll past the title as the page is opened.
open(asked || tabs[0]);

// Before and after.
const picture = (photo, name) => (photo.variants[name] ? photo.variants[name].sr : photo[name]);
const words = (select) => select.options[select.selectedIndex].text;
function show() {
  const photo = photos[$("photo").value];
  if (!photo) return;
  const left = words($("left")), right = words($("right"));
  $("compare").style.aspectRatio = photo.width + " / " + photo.height;
  $("before").src = picture(photo, $("left").value);
  $("after").src = picture(photo, $("right").value);
  $("before").alt = $("photo").value + ", " + left;
  $("after").alt = $("photo").value + ", " + right;
  $("tag-left").textContent = left;
  $("tag-right").textContent = right;
  const variant = photo.variants[$("right").value];
  $("caption").textContent = variant
    ? right + (variant.psnr_db === null ? " equals the reference" : ": " + variant.psnr_db.toFixed(1) + " dB PSNR to the reference, largest difference " + variant.largest.toExponential(1))
    : "the full-precision model itself";
}
for (const id of ["photo", "left", "right"]) $(id).addEventListener("change", show);
const slide = () => $("compare").style.setProperty("--at", $("slide").value + "%");
$("slide").addEventListener("input", slide);
slide();
show();

// Error maps.
const node = (name, attributes, space) => {
  const made = space ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [k, v] of Object.entries(attributes)) made.setAttribute(k, v);
  return made;
};
function maps() {
  const name = $("heat-photo").value, photo = photos[name];
  if (!photo) return;
  const { whole_width: w, whole_height: h } = photo;
  $("maps").replaceChildren(...Object.entries(photo.variants).map(([variant, v]) => {
    const figure = node("figure", { class: "map" }), box = document.createElement("div"), caption = document.createElement("figcaption");
    const svg = node("svg", { viewBox: `0 0 ${w} ${h}`, preserveAspectRatio: "none", "aria-hidden": "true" }, true);
    for (const [y, n] of photo.seams.rows) svg.append(node("rect", { x: -9, y, width: w + 18, height: n }, true));
    for (const [x, n] of photo.seams.columns) svg.append(node("rect", { x, y: -9, width: n, height: h + 18 }, true));
    box.append(node("img", { src: v.heat, alt: `Error map of ${variant} on ${name}, largest error ${v.largest.toExponential(1)}`, loading: "lazy" }), svg);
    caption.textContent = variant;
    const detail = document.createElement("span");
    detail.textContent = (v.psnr_db === null ? "equal" : v.psnr_db.toFixed(1) + " dB") + ", largest " + v.largest.toExponential(1);
    caption.append(detail);
    figure.append(box, caption);
    return figure;
  }));
}
$("heat-photo").addEventListener("change", maps);
$("grid").addEventListener("change", () => $("maps").classList.toggle("nogrid", !$("grid").checked));
maps();

$("copy").addEventListener("click", () => {
  const text = $("command").textContent, done = () => { $("copy").textContent = "Copied"; };
  if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, () => getSelection().selectAllChildren($("command")));
  else getSelection().selectAllChildren($("command"));
});
