/* <dit-figure data-src="_static/figures/NAME.json">: a figure that moves without a kernel.
 *
 * The data is written by dit_edu.lab.widgets.Figure.save: axes (sliders) and panels, each panel of one kind and
 * indexed by some of the axes. Whatever stands inside the element (a still picture) is shown until the data is
 * there, and stays if it never comes. Everything drawn is SVG or HTML coloured by CSS variables, so a change of
 * theme needs no code here; pictures are canvases at their own resolution, scaled by CSS.
 */
(() => {
  "use strict";

  // ------------------------------------------------------------------------------------------------ small tools
  const SVG = "http://www.w3.org/2000/svg";
  const build = (node, attributes, children) => {
    for (const [name, value] of Object.entries(attributes)) {
      if (value === true) node.setAttribute(name, "");
      else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  };
  const el = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) => build(document.createElementNS(SVG, tag), attributes, children);
  const label = (x, y, anchor, text, name = null) => svg("text", { x, y, "text-anchor": anchor, class: name }, text);
  const clamp = (v, lo, hi) => Math.min(hi, Math.max(lo, v));
  const pick = (nested, index) => index.reduce((a, i) => a[i], nested);
  const range = (n) => Array.from({ length: n }, (_, i) => i);
  const reduced = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

  /** A number as a reader wants it: whole numbers in full, others to three digits. */
  const num = (v) => {
    if (v === null || v === undefined) return "–";
    if (typeof v === "string") return v;
    if (Number.isInteger(v) && Math.abs(v) < 1e9) return v.toLocaleString("en").replace("-", "−");
    const digits = v.toPrecision(3);
    return (/e/.test(digits) ? digits : String(Number(digits))).replace("-", "−");
  };

  /** Round tick values between lo and hi: about n; on a log scale powers of ten, or 1, 2, 5 if those are few. */
  const ticks = (lo, hi, n, log) => {
    if (log) {
      const first = Math.floor(Math.log10(lo)), decades = range(Math.ceil(Math.log10(hi)) - first + 1).map((i) => 10 ** (first + i));
      const inside = (v) => v >= lo * 0.999 && v <= hi * 1.001, tens = decades.filter(inside);
      if (tens.length < 3) return decades.flatMap((v) => [v, 2 * v, 5 * v]).filter(inside);
      return tens.filter((_, i) => i % Math.ceil(tens.length / n) === 0);
    }
    const raw = (hi - lo) / n, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= raw * 0.999);
    const start = Math.ceil(lo / step - 1e-9);
    return range(Math.floor(hi / step + 1e-9) - start + 1).map((i) => Number(((start + i) * step).toPrecision(12)));
  };
  const tickText = (v, log) => {
    if (!log || (v >= 0.1 && v <= 100) || !/^1e/.test(v.toExponential(0))) return num(v);
    const digits = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
    return "10" + String(Math.round(Math.log10(v))).replace(/./g, (c) => digits[c]);
  };

  /** A plain table: the first cell of each row is its header; row `current`, if any, is marked. */
  const makeTable = (caption, columns, rows, current = -1) =>
    el("table", { class: "dit-table" },
      caption ? el("caption", {}, caption) : "",
      el("thead", {}, el("tr", {}, ...columns.map((c) => el("th", { scope: "col" }, c)))),
      el("tbody", {}, ...rows.map((row, r) =>
        el("tr", { "aria-current": r === current ? "true" : null },
          el("th", { scope: "row" }, num(row[0])), ...row.slice(1).map((v) => el("td", {}, num(v)))))));

  /** The tiles of a sprite sheet, each drawn on a canvas of its own resolution. */
  const sprites = (panel) => {
    const [height, width] = panel.tile;
    const sheet = new Image();
    sheet.src = panel.sprite;
    return {
      ready: sheet.decode(),
      canvas: () => el("canvas", { width, height, class: "dit-pixels", "aria-hidden": "true" }),
      paint: (canvas, k) => canvas.getContext("2d").drawImage(sheet,
        (k % panel.per_row) * width, Math.floor(k / panel.per_row) * height, width, height, 0, 0, width, height),
    };
  };

  // A kind is a function (figure, panel, box) that fills the box once and returns
  //   draw()  – bring it to the figure's present state;   data() – the state's numbers as [columns, rows];
  //   say()   – one phrase for the live region, optional; ready – a promise, optional.

  // --------------------------------------------------------------------------------- images: a grid of pictures
  function images(figure, panel, box) {
    const [rows, columns] = panel.grid, sheet = panel.source || sprites(panel);
    const tiles = range(rows * columns).map(sheet.canvas);
    const grid = el("div", { class: "dit-images", role: "img", "aria-label": panel.alt });
    tiles.forEach((tile, i) => {
      if (panel.row_labels && i % columns === 0) grid.append(el("span", { class: "dit-tick dit-row" }, panel.row_labels[i / columns]));
      const above = i < columns && panel.column_labels ? [el("span", { class: "dit-tick" }, panel.column_labels[i])] : [];
      grid.append(el("div", {}, ...above, tile));
    });
    box.append(grid);
    const layOut = () => {                       // a single row is broken where its pictures would get too small
      const fit = rows > 1 ? columns : clamp(Math.floor(box.clientWidth / 72), 1, columns);
      const across = Math.ceil(columns / Math.ceil(columns / fit));
      const names = 7 * Math.max(0, ...(panel.row_labels || []).map((name) => name.length));  // their width, about
      const beside = names > 0 && (box.clientWidth - names) / columns > 44;  // else a row's name stands above it
      grid.classList.toggle("dit-stacked", names > 0 && !beside);
      grid.style.gridTemplateColumns = `${beside ? "max-content " : ""}repeat(${across}, minmax(0, ${panel.size}px))`;
    };
    const name = (i) => [panel.row_labels?.[Math.floor(i / columns)], panel.column_labels?.[i % columns]]
      .filter(Boolean).join(", ") || `picture ${i + 1}`;
    return {
      ready: sheet.ready,
      draw: () => {
        layOut();
        tiles.forEach((tile, i) => sheet.paint(tile, figure.frame(panel) * tiles.length + i));
      },
      data: () => [["picture", "mean", "standard deviation"], tiles.map((tile, i) => {
        const { data } = tile.getContext("2d").getImageData(0, 0, tile.width, tile.height);
        const v = [...data].filter((_, j) => j % 4 !== 3).map((b) => b / 127.5 - 1);   // without alpha, in [-1, 1]
        const mean = v.reduce((a, b) => a + b, 0) / v.length;
        return [name(i), mean, Math.sqrt(v.reduce((a, b) => a + (b - mean) ** 2, 0) / v.length)];
      })],
      say: panel.say,
    };
  }

  // ----------------------------------------------------------------------- tokens: the token grid over a picture
  function tokens(figure, panel, box) {
    const sheet = sprites(panel), picture = sheet.canvas();
    const lines = svg("svg", { class: "dit-token-lines", "aria-hidden": "true" });
    const wrap = el("div", { class: "dit-tokens", role: "img", "aria-label": panel.alt }, picture, lines);
    wrap.style.maxWidth = `${panel.size}px`;
    box.append(wrap);
    const grid = () => pick(panel.tokens, figure.index(panel));
    return {
      ready: sheet.ready,
      draw: () => {
        sheet.paint(picture, figure.frame(panel));
        const [rows, columns] = grid(), W = wrap.clientWidth, H = W * picture.height / picture.width;
        lines.setAttribute("viewBox", `0 0 ${W} ${H}`);
        const path = range(columns + 1).map((i) => `M${i * W / columns},0V${H}`).join("") +
          range(rows + 1).map((i) => `M0,${i * H / rows}H${W}`).join("");
        const numbers = H / rows < 30 ? [] : range(rows * columns).map((i) => svg("text",
          { x: (i % columns + 0.5) * W / columns, y: (Math.floor(i / columns) + 0.5) * H / rows }, String(i)));
        lines.replaceChildren(svg("path", { d: path, class: "under" }), svg("path", { d: path, class: "over" }), ...numbers);
      },
      data: () => [["token grid", "rows", "columns", "tokens"], [["now", ...grid(), grid()[0] * grid()[1]]]],
      say: () => `${grid()[0] * grid()[1]} tokens`,
    };
  }

  // --------------------------------------------------------------------------- curves: lines with a moving cursor
  function curves(figure, panel, box) {
    const legend = el("ul", { class: "dit-legend" });
    const plot = el("div", { class: "dit-plot", role: "img", "aria-label": panel.alt });
    box.append(legend, plot);
    const values = panel.lines.map((line) => el("span", { class: "dit-value" }));
    panel.lines.forEach((line, i) => legend.append(el("li", {},
      svg("svg", { class: `dit-swatch dit-line-${i}`, viewBox: "0 0 22 10", "aria-hidden": "true" }, svg("path", { d: "M1,5H21" })),
      el("span", {}, line.label), values[i])));
    const { x, log } = panel, [lo, hi] = panel.range;
    const cursor = () => (panel.cursor ? panel.at[figure.state[panel.cursor]] : null);
    const frames = (axes, index = []) => index.length === axes.length ? [index]
      : range(figure.axis(axes[index.length]).labels.length).flatMap((i) => frames(axes, [...index, i]));
    const all = frames(panel.axes), others = all.length <= 4 ? all : [];   // few: drawn faintly behind the present one
    let toX, fromX;                              // data to pixels and back, set by draw()

    if (panel.cursor) {
      plot.classList.add("dit-drag");
      const move = (event) => {
        const want = fromX(event.clientX - plot.getBoundingClientRect().left);
        const distance = panel.at.map((k) => Math.abs(x[k] - want));
        figure.set(panel.cursor, distance.indexOf(Math.min(...distance)));
      };
      plot.addEventListener("pointerdown", (event) => { plot.setPointerCapture(event.pointerId); move(event); });
      plot.addEventListener("pointermove", (event) => { if (plot.hasPointerCapture(event.pointerId)) move(event); });
    }
    const draw = () => {
      const W = plot.clientWidth, H = Math.round(clamp(W * 0.6, 170, 260));
      const left = 46, right = 12, top = 8, bottom = 42, f = log ? Math.log10 : (v) => v;
      toX = (v) => left + (v - x[0]) / (x[x.length - 1] - x[0]) * (W - left - right);
      fromX = (px) => x[0] + (px - left) / (W - left - right) * (x[x.length - 1] - x[0]);
      const toY = (v) => H - bottom - (f(clamp(v, lo, hi)) - f(lo)) / (f(hi) - f(lo)) * (H - top - bottom);
      const path = (ys) => ys.reduce((d, v, i) => v === null ? d
        : `${d}${d && ys[i - 1] !== null ? "L" : "M"}${toX(x[i]).toFixed(1)},${toY(v).toFixed(1)}`, "");
      const area = (low, high) => `M${[...high.map((v, i) => [i, v]), ...low.map((v, i) => [i, v]).reverse()]
        .filter(([, v]) => v !== null).map(([i, v]) => `${toX(x[i]).toFixed(1)},${toY(v).toFixed(1)}`).join("L")}Z`;
      const root = svg("svg", { width: W, height: H, viewBox: `0 0 ${W} ${H}`, "aria-hidden": "true" });
      for (const v of ticks(lo, hi, 4, log)) {
        root.append(svg("path", { class: "dit-rule", d: `M${left},${toY(v)}H${W - right}` }),
          label(left - 7, toY(v) + 4, "end", tickText(v, log)));
      }
      for (const v of ticks(x[0], x[x.length - 1], W < 300 ? 4 : 5)) {
        root.append(label(toX(v), H - bottom + 17, toX(v) > W - 24 ? "end" : "middle", num(v)));
      }
      root.append(label((left + W - right) / 2, H - 6, "middle", panel.x_label, "dit-name"));
      const now = figure.index(panel), k = cursor();
      panel.lines.forEach((line, i) => {
        const g = svg("g", { class: `dit-line-${i}` });
        if (line.low) g.append(svg("path", { class: "dit-band", d: area(pick(line.low, now), pick(line.high, now)) }));
        for (const other of others) {
          if (String(other) !== String(now)) g.append(svg("path", { class: "dit-ghost", d: path(pick(line.y, other)) }));
        }
        g.append(svg("path", { d: path(pick(line.y, now)) }));
        root.append(g);
      });
      if (k !== null) {
        root.append(svg("path", { class: "dit-cursor", d: `M${toX(x[k])},${top}V${H - bottom}` }));
        panel.lines.forEach((line, i) => {
          const v = pick(line.y, now)[k];
          values[i].textContent = num(v);
          if (v !== null) root.append(svg("circle", { class: `dit-dot dit-line-${i}`, cx: toX(x[k]), cy: toY(v), r: 5 }));
        });
      }
      plot.replaceChildren(root);
    };
    return {
      draw,
      data: () => [[panel.x_label, ...panel.lines.map((l) => l.label)],
        x.map((v, i) => [v, ...panel.lines.map((l) => pick(l.y, figure.index(panel))[i])])],
      say: () => cursor() === null ? ""
        : panel.lines.map((l) => `${l.label} ${num(pick(l.y, figure.index(panel))[cursor()])}`).join(", "),
    };
  }

  // ------------------------------------------------------- heatmap: rows × columns; choosing a cell moves the sliders
  function heatmap(figure, panel, box) {
    const { rows, columns, diverging } = panel, R = rows.labels.length, C = columns.labels.length, [lo, hi] = panel.range;
    const map = el("div", { class: "dit-heatmap", role: "group", "aria-label": `${panel.alt} Arrow keys move the chosen cell.` });
    const scale = el("div", { class: `dit-scale${diverging ? " dit-diverging" : ""}` },
      el("span", {}, num(lo)), el("span", { class: "dit-ramp" }), el("span", {}, num(hi)), el("span", {}, panel.unit));
    box.append(map, scale);
    const colour = (v) => {
      if (v === null) return "transparent";
      const u = clamp((v - lo) / (hi - lo), 0, 1), share = diverging ? Math.abs(2 * u - 1) : u;
      const hue = diverging && u < 0.5 ? "negative" : "high";
      return `color-mix(in oklab, var(--dit-${hue}) ${(100 * share).toFixed(1)}%, var(--dit-low))`;
    };
    const name = (r, c) => `${rows.label} ${rows.labels[r]}, ${columns.label} ${columns.labels[c]}`;
    const now = () => pick(panel.values, figure.index(panel));
    const chosen = () => [rows.axis ? figure.state[rows.axis] : -1, columns.axis ? figure.state[columns.axis] : -1];
    const choose = (r, c) => {
      if (rows.axis) figure.set(rows.axis, r);
      if (columns.axis) figure.set(columns.axis, c);
    };
    let cell = [1, 1], left = 0, top = 0;
    if (rows.axis || columns.axis) {
      map.tabIndex = 0;
      map.addEventListener("click", (event) => {
        const at = map.getBoundingClientRect();
        choose(clamp(Math.floor((event.clientY - at.top - top) / cell[1]), 0, R - 1),
          clamp(Math.floor((event.clientX - at.left - left) / cell[0]), 0, C - 1));
      });
      map.addEventListener("keydown", (event) => {
        const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
        if (!step) return;
        event.preventDefault();
        choose(chosen()[0] + step[0], chosen()[1] + step[1]);
      });
    }
    const draw = () => {
      const [r0, c0] = chosen(), longest = (labels) => 7 * Math.max(...labels.map((l) => l.length));
      left = 24 + longest(rows.labels);
      top = 4;
      const W = map.clientWidth, width = clamp((W - left - 4) / C, 2, 46);
      cell = [width, clamp(R <= 2 * C ? width : 320 / R, 12, 46)];
      const H = top + R * cell[1] + 40, everyRow = Math.ceil(15 / cell[1]);
      const everyColumn = Math.ceil((8 + longest(columns.labels)) / cell[0]);
      const root = svg("svg", { width: W, height: H, viewBox: `0 0 ${W} ${H}`, "aria-hidden": "true" });
      now().forEach((line, r) => line.forEach((v, c) => root.append(svg("rect", {
        x: left + c * cell[0] + 0.5, y: top + r * cell[1] + 0.5, width: cell[0] - 1, height: cell[1] - 1,
        style: `fill:${colour(v)}` }, svg("title", {}, `${name(r, c)}: ${num(v)}`)))));
      rows.labels.forEach((l, r) => r % everyRow || root.append(label(left - 6, top + (r + 0.5) * cell[1] + 4, "end", l)));
      columns.labels.forEach((l, c) => c % everyColumn || root.append(label(left + (c + 0.5) * cell[0], H - 23, "middle", l)));
      root.append(label(left + C * cell[0] / 2, H - 5, "middle", columns.label, "dit-name"),
        svg("text", { transform: `translate(12 ${top + R * cell[1] / 2}) rotate(-90)`, "text-anchor": "middle", class: "dit-name" }, rows.label));
      const frame = { x: left + Math.max(c0, 0) * cell[0], y: top + Math.max(r0, 0) * cell[1],
        width: c0 < 0 ? C * cell[0] : cell[0], height: r0 < 0 ? R * cell[1] : cell[1] };
      if (r0 >= 0 || c0 >= 0) root.append(svg("rect", { ...frame, class: "dit-chosen under" }), svg("rect", { ...frame, class: "dit-chosen" }));
      map.replaceChildren(root);
    };
    return {
      draw,
      data: () => [[`${rows.label} \\ ${columns.label}`, ...columns.labels],
        now().map((line, r) => [rows.labels[r], ...line])],
      say: () => chosen().includes(-1) ? "" : `${name(...chosen())}: ${num(pick(now(), chosen()))}`,
    };
  }

  // ------------------------------------------------------------------------------------- bars: values with units
  function bars(figure, panel, box) {
    const fills = panel.labels.map(() => el("span", { class: "dit-fill" }));
    const texts = panel.labels.map(() => el("span", { class: "dit-value" }));
    box.append(el("ul", { class: `dit-bars${panel.labels.length > 5 ? " dit-dense" : ""}` }, ...panel.labels.map((label, i) =>
      el("li", {}, el("span", {}, label), el("span", { class: "dit-track", "aria-hidden": "true" }, fills[i]), texts[i]))));
    const now = () => pick(panel.values, figure.index(panel));
    return {
      draw: () => now().forEach((v, i) => {
        fills[i].style.width = `${100 * clamp(v / panel.max, 0, 1)}%`;
        texts[i].textContent = `${num(v)} ${panel.unit}`.trim();
      }),
      data: () => [[panel.title, panel.unit || "value"], panel.labels.map((label, i) => [label, now()[i]])],
      say: () => panel.labels.map((label, i) => `${label} ${num(now()[i])} ${panel.unit}`.trim()).join(", "),
    };
  }

  // --------------------------------------------------------------------------- table: rows that follow the sliders
  function table(figure, panel, box) {
    const rows = () => pick(panel.rows, figure.index(panel));
    const wrap = el("div", { class: "dit-scroll", role: "group", "aria-label": panel.alt });
    box.append(wrap);
    const current = () => (panel.cursor ? figure.state[panel.cursor] : -1);
    return {
      draw: () => {
        wrap.replaceChildren(makeTable("", panel.columns, rows(), current()));
        wrap.tabIndex = wrap.scrollWidth > wrap.clientWidth ? 0 : -1;   // the keyboard must reach what scrolls
      },
      data: () => [panel.columns, rows()],
      say: () => current() < 0 ? "" : panel.columns.map((c, i) => `${c} ${num(rows()[current()][i])}`).join(", "),
    };
  }

  const KINDS = { images, tokens, curves, heatmap, bars, table };

  // ------------------------------------------------------------------------------------------------- the element
  let count = 0;

  const absolute = (source) => new URL((document.documentElement.dataset.content_root || "") + source, document.baseURI).href;
  const script = (src) => new Promise((done, failed) => document.head.append(
    Object.assign(document.createElement("script"), { src, onload: done, onerror: () => failed(new Error(`no script at ${src}`)) })));

  /** Start what was to wait for the first figure: MathJax takes most of a second. */
  const later = () => document.querySelectorAll('script[type="text/later"]').forEach((waiting) => {
    waiting.remove();
    script(waiting.src);
  });
  setTimeout(later, 1500);                       // should no figure come

  class DitFigure extends HTMLElement {
    static tools = { el, range, reduced, absolute, script };

    /** What the page is to show; a page opened from a disk may not fetch, so there a twin script brings it. */
    async load() {
      const url = absolute(this.dataset.src), name = url.split("/").pop().replace(/\.json$/, "");
      if (location.protocol !== "file:") {
        const answer = await fetch(url);
        if (!answer.ok) throw new Error(`${url}: ${answer.status}`);
        return answer.json();
      }
      if (!globalThis.DIT_FIGURES?.[name]) await script(url.replace(/\.json$/, ".js"));
      return globalThis.DIT_FIGURES[name];
    }

    async connectedCallback() {
      if (this.figure !== undefined) return;
      this.figure = null;
      try {
        this.figure = await this.load();
        await this.build();
        this.dataset.ready = "1";
        performance.mark("dit-figure ready");
        requestAnimationFrame(() => setTimeout(later));
      } catch (error) {                          // the still picture inside stays
        this.dataset.failed = "1";
        this.append(el("p", { class: "dit-note" }, "The moving figure could not be loaded; this is its still picture."));
        console.warn(`${this.localName}: ${error.message}`);
      }
    }

    axis(name) { return this.figure.axes.find((a) => a.name === name); }
    index(panel) { return panel.axes.map((a) => this.state[a]); }
    frame(panel) { return panel.axes.reduce((k, a) => k * this.axis(a).labels.length + this.state[a], 0); }

    async build() {
      const { title, axes, panels } = this.figure;
      this.state = Object.fromEntries(axes.map((a) => [a.name, a.start]));
      this.controls = Object.fromEntries(axes.map((a) => [a.name, a.choice ? this.choice(a) : this.slider(a)]));
      this.status = el("output", { class: "dit-status", "aria-live": "polite" });
      const body = el("div", { class: "dit-panels" }), table = el("div", { class: "dit-scroll", tabindex: "0", role: "group", "aria-label": "Data of the figure" });
      this.drawn = panels.map((panel) => {
        const box = el("section", { class: `dit-panel dit-kind-${panel.kind}${panel.wide ? " dit-wide" : ""}`, "aria-label": panel.title },
          el("p", { class: "dit-title" }, panel.title));
        body.append(box);
        return KINDS[panel.kind](this, panel, box);
      });
      this.details = el("details", { class: "dit-data" }, el("summary", {}, "Show data"), table);
      this.showData = () => table.replaceChildren(...(this.details.open
        ? panels.map((panel, i) => makeTable(panel.title, ...this.drawn[i].data())) : []));
      this.details.addEventListener("toggle", this.showData);
      const bar = el("div", { class: "dit-controls" }, ...(this.figure.play ? [this.playButton()] : []),
        ...axes.map((a) => this.controls[a.name].node));
      await Promise.all(this.drawn.map((d) => d.ready));
      this.replaceChildren(el("div", { class: "dit-frame", role: "group", "aria-label": title }, body, bar, this.status, this.details));
      this.showControls();
      this.update();
      let width = this.clientWidth;
      new ResizeObserver(() => { if (this.clientWidth !== width) { width = this.clientWidth; this.request(); } }).observe(this);
    }

    /** A slider: arrows, Home and End are the browser's own; Space plays. */
    slider(axis) {
      const id = `dit-figure-${++count}`, text = el("span", { class: "dit-value", "aria-hidden": "true" });
      const input = el("input", { id, type: "range", min: 0, max: axis.labels.length - 1, step: 1, value: axis.start });
      text.style.minWidth = `${Math.max(...axis.labels.map((l) => l.length))}ch`;
      input.addEventListener("input", () => this.set(axis.name, input.valueAsNumber));
      input.addEventListener("keydown", (event) => {
        if (event.key === " " && this.play) { event.preventDefault(); this.play.click(); }
      });
      return { node: el("div", { class: "dit-slider" }, el("label", { for: id }, axis.label), input, text),
        show: (i) => {
          input.max = axis.labels.length - 1;    // a model's axis may have got longer
          input.value = i;
          text.textContent = axis.labels[i];
          input.setAttribute("aria-valuetext", this.words(axis));
        } };
    }

    /** A choice between a few names: radio buttons drawn as one segmented control. */
    choice(axis) {
      const group = `dit-figure-${++count}`;
      const inputs = axis.labels.map((_, i) => el("input", { type: "radio", name: group, id: `${group}-${i}` }));
      inputs.forEach((input, i) => input.addEventListener("change", () => this.set(axis.name, i)));
      return { node: el("fieldset", { class: "dit-choice" }, el("legend", {}, axis.label),
        el("div", {}, ...axis.labels.flatMap((l, i) => [inputs[i], el("label", { for: `${group}-${i}` }, l)]))),
      show: (i) => { inputs[i].checked = true; } };
    }

    /** The state in words, the given axis first: "t = 250, schedule cosine". */
    words(first) {
      const others = this.figure.axes.filter((a) => a !== first);
      return [`${first.label} = ${first.labels[this.state[first.name]]}`,
        ...others.map((a) => `${a.label} ${a.labels[this.state[a.name]]}`)].join(", ");
    }

    playButton() {
      this.play = el("button", { type: "button", class: "dit-play", "aria-pressed": "false" }, this.figure.verb || "Play");
      this.play.addEventListener("click", () => (this.timer ? this.stop() : this.start()));
      return this.play;
    }

    start() {
      const { play: name, loop } = this.figure, last = this.axis(name).labels.length - 1;
      if (this.state[name] === last) this.move(name, 0);
      this.play.setAttribute("aria-pressed", "true");
      this.status.setAttribute("aria-live", "off");
      this.timer = setInterval(() => {
        this.move(name, loop && this.state[name] === last ? 0 : this.state[name] + 1);
        if (!loop && this.state[name] === last) this.stop();
      }, Math.max(reduced() ? 500 : 60, (loop ? 1600 : 5000) / (last + 1)));
    }

    stop() {
      if (!this.timer) return;
      clearInterval(this.timer);
      this.timer = 0;
      this.play.setAttribute("aria-pressed", "false");
      this.status.setAttribute("aria-live", "polite");
      this.request();
    }

    disconnectedCallback() { this.stop(); }

    /** The reader moves something: whatever plays, stops. */
    set(name, i) {
      this.stop();
      this.move(name, i);
    }

    move(name, i) {
      this.state[name] = clamp(i, 0, this.axis(name).labels.length - 1);
      this.showControls();
      this.request();
    }

    showControls() { for (const axis of this.figure.axes) this.controls[axis.name].show(this.state[axis.name]); }

    /** Draw once before the next frame, however many things have changed. */
    request() {
      this.asked ||= requestAnimationFrame(() => { this.asked = 0; this.update(); });
    }

    update() {
      for (const panel of this.drawn) panel.draw();
      if (this.details.open) this.showData();
      clearTimeout(this.later);                  // speak when the hand rests, not on every step
      this.later = setTimeout(() => {
        this.status.textContent = this.drawn.map((d) => d.say?.()).filter(Boolean).join("; ") || this.words(this.figure.axes[0]);
      }, 300);
    }
  }

  customElements.define("dit-figure", DitFigure);
})();
