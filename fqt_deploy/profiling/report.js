// Draws every picture of the report, and again when the person's choice of light or dark changes.
const ERRORS = 1; // the level of messages, by Vega's number
const dark = matchMedia("(prefers-color-scheme: dark)");
const specs = JSON.parse(document.getElementById("specs").textContent);
function draw() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  const words = { labelColor: ink, titleColor: ink, labelFontSize: 12, titleFontSize: 12 };
  const below = { bottom: { anchor: "start", direction: "vertical" } }; // side by side they leave a narrow window
  const config = {
    background: "transparent", axis: { ...words, gridColor: line, domainColor: line, tickColor: line }, legend: { ...words, layout: below },
    view: { stroke: "transparent" }, rule: { color: ink }, title: { color: ink }, range: { category: { scheme: "tableau10" } },
    aria: true,
  };
  return Promise.all(Object.entries(specs).map(([id, spec]) =>
    vegaEmbed("#" + id, spec, { renderer: "svg", actions: false, logLevel: ERRORS, config })));
}
function show() {
  draw().then(() => document.body.setAttribute("data-drawn", "yes"));
}
dark.addEventListener("change", show);
show();
