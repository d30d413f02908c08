/* A Diffusion Transformer in plain JavaScript, and the samplers that draw with it.
 *
 * `new DitNet(content)` takes what `python -m dit_edu export NAME` writes. The names are those of dit_edu.dit and of
 * its state dict; weights and activations are float32, sums are float64. The random numbers are torch's: the same
 * seed gives the same digits here and on the command line. Nothing here knows the page.
 */
globalThis.DitNet = (() => {
  "use strict";

  // ------------------------------------------------------------------------------------------------ the weights
  const bytes = (base64) => {
    const text = atob(base64), out = new Uint8Array(text.length);
    for (let i = 0; i < out.length; i++) out[i] = text.charCodeAt(i);
    return out;
  };

  /** IEEE half precision: sign, 5 bits of exponent, 10 bits of fraction. */
  const half = (h) => {
    const exponent = (h >> 10) & 31, fraction = (h & 1023) / 1024;
    return (h & 0x8000 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
  };

  const READ = {
    float16: (buffer, offset, n) => Float32Array.from(new Uint16Array(buffer, offset, n), half),
    float32: (buffer, offset, n) => new Float32Array(buffer, offset, n),
    float64: (buffer, offset, n) => new Float64Array(buffer, offset, n),
  };

  // ------------------------------------------------------------------------------------------------- the layers
  /** n rows of x (n, I) times the matrix W (O, I), plus b (O): (n, O). Four rows share each weight that is read. */
  const linear = (x, n, [W, b]) => {
    const O = b.length, I = W.length / O, out = new Float32Array(n * O);
    let r = 0;
    for (; r + 4 <= n; r += 4) {
      const at0 = r * I, at1 = at0 + I, at2 = at1 + I, at3 = at2 + I;
      for (let o = 0, w = 0; o < O; o++) {
        let s0 = b[o], s1 = s0, s2 = s0, s3 = s0;
        for (let i = 0; i < I; i++, w++) {
          const k = W[w];
          s0 += k * x[at0 + i]; s1 += k * x[at1 + i]; s2 += k * x[at2 + i]; s3 += k * x[at3 + i];
        }
        const to = r * O + o;
        out[to] = s0; out[to + O] = s1; out[to + 2 * O] = s2; out[to + 3 * O] = s3;
      }
    }
    for (; r < n; r++) {
      for (let o = 0, w = 0; o < O; o++) {
        let s = b[o];
        for (let i = 0; i < I; i++, w++) s += W[w] * x[r * I + i];
        out[r * O + o] = s;
      }
    }
    return out;
  };

  const silu = (x) => x.map((v) => v / (1 + Math.exp(-v)));
  const gelu = (x) => x.map((v) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))));

  /** LayerNorm without parameters, then (1 + scale) · x + shift: (N, D). */
  const modulatedNorm = (x, N, shift, scale) => {
    const D = shift.length, out = new Float32Array(x.length);
    for (let n = 0, at = 0; n < N; n++, at += D) {
      let mean = 0, square = 0;
      for (let d = 0; d < D; d++) mean += x[at + d];
      mean /= D;
      for (let d = 0; d < D; d++) square += (x[at + d] - mean) ** 2;
      const inverse = 1 / Math.sqrt(square / D + 1e-6);
      for (let d = 0; d < D; d++) out[at + d] = (x[at + d] - mean) * inverse * (1 + scale[d]) + shift[d];
    }
    return out;
  };

  /** softmax(Q Kᵀ / √d) V, head by head, from the rows (q, k, v) of qkv (N, 3D): (N, D). */
  const attend = (qkv, N, D, heads) => {
    const d = D / heads, out = new Float32Array(N * D), weights = new Float64Array(N);
    for (let h = 0; h < heads; h++) {
      for (let n = 0; n < N; n++) {
        const q = n * 3 * D + h * d;
        let highest = -Infinity, sum = 0;
        for (let m = 0; m < N; m++) {
          const k = m * 3 * D + D + h * d;
          let dot = 0;
          for (let i = 0; i < d; i++) dot += qkv[q + i] * qkv[k + i];
          weights[m] = dot / Math.sqrt(d);
          highest = Math.max(highest, weights[m]);
        }
        for (let m = 0; m < N; m++) sum += weights[m] = Math.exp(weights[m] - highest);
        for (let i = 0; i < d; i++) {
          let mixed = 0;
          for (let m = 0; m < N; m++) mixed += weights[m] * qkv[m * 3 * D + 2 * D + h * d + i];
          out[n * D + h * d + i] = mixed / sum;
        }
      }
    }
    return out;
  };

  // -------------------------------------------------------------------------------------------------- the noise
  /** Numbers from N(0, 1), those of torch.Generator().manual_seed(seed): a Mersenne Twister, then Box and Muller. */
  const noiseStream = (seed) => {
    const state = new Uint32Array(624);
    state[0] = seed;
    for (let j = 1; j < 624; j++) state[j] = Math.imul(1812433253, state[j - 1] ^ (state[j - 1] >>> 30)) + j;
    let at = 624;
    const integer = () => {
      if (at === 624) {
        for (let k = 0; k < 624; k++) {
          const y = (state[k] & 0x80000000) | (state[(k + 1) % 624] & 0x7fffffff);
          state[k] = state[(k + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
        }
        at = 0;
      }
      let y = state[at++];
      y ^= y >>> 11;
      y ^= (y << 7) & 0x9d2c5680;
      y ^= (y << 15) & 0xefc60000;
      return (y ^ (y >>> 18)) >>> 0;
    };
    return (n) => {                              // n is a multiple of 16: torch fills smaller arrays in another way
      const out = Float32Array.from({ length: n }, () => (integer() & 0xffffff) / 2 ** 24);
      for (let b = 0; b < n; b += 16) {
        for (let j = b; j < b + 8; j++) {
          const radius = Math.sqrt(-2 * Math.log(1 - out[j])), angle = 2 * Math.PI * out[j + 8];
          out[j] = radius * Math.cos(angle);
          out[j + 8] = radius * Math.sin(angle);
        }
      }
      return out;
    };
  };

  const range = (n) => Array.from({ length: n }, (_, i) => i);
  const roundToEven = (v) => (Math.abs(v % 1) === 0.5 ? 2 * Math.round(v / 2) : Math.round(v));

  class DitNet {
    constructor(content) {
      const { buffer } = bytes(content.data);
      this.weights = Object.fromEntries(Object.entries(content.tensors).map(([name, { dtype, shape, offset }]) =>
        [name, READ[dtype](buffer, offset, shape.reduce((a, b) => a * b, 1))]));
      Object.assign(this, content.config, { prediction: content.prediction, sampling: content.sampling });
      this.alphaBar = this.weights.alphas_cumprod;
      this.pixels = this.in_channels * this.input_size[0] * this.input_size[1];
      this.spoken = new Map();                   // adaLN's vectors by "t,y", of one step
    }

    layer(name) { return [this.weights[`${name}.weight`], this.weights[`${name}.bias`]]; }

    /** What t and y say to each block (6D numbers) and to the final layer (2D). */
    speak(t, y) {
      const key = `${t},${y}`;
      if (this.spoken.has(key)) return this.spoken.get(key);
      if (this.spoken.size > 50) this.spoken.clear();
      const { omega } = this.weights, waves = new Float32Array(2 * omega.length), D = this.hidden_size;
      omega.forEach((w, k) => {
        const angle = Math.fround(t * w);        // torch rounds here too
        waves[k] = Math.cos(angle);
        waves[k + omega.length] = Math.sin(angle);
      });
      const step = linear(silu(linear(waves, 1, this.layer("t_embedder.mlp.0"))), 1, this.layer("t_embedder.mlp.2"));
      const table = this.weights["y_embedder.embedding_table.weight"];
      const c = silu(step.map((v, d) => v + table[y * D + d]));
      const cut = (v) => range(v.length / D).map((i) => v.subarray(i * D, (i + 1) * D));
      const said = {
        blocks: range(this.depth).map((l) => cut(linear(c, 1, this.layer(`blocks.${l}.adaLN_modulation.1`)))),
        final: cut(linear(c, 1, this.layer("final_layer.adaLN_modulation.1"))),
      };
      this.spoken.set(key, said);
      return said;
    }

    /** The answer for one image x (C·H·W) at step t with label y; `num_classes` is the null class. */
    forward(x, t, y) {
      const { patch_size: p, in_channels: C, hidden_size: D, num_heads: h } = this, [H, W] = this.input_size;
      const w = W / p, N = (H / p) * w, said = this.speak(t, y);
      const pixel = (n, c, i, j) => (c * H + Math.floor(n / w) * p + i) * W + (n % w) * p + j;

      const patches = new Float32Array(N * C * p * p);
      for (let n = 0, at = 0; n < N; n++)
        for (let c = 0; c < C; c++)
          for (let i = 0; i < p; i++)
            for (let j = 0; j < p; j++) patches[at++] = x[pixel(n, c, i, j)];
      let tokens = linear(patches, N, this.layer("x_embedder.proj")).map((v, i) => v + this.weights.pos_embed[i]);   // (N, D)
      said.blocks.forEach(([shift1, scale1, gate1, shift2, scale2, gate2], l) => {
        const name = `blocks.${l}`;
        const add = (gate, answer) => { tokens = tokens.map((v, i) => v + gate[i % D] * answer[i]); };   // x + g · f
        const qkv = linear(modulatedNorm(tokens, N, shift1, scale1), N, this.layer(`${name}.attn.qkv`));   // (N, 3D)
        add(gate1, linear(attend(qkv, N, D, h), N, this.layer(`${name}.attn.proj`)));
        const wide = gelu(linear(modulatedNorm(tokens, N, shift2, scale2), N, this.layer(`${name}.mlp.fc1`)));   // (N, rD)
        add(gate2, linear(wide, N, this.layer(`${name}.mlp.fc2`)));
      });
      const last = linear(modulatedNorm(tokens, N, ...said.final), N, this.layer("final_layer.linear"));   // (N, p·p·C)
      const out = new Float32Array(C * H * W);
      for (let n = 0, at = 0; n < N; n++)
        for (let i = 0; i < p; i++)
          for (let j = 0; j < p; j++)
            for (let c = 0; c < C; c++) out[pixel(n, c, i, j)] = last[at++];
      return out;
    }

    /** Classifier-free guidance: uncond + s · (cond − uncond); one pass where that is enough. */
    guided(x, t, y, scale) {
      const cond = this.forward(x, t, y);
      if (scale === 1 || y === this.num_classes) return cond;
      const uncond = this.forward(x, t, this.num_classes);
      return cond.map((v, i) => uncond[i] + scale * (v - uncond[i]));
    }

    /** The steps that a sampler visits, from T − 1 down to 0. */
    grid(steps) {
      const T = this.alphaBar.length, stride = 1 / (steps - 1);
      if (steps === 1) return [T - 1];
      return range(steps).map((k) =>
        roundToEven((T - 1) * (k < Math.floor(steps / 2) ? k * stride : 1 - stride * (steps - k - 1)))).reverse();
    }

    /** Pure noise: n images, and the streams that they came from. */
    noise(n, seed) {
      const streams = range(n).map((i) => noiseStream((Math.imul(1000003, seed) + i) >>> 0));
      return { streams, images: streams.map((stream) => stream(this.pixels)) };
    }

    /** Draw one image for each label. Yields null after every image of a step, and { k, t, x, x0 } before every
     *  step and at the end; x and x0 are arrays of images. */
    *sample({ labels, scale = 1, steps = 50, seed = 0, sampler = "ddim" }) {
      const { streams, images } = this.noise(labels.length, seed);
      let x = images;
      const ts = this.grid(steps);
      for (const [k, t] of ts.entries()) {
        const ab = this.alphaBar[t], signal = Math.sqrt(ab), sigma = Math.sqrt(1 - ab);
        const ab1 = k + 1 < ts.length ? this.alphaBar[ts[k + 1]] : 1, beta = 1 - ab / ab1;
        const x0 = [], next = [];
        for (const [i, y] of labels.entries()) {
          const out = this.guided(x[i], t, y, scale), xt = x[i];
          const clean = { v: (o, v) => signal * v - sigma * o, eps: (o, v) => (v - sigma * o) / signal, x0: (o) => o }[this.prediction];
          const guess = out.map((o, j) => Math.min(1, Math.max(-1, clean(o, xt[j]))));
          if (ab1 === 1) next.push(guess);
          else if (sampler === "ddim") {         // √ᾱ′ x̂₀ + √(1−ᾱ′) ε̂
            next.push(guess.map((g, j) => Math.sqrt(ab1) * g + Math.sqrt(1 - ab1) * (xt[j] - signal * g) / sigma));
          } else {                               // a draw from the posterior q(x_t′ | x_t, x̂₀)
            const z = streams[i](this.pixels), spread = Math.sqrt(beta * (1 - ab1) / (1 - ab));
            next.push(guess.map((g, j) => (Math.sqrt(ab1) * beta * g + Math.sqrt(ab / ab1) * (1 - ab1) * xt[j]) / (1 - ab) + spread * z[j]));
          }
          x0.push(guess);
          yield null;
        }
        yield { k, t, x, x0 };
        x = next;
      }
      yield { k: ts.length, t: null, x, x0: x };
    }
  }

  return DitNet;
})();
