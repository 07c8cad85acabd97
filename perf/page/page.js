"use strict";
const find = (selector, within = document) => [...within.querySelectorAll(selector)];
const [form, shown, theme, data] = find("#filter, #shown, #theme, #data");
const sections = JSON.parse(data.textContent);
const page = document.documentElement.dataset;
const dark = matchMedia("(prefers-color-scheme: dark)");
const drawn = new Map();
const read = (x) => (Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en") : `${x}`);

// A colour of the theme, for a canvas.
function colour(name) {
  form.style.outlineColor = `var(--${name})`;
  return getComputedStyle(form).outlineColor;
}

// A line at each change point, and its commit.
const marks = ({ r, c }, runs) => ({ ctx, bbox, valToPos }) => {
  const px = devicePixelRatio;
  c.forEach(([i, , , change, kind], n) => {
    const x = valToPos(i, "x", true);
    const left = x > bbox.width / 2;
    ctx.fillStyle = colour(["better", "worse", "quiet"][kind]);
    ctx.textAlign = left ? "right" : "left";
    ctx.fillRect(x - px / 2, bbox.top, px, bbox.height);
    ctx.fillText(`${change} ${runs[r[i]].n}`, x + (left ? -4 : 4) * px, bbox.top + (11 + (n % 3) * 13) * px);
  });
};

// A run in words.
function tell(tip, { r, u, v, l, h }, runs, i) {
  const run = runs[r[i]];
  const name = Object.assign(document.createElement(run.u ? "a" : "code"), { href: run.u, textContent: run.n });
  tip.replaceChildren(`${read(v[i])}${u && " " + u} [${read(l[i])}, ${read(h[i])}] at `, name, `, ${run.a}`);
}

const dataOf = (it) => sections[it.closest("section").dataset.section];

function draw(card, which) {
  const { runs, cards } = dataOf(card);
  const chart = cards[card.dataset.card][which];
  const { r, v, c, n, y, s } = chart;
  const [place, tip] = find(".chart, .tip", card);
  let now = c[0]?.[1] ?? y;
  const level = v.map((_, i) => (now = c.find(([at]) => at === i)?.[2] ?? now, i < s ? null : now));
  const axis = { stroke: colour("quiet"), grid: { stroke: colour("edge"), width: 1 } };
  const line = { points: { show: false }, paths: uPlot.paths.stepped({ align: 1 }) };
  const blue = colour("line");
  drawn.get(card)?.plot.destroy();
  const plot = new uPlot({
    width: place.clientWidth,
    height: 190,
    cursor: { y: false },
    scales: {
      x: { time: false, range: (_, low, high) => [low - 0.5, high + 0.5] },
      // Noise below 1 % must not fill the chart; marks need room above.
      y: { range: (_, low, high) => {
        const room = Math.max(high - low, 0.04 * Math.abs(high)) || 1;
        return [(low + high) / 2 - 0.6 * room, (low + high) / 2 + 0.9 * room];
      } },
    },
    axes: [
      { ...axis, size: 26, space: 80, values: (_, xs) => xs.map((x) => runs[r[x]]?.d) },
      { ...axis, size: 72, values: (_, ys) => ys.map((y) => read(+y.toPrecision(4))) },
    ],
    series: [{}, line, line, { ...line, stroke: colour("level") }, { stroke: blue, points: { show: true, size: 5, fill: blue } }],
    bands: [{ series: [1, 2], fill: colour("band") }],
    hooks: {
      draw: [marks(chart, runs)],
      setCursor: [({ cursor: { idx } }) => idx != null && tell(tip, chart, runs, idx)],
    },
  }, [[...v.keys()], ...[n, -n].map((k) => level.map((x) => x && x + Math.abs(x) * k)), level, v], place);
  drawn.set(card, { plot, which });
  tell(tip, chart, runs, v.length - 1);
  find("button", card).forEach((it, i) => it.ariaPressed = i === which);
}

// Cards in sight with no chart, or an old one.
function drawAll(again) {
  for (const card of find(".card")) {
    const its = drawn.get(card);
    if (its && again) its.old = true;
    if (card.clientWidth && (!its || its.old)) draw(card, its?.which ?? 0);
  }
}

function filter(again) {
  const words = form.q.value.toLowerCase().split(" ");
  const differs = (its, wanted) => wanted && its && its !== wanted;
  for (const it of find("section")) it.hidden = differs(it.dataset.machine, form.machine.value);
  for (const it of find("[data-find]")) {
    it.hidden = differs(it.dataset.state, form.state.value) || !words.every((x) => it.dataset.find.includes(x));
  }
  shown.value = `${find("section:not([hidden]) [data-state]:not([hidden])").length} shown`;
  drawAll(again);
}

// The address holds filter and theme.
function toAddress() {
  const parts = new URLSearchParams([...new FormData(form)].filter(([, x]) => x));
  if (page.theme) parts.set("theme", page.theme);
  history.replaceState(null, "", `#${parts}`);
}

onhashchange = () => {
  const parts = new URLSearchParams(location.hash.slice(1));
  for (const it of find("[name]", form)) it.value = parts.get(it.name) ?? "";
  if (parts.has("theme")) page.theme = parts.get("theme");
  filter(true);
};
onresize = dark.onchange = () => drawAll(true);
form.onsubmit = () => false;
form.oninput = () => { filter(); toAddress(); };
theme.onclick = () => {
  page.theme = (page.theme ? page.theme === "dark" : dark.matches) ? "light" : "dark";
  toAddress();
  drawAll(true);
};
for (const card of find(".card")) find("button", card).forEach((it, i) => it.onclick = () => draw(card, i));
for (const it of find("[data-run]")) it.title = dataOf(it).runs[it.dataset.run].a;
onhashchange();
