/* <dit-model data-src="_static/models/NAME.js">: a model that draws in the page, while the reader watches.
 *
 * The element is a <dit-figure> whose pictures are not stored but computed, by dit-net.js, in slices of a few
 * milliseconds between which the page lives on. Its weights are loaded when the reader comes near.
 */
(() => {
  "use strict";

  const DitFigure = customElements.get("dit-figure"), { el, range, reduced, absolute, script } = DitFigure.tools;
  const SLICE_MS = 10, REST_MS = 250;            // of work at a time; of the hand before it is asked again
  const SCALES = [0, 0.5, 1, 1.25, 1.5, 2, 3, 4, 6], STEPS = [5, 10, 20, 50, 100], SAMPLERS = ["DDIM", "DDPM"], SEEDS = 100, PICTURES = 6;

  const stepNames = (steps) => range(steps + 1).map((k) => `${k} of ${steps}`);

  /** An image in [−1, 1], grey or RGB, channel by channel, on a canvas of its size; none is an empty canvas. */
  const paint = (canvas, image) => {
    const { width, height } = canvas, area = width * height, context = canvas.getContext("2d");
    if (!image) return context.clearRect(0, 0, width, height);
    const pixels = context.createImageData(width, height), channels = image.length / area;
    for (let i = 0; i < area; i++) {
      for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = 127.5 * (image[(c % channels) * area + i] + 1);   // clamps
      pixels.data[4 * i + 3] = 255;
    }
    return context.putImageData(pixels, 0, 0);
  };

  const near = (element) => new Promise((done) => new IntersectionObserver((seen, observer) => {
    if (seen.some((entry) => entry.isIntersecting)) { observer.disconnect(); done(); }
  }, { rootMargin: "600px" }).observe(element));

  /** Let the page do what waits: a click, a frame. */
  const pause = () => new Promise((done) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = done;
    channel.port2.postMessage(null);
  });

  class DitModel extends DitFigure {
    async load() {
      await near(this);
      const url = absolute(this.dataset.src), name = url.split("/").pop().replace(/\.js$/, "");
      if (!globalThis.DIT_MODELS?.[name]) await script(url);
      const content = globalThis.DIT_MODELS[name];
      this.net = new DitNet(content);
      this.turn = 0;
      this.said = "";
      const { input_size: [height, width], num_classes: K, sampling } = this.net;
      const axis = (name, label, labels, start, choice = false) => ({ name, label, labels: labels.map(String), start, choice });
      this.noteText = `${content.parameters.toLocaleString("en")} parameters have arrived. Press Draw: your machine does the rest.`;
      return {
        title: `${name} draws in this page`, play: "step", verb: "Draw",
        axes: [
          axis("step", "step", stepNames(sampling.steps), 0),
          axis("class", "class", [...range(K), "none"], Math.min(3, K)),
          axis("scale", "guidance", SCALES, SCALES.indexOf(1.5)),
          axis("seed", "seed", range(SEEDS), 0),
          axis("steps", "steps", STEPS, STEPS.indexOf(sampling.steps), true),
          axis("sampler", "sampler", SAMPLERS, 0, true),
        ],
        panels: [{
          kind: "images", title: "The sampler’s images, and what the model guesses", axes: ["step"], wide: true,
          alt: "Above the noisy images x_t, below the model’s guesses of the clean ones.",
          grid: [2, PICTURES], row_labels: ["xₜ", "x̂₀"], size: 112,
          source: {
            canvas: () => el("canvas", { width, height, class: "dit-pixels", "aria-hidden": "true" }),
            paint: (canvas, k) => paint(canvas, this.frames[Math.floor(k / (2 * PICTURES))]?.[k % (2 * PICTURES)]),
          },
          say: () => this.said,
        }],
      };
    }

    async build() {
      this.note = el("p", { class: "dit-note" }, this.noteText);
      this.state = Object.fromEntries(this.figure.axes.map((a) => [a.name, a.start]));
      this.fromNoise();
      await super.build();
      this.querySelector(".dit-controls").before(this.note);
    }

    /** What the controls ask for. */
    get settings() {
      const chosen = (name) => this.axis(name).labels[this.state[name]];
      return {
        labels: Array(PICTURES).fill(this.state.class),   // "none" stands last, and so does the null class
        scale: Number(chosen("scale")), steps: Number(chosen("steps")), seed: this.state.seed,
        sampler: chosen("sampler").toLowerCase(),
      };
    }

    /** Forget what was drawn; only the noise is known. */
    fromNoise() {
      const { labels, steps, seed } = this.settings;
      this.axis("step").labels = stepNames(steps);
      this.frames = [this.net.noise(labels.length, seed).images];
      this.state.step = 0;
    }

    /** Draw from the noise on, as the controls say. */
    async start() {
      this.stop();
      this.fromNoise();
      const turn = ++this.turn, asked = this.settings, began = performance.now();
      const steps = this.net.sample(asked);
      this.timer = -1;                           // something runs; it is no interval
      this.follow = true;
      this.dataset.state = "drawing";
      this.play.setAttribute("aria-pressed", "true");
      this.status.setAttribute("aria-live", "off");
      for (let ended = false, work = 0; !ended;) {
        const woke = performance.now();
        do {
          const { done, value } = steps.next();
          if (value) this.frames[value.k] = [...value.x, ...value.x0];
          ended = done;
        } while (!ended && performance.now() - woke < SLICE_MS);
        work += performance.now() - woke;
        if (this.follow && (ended || !reduced())) this.move("step", this.frames.length - 1);
        if (ended) this.finish(asked, work / 1000, (performance.now() - began) / 1000);
        else await pause();
        if (turn !== this.turn) return;
      }
    }

    finish({ labels, scale, steps }, work, total) {
      const seconds = (s) => s.toFixed(2), passes = labels.length * steps * (scale === 1 || labels[0] === this.net.num_classes ? 1 : 2);
      this.said = `${labels.length} images drawn, class ${this.axis("class").labels[this.state.class]}`;
      this.note.textContent = `${labels.length} images in ${steps} steps: ${passes} passes through the network, ` +
        `${seconds(work)} s of work, ${seconds(total)} s with all the drawing.`;
      this.stop();
      this.dataset.state = "done";
    }

    stop() {
      this.turn++;
      clearTimeout(this.soon);
      delete this.dataset.state;
      super.stop();
    }

    /** Looking back at a step stops nothing; whatever else the reader changes is drawn anew. */
    set(name, i) {
      if (name === "step") {
        this.follow = false;
        this.move(name, i);
        return;
      }
      this.stop();
      this.state[name] = i;
      this.fromNoise();
      this.move(name, i);
      this.soon = setTimeout(() => this.start(), REST_MS);
    }

    move(name, i) { super.move(name, name === "step" ? Math.min(i, this.frames.length - 1) : i); }
  }

  customElements.define("dit-model", DitModel);
})();
