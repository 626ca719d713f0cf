// Measures decoding after a context: a package, and its base model in transformers.js, in turns on one page.
// Address: index.html?contexts=128,4096&rounds=5&tokens=10
//
// States and caches are filled with zeros instead of reading a context, because time does not depend on their values.

import { openPackage } from "/liger.js";

const LIBRARIES = "./node_modules";
const TOKEN = 7; // any
const query = new URLSearchParams(location.search);
const numberOf = (name, standard) => Number(query.get(name) ?? standard);
const contexts = (query.get("contexts") ?? "128,4096").split(",").map(Number);

/** A function that goes to a context and returns a function that reads one more token. */
async function openLiger() {
  const session = await openPackage("package/", { device: "wasm" });
  const begin = (context) => {
    session.reset();
    session.read = new Array(context).fill(TOKEN);
    return () => session.forward([TOKEN]);
  };
  return [session.description, begin];
}

async function openTransformers(dtype) {
  const peer = await import(`${LIBRARIES}/@huggingface/transformers/dist/transformers.min.js`);
  Object.assign(peer.env, { allowRemoteModels: false, allowLocalModels: true, useBrowserCache: false, useWasmCache: false });
  peer.env.localModelPath = new URL("models/", location.href).pathname;
  peer.env.backends.onnx.wasm.wasmPaths = new URL(`${LIBRARIES}/onnxruntime-web/dist/`, location.href).href;
  const model = await peer.AutoModelForCausalLM.from_pretrained("base", { dtype, device: "wasm" });
  const { num_hidden_layers: layers, num_key_value_heads: heads, head_dim: width } = model.config;
  const token = new peer.Tensor("int64", BigInt64Array.of(BigInt(TOKEN)), [1, 1]);

  const begin = (context) => {
    const zeros = () => new peer.Tensor("float32", new Float32Array(heads * context * width), [1, heads, context, width]);
    const names = Array.from({ length: layers }, (_, layer) => ["key", "value"].map((kind) => `past_key_values.${layer}.${kind}`));
    let cache = Object.fromEntries(names.flat().map((name) => [name, zeros()]));
    let length = context;
    return async () => {
      length += 1;
      const inputs = { input_ids: token, attention_mask: peer.ones([1, length]) };
      const outputs = await model({ ...inputs, past_key_values: new peer.DynamicCache(cache) });
      const present = Object.entries(outputs).filter(([name]) => name.startsWith("present"));
      cache = Object.fromEntries(present.map(([name, value]) => [name.replace("present", "past_key_values"), value]));
    };
  };
  const threads = peer.env.backends.onnx.wasm.numThreads ?? 1;
  return [`base ${dtype}, transformers.js ${peer.env.version}, WebAssembly, ${threads} thread(s)`, begin];
}

/** Tokens per second. */
async function measure(begin, context) {
  const step = begin(context);
  await step();
  const tokens = numberOf("tokens", 10);
  const start = performance.now();
  for (let count = 0; count < tokens; count++) await step();
  return (1e3 * tokens) / (performance.now() - start);
}

function median(values) {
  return values.toSorted((one, other) => one - other)[values.length >> 1];
}

function show(...values) {
  const row = document.createElement("tr");
  row.append(...values.map((value) => Object.assign(document.createElement("td"), { textContent: value })));
  document.getElementById("rows").append(row);
}

async function main() {
  const systems = [await openLiger(), await openTransformers("fp32"), await openTransformers("q8")];
  const runs = contexts.flatMap((context) => systems.map(([name, begin]) => ({ name, begin, context, speeds: [] })));
  for (let round = 0; round < numberOf("rounds", 5); round++) {
    for (const run of runs) run.speeds.push(await measure(run.begin, run.context));
  }
  for (const { name, context, speeds } of runs) {
    const first = runs.find((run) => run.context === context).speeds; // the package's, in the same rounds
    const ratios = speeds.map((speed, round) => first[round] / speed);
    const range = `${Math.min(...speeds).toFixed(1)} to ${Math.max(...speeds).toFixed(1)}`;
    show(name, context, `${median(speeds).toFixed(1)} (${range})`, `${median(ratios).toFixed(2)}x`);
  }
}

const stage = document.getElementById("stage");
main().then(() => (stage.textContent = "Done"), (error) => (stage.textContent = error.message));
