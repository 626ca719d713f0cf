// A package of liger-export in the browser: download, tokenizer and session. It does not touch the page.

import { Template } from "./node_modules/@huggingface/jinja/dist/index.js";
import { Tokenizer } from "./node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs";

const CACHE = "liger-export";
const DATA = "model.onnx.data";
const GRAPHS = { stock: "model.onnx", wasm: "model.wasm.onnx", webgpu: "model.webgpu.onnx" };
const RUNTIMES = {
  wasm: "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
  webgpu: "./node_modules/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs",
};
const TEXT_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
const ARRAYS = { float32: Float32Array, float16: globalThis.Float16Array ?? Uint16Array };
const CHUNK = 64; // tokens of a prompt per call: the page can paint and stop between calls
const REPLACEMENT = "\ufffd";

// ONNX Runtime does not say how much memory it has, so note what it allocates. WebAssembly memory never shrinks.
const memories = [];
WebAssembly.Memory = new Proxy(WebAssembly.Memory, {
  construct(target, parameters) {
    memories.push(Reflect.construct(target, parameters));
    return memories.at(-1);
  },
});

/** Bytes of WebAssembly memory: the weights, the activations and ONNX Runtime's own data. */
export const wasmBytes = () => memories.reduce((sum, memory) => sum + memory.buffer.byteLength, 0);

/** Open the package at an address that ends with a slash. `device` is "webgpu", "wasm" or, to choose, "auto". */
export async function openPackage(address, { device = "auto", onProgress = () => {} } = {}) {
  const manifest = await (await checked(await fetch(`${address}manifest.json`))).json();
  const adapter = await chooseAdapter(manifest, device);
  const [provider, lowering] = adapter ? ["webgpu", "webgpu"] : ["wasm", "wasm" in manifest.graphs ? "wasm" : "stock"];
  const graph = GRAPHS[lowering];
  const files = await download(address, manifest.files, [graph, DATA, ...TEXT_FILES], onProgress);
  const ort = await import(RUNTIMES[provider]);
  const locations = manifest.state.tensors.map(({ present }) => [present, adapter ? "gpu-buffer" : "cpu"]);
  const inference = await ort.InferenceSession.create(files[graph], {
    executionProviders: [provider],
    externalData: [{ path: DATA, data: files[DATA] }],
    preferredOutputLocation: Object.fromEntries(locations),
    extra: { session: { disable_quant_qdq: "1" } }, // dequantize the weights of the wasm graph once, and not in every call
  });
  const threads = ort.env.wasm.numThreads;
  const where = adapter ? describe(adapter) : `WebAssembly SIMD, ${threads} ${threads === 1 ? "thread" : "threads"}`;
  const description = `${manifest.precision.weights} ${lowering} graph on ${where}`;
  return new Session(ort, inference, manifest, new Text(files, manifest.config), description);
}

/** The GPU to use, or null for WebAssembly. */
async function chooseAdapter(manifest, device) {
  if (device === "wasm") return null;
  const adapter = "webgpu" in manifest.graphs ? await navigator.gpu?.requestAdapter() : null;
  if (device === "webgpu") {
    if (!("webgpu" in manifest.graphs)) throw new Error("The package has no graph for WebGPU: convert it with --targets web.");
    if (!adapter) throw new Error("This browser has no WebGPU.");
    return adapter;
  }
  return adapter && !adapter.info.isFallbackAdapter ? adapter : null; // a fallback computes on the CPU
}

function describe(adapter) {
  return `WebGPU (${[adapter.info.vendor, adapter.info.architecture].filter(Boolean).join(" ") || "unnamed GPU"})`;
}

/** The named files that the package has, by name. Each is fetched once and then kept under its SHA-256. */
async function download(address, entries, names, onProgress) {
  const present = names.filter((name) => name in entries);
  const total = present.reduce((sum, name) => sum + entries[name].bytes, 0);
  const cache = await caches.open(CACHE);
  const files = {};
  let done = 0;
  for (const name of present) {
    const key = new URL(`${address}${name}?sha256=${entries[name].sha256}`, location.href).href;
    const kept = await cache.match(key);
    const before = done;
    const count = (bytes) => onProgress(before + bytes, total);
    files[name] = kept ? new Uint8Array(await kept.arrayBuffer()) : await fetchFile(`${address}${name}`, entries[name], count);
    if (!kept) {
      for (const old of await cache.keys(key, { ignoreSearch: true })) await cache.delete(old);
      await cache.put(key, new Response(files[name]));
    }
    done += entries[name].bytes;
    count(entries[name].bytes);
  }
  return files;
}

