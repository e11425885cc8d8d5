"use strict";
/* Draws the plots in the page's colours, and lets them be zoomed, chosen and pointed at. */
(() => {
  const root = document.documentElement;
  const SCHEMES = {
    light: {
      series: ["#0072b2", "#c24e00", "#00785a", "#a23b7a", "#80620a", "#4b3f9e", "#5f6368", "#00757a"],
      text: "#1f2328", muted: "#5c636b", rule: "#dfe1e4", paper: "#ffffff", label: "#ffffff",
      sequential: [[0, "#f4f7fb"], [0.25, "#c3d8ec"], [0.5, "#79aed6"], [0.75, "#2c7bb6"], [1, "#08406f"]],
      ordered: [[68, 1, 84], [59, 82, 139], [33, 145, 140], [61, 158, 83], [122, 136, 11]],
    },
    dark: {
      series: ["#5ab4f0", "#f58b4c", "#3fc79a", "#e495c3", "#dfc04d", "#aaa4f5", "#b4b8bd", "#5bcfd4"],
      text: "#e6e7e9", muted: "#a3a9b1", rule: "#33373d", paper: "#15171a", label: "#24272c",
      sequential: [[0, "#1b2026"], [0.25, "#1f4463"], [0.5, "#2f77ab"], [0.75, "#7ab6e0"], [1, "#e3f1fb"]],
      ordered: [[126, 87, 194], [92, 128, 205], [51, 171, 166], [110, 205, 112], [240, 229, 80]],
    },
  };
  const scheme = () => SCHEMES[root.dataset.scheme] || SCHEMES.light;

  /* Between neighbouring colours, for what has an order. */
  const ordered = (stops, share) => {
    const place = share * (stops.length - 1), first = Math.min(Math.floor(place), stops.length - 2);
    return `rgb(${stops[first].map((v, i) => Math.round(v + (stops[first + 1][i] - v) * (place - first)))})`;
  };
  /* A token of the Python side, such as "@2" or "@muted", as a colour of the scheme. */
  const resolve = (token, colours) => {
    const name = token.slice(1);
    if (/^\d+$/.test(name)) return colours.series[Number(name) % colours.series.length];
    if (name.startsWith("ordered ")) return ordered(colours.ordered, Number(name.slice(8)));
    return colours[name] ?? token;
  };
  /* A copy with its colours; names and text stay what they are. */
  const coloured = (value, colours, key = "") => {
    if (Array.isArray(value)) {
      return typeof value[0] === "object" && value[0] !== null ? value.map((v) => coloured(v, colours)) : value;
    }
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, coloured(v, colours, k)]));
    }
    return /color/.test(key) && typeof value === "string" && value[0] === "@" ? resolve(value, colours) : value;
  };
  const axis = (colours) => ({
    exponentformat: "power", gridcolor: colours.rule, zeroline: false, linecolor: colours.rule, tickcolor: colours.rule, automargin: true,
    tickfont: { color: colours.muted, size: 12 }, title: { font: { color: colours.muted, size: 12.5 }, standoff: 8 },
    showline: true, ticks: "outside", ticklen: 4, spikecolor: colours.muted, spikethickness: 1, spikedash: "dot",
  });
  const template = (colours) => ({
    layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", colorway: colours.series,
      font: { family: getComputedStyle(document.body).fontFamily, color: colours.text, size: 13 },
      margin: { l: 56, r: 12, t: 8, b: 44 }, xaxis: axis(colours), yaxis: axis(colours),
      hoverlabel: { bgcolor: colours.label, bordercolor: colours.rule, font: { color: colours.text, size: 12.5 } },
      legend: { orientation: "h", x: 0, y: 1.02, xanchor: "left", yanchor: "bottom", font: { color: colours.text } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colours.muted, activecolor: colours.text },
    },
  });
  const CONFIG = {
    responsive: true, displaylogo: false, displayModeBar: "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "toggleSpikelines"],
  };

  const draw = (plot) => {
    const colours = scheme(), figure = coloured(plot.figure, colours);
    if (plot.shows) figure.data.forEach((trace, i) => { trace.visible = plot.shows.includes(i); });
    figure.layout = { ...figure.layout, template: template(colours), uirevision: "kept" };
    return Plotly.react(plot.element, figure.data, figure.layout, CONFIG);
  };

  /* Zooming one plot zooms all that are linked with it. */
  let following = false;
  const follow = (plots, plot) => plot.element.on("plotly_relayout", async (change) => {
    const word = plot.element.dataset.linked, ends = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
    if (!word || following || (ends[0] === undefined && !change["xaxis.autorange"])) return;
    following = true;
    const others = plots.filter((other) => other !== plot && other.element.dataset.linked === word);
    const update = ends[0] === undefined ? { "xaxis.autorange": true } : { "xaxis.range": ends };
    await Promise.all(others.map((other) => Plotly.relayout(other.element, update)));
    following = false;
  });

  /* The small picture of the point under the pointer. */
  const point = (plot) => {
    const sprite = document.querySelector(`img.sprite[data-for="${plot.element.id}"]`);
    if (!sprite) return;
    const side = Number(plot.element.dataset.side), columns = Number(plot.element.dataset.columns);
    const shown = document.createElement("div");
    shown.className = "thumbnail";
    Object.assign(shown.style, { width: `${side}px`, height: `${side}px`, backgroundImage: `url(${sprite.src})` });
    document.body.append(shown);
    plot.element.on("plotly_hover", ({ points, event }) => {
      const number = points[0].customdata;
      if (number === undefined || number === null) return;
      shown.style.backgroundPosition = `-${(number % columns) * side}px -${Math.floor(number / columns) * side}px`;
      const left = Math.min(event.clientX + 18, innerWidth - side - 24), above = event.clientY - side - 24;
      Object.assign(shown.style, { display: "block", left: `${left}px`, top: `${Math.max(8, above)}px` });
    });
    plot.element.on("plotly_unhover", () => { shown.style.display = "none"; });
  };

  const button = document.getElementById("scheme");
  const label = () => button.setAttribute("aria-pressed", String(root.dataset.scheme === "dark"));
  button.addEventListener("click", () => root.dispatchEvent(new Event("choose-scheme")));
  label();

  const plots = [...document.querySelectorAll(".plot")].map((element) => ({
    element,
    figure: JSON.parse(document.querySelector(`script[data-for="${element.id}"]`).textContent),
    shows: null,
  }));
  for (const select of document.querySelectorAll("select[data-for]")) {
    const plot = plots.find((one) => one.element.id === select.dataset.for);
    plot.shows = JSON.parse(select.value);
    select.addEventListener("change", () => { plot.shows = JSON.parse(select.value); draw(plot); });
  }
  const start = async () => {
    for (const plot of plots) {
      await draw(plot);
      follow(plots, plot);
      point(plot);
      await new Promise((done) => setTimeout(done));
    }
    root.dataset.drawn = "true";
  };
  root.addEventListener("scheme", async () => {
    label();
    delete root.dataset.drawn;
    for (const plot of plots) await draw(plot);
    root.dataset.drawn = "true";
  });
  for (const details of document.querySelectorAll("details")) {
    details.addEventListener("toggle", () => {
      for (const element of details.querySelectorAll(".plot")) Plotly.Plots.resize(element);
    });
  }
  start();
})();
