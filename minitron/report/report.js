// Draws the figures of the page.  Their colours are names of custom properties of report.css, looked up here, so that
// charts follow the theme, also while it changes.
"use strict";

const figures = JSON.parse(document.getElementById("figures").textContent);
const PRINTED_WIDTH = 690; // what A4 and Letter have room for, CSS pixels

function themed(value, style) {
  if (typeof value === "string") {
    const name = /^var\((--[\w-]+)\)$/.exec(value);
    return name ? style.getPropertyValue(name[1]).trim() || style.getPropertyValue("--line-other").trim() : value;
  }
  if (Array.isArray(value)) return value.map((item) => themed(item, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, style)]));
}

function draw(width) {
  const style = getComputedStyle(document.documentElement);
  const font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: style.getPropertyValue("--muted") };
  const drawn = Object.entries(figures).map(([id, figure]) => {
    const { data, layout } = themed(figure, style);
    return Plotly.react(id, data, { ...layout, font, ...(width ? { width, autosize: false } : { autosize: true }) }, {
      responsive: true, displayModeBar: false, scrollZoom: false, doubleClick: false,
    });
  });
  return Promise.all(drawn);
}

function redraw() {
  draw();
}

draw().then(() => document.documentElement.classList.add("drawn"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => {
  document.documentElement.classList.add("printing");
  draw(PRINTED_WIDTH);
});
addEventListener("afterprint", () => {
  document.documentElement.classList.remove("printing");
  redraw();
});
