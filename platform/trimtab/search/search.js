"use strict";
const told = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const options = { responsive: true, displayModeBar: false, displaylogo: false };

function coloured(node, style) {
  if (Array.isArray(node)) return node.map((inner) => coloured(inner, style));
  if (node && typeof node === "object") {
    return Object.fromEntries(Object.entries(node).map(([name, inner]) => [name, coloured(inner, style)]));
  }
  const name = typeof node === "string" && told.colours[node];
  return name ? style.getPropertyValue(`--${name}`).trim() : node;
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  for (const [id, figure] of Object.entries(told.figures)) {
    const { data, layout } = coloured(figure, style);
    Plotly.react(id, data, layout, options);
  }
}

dark.addEventListener("change", draw);
draw();