async function fetchFile(url, { bytes, sha256 }, count) {
  const response = await checked(await fetch(url, { cache: "no-store" }));
  const data = new Uint8Array(bytes);
  let at = 0;
  for await (const part of response.body) {
    if (at + part.length > bytes) throw new Error(`${url} is longer than the manifest says.`);
    data.set(part, at);
    count((at += part.length));
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (at !== bytes || hex !== sha256) throw new Error(`${url} is not the file of the manifest. Copy the package again.`);
  return data;
}

async function checked(response) {
  if (!response.ok) throw new Error(`${response.url}: ${response.status} ${response.statusText}`);
  return response;
}

/** The tokenizer and the chat template of a package. */
class Text {
  constructor(files, config) {
    const read = (name) => new TextDecoder().decode(files[name]);
    const values = JSON.parse(read("tokenizer.json"));
    const settings = "tokenizer_config.json" in files ? JSON.parse(read("tokenizer_config.json")) : {};
    this.parsing = new Tokenizer(values, settings);
    const plain = values.added_tokens.filter((token) => !token.special);
    this.literal = new Tokenizer({ ...values, added_tokens: plain }, settings);
    const source = "chat_template.jinja" in files ? read("chat_template.jinja") : settings.chat_template;
    this.template = source === undefined ? null : new Template(source);
    this.special = Object.fromEntries(
      Object.entries(settings).filter(([name]) => name.endsWith("_token")).map(([name, token]) => [name, token?.content ?? token]),
    );
    this.ends = new Set([config.eos_token_id ?? []].flat());
  }

  /** Token ids of a text to continue. Special tokens that are written in it stay text. */
  encode(text) {
    return this.withStart(this.literal.encode(text, { add_special_tokens: false }).ids);
  }

  /** Token ids of a conversation, up to where the next answer begins. */
  encodeChat(messages) {
    const text = this.template.render({ ...this.special, messages, add_generation_prompt: true });
    return this.withStart(this.parsing.encode(text, { add_special_tokens: false }).ids);
  }

  withStart(ids) {
    const [bare, whole] = [false, true].map((add) => this.parsing.encode("a", { add_special_tokens: add }).ids);
    const start = whole.slice(0, whole.indexOf(bare[0]));
    return start.every((id, at) => ids[at] === id) ? ids : [...start, ...ids];
  }

  decode(ids) {
    return this.parsing.decode(ids, { skip_special_tokens: true, clean_up_tokenization_spaces: false });
  }
}

/** One text, whose state keeps its size. */
class Session {
  constructor(ort, inference, manifest, text, description) {
    Object.assign(this, { ort, inference, text, description, tensors: manifest.state.tensors });
    this.state = {};
    this.stateBytes = this.tensors.reduce((sum, { bytes }) => sum + bytes, 0);
    this.reset();
  }

  get hasChat() {
    return this.text.template !== null;
  }

  reset() {
    for (const tensor of Object.values(this.state)) tensor.dispose();
    this.read = []; // the tokens that the state holds
    this.state = Object.fromEntries(
      this.tensors.map(({ past, shape, dtype }) => {
        const size = shape.reduce((product, side) => product * side, 1);
        return [past, new this.ort.Tensor(dtype, new ARRAYS[dtype](size), [1, ...shape])];
      }),
    );
  }

  /** Continue a prompt's token ids, always with the most probable token. Yields pieces of text. */
  async *generate(prompt, { maxTokens, signal, onToken = () => {} }) {
    let fresh = this.rest(prompt);
    let [context, held] = [prompt.slice(-8), []];
    for (let count = 0; count < maxTokens; count++) {
      let next;
      for (let at = 0; at < fresh.length; at += CHUNK) {
        next = await this.forward(fresh.slice(at, at + CHUNK));
        await nextTask();
        if (signal?.aborted) return;
      }
      if (this.text.ends.has(next)) return;
      onToken(next);
      fresh = [next];
      held.push(next);
      const piece = this.text.decode([...context, ...held]).slice(this.text.decode(context).length);
      if (piece.endsWith(REPLACEMENT) && count + 1 < maxTokens) continue; // the character has more bytes
      yield piece;
      [context, held] = [held, []];
    }
  }

  /** The tokens of a prompt that are still to read. A prompt that the text does not start is read from its beginning. */
  rest(prompt) {
    const goesOn = this.read.length < prompt.length && this.read.every((id, at) => id === prompt[at]);
    if (!goesOn) this.reset();
    return prompt.slice(this.read.length);
  }

  async forward(ids) {
    const integers = (values, shape) => new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
    const feeds = {
      input_ids: integers(ids, [1, ids.length]),
      position_ids: integers(ids.map((_, at) => this.read.length + at), [1, ids.length]),
      logits_to_keep: integers([1], []),
      ...this.state,
    };
    const outputs = await this.inference.run(feeds);
    for (const tensor of Object.values(this.state)) tensor.dispose(); // on a GPU nothing else frees it
    this.read.push(...ids);
    this.state = Object.fromEntries(this.tensors.map(({ past, present }) => [past, outputs[present]]));
    const logits = outputs.logits.data;
    return logits.reduce((best, value, id) => (value > logits[best] ? id : best), 0);
  }
}

/** Let the page paint and handle clicks. */
function nextTask() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = resolve;
    port2.postMessage(null);
  });
}
