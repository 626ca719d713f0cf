// Continue a prompt with a liger-export package: ONNX Runtime and a tokenizer, nothing else.
// Inputs and outputs: docs/reference/graph.md. The state has a fixed size, so memory does not grow with the text.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Tokenizer } from '@huggingface/tokenizers';

process.env.ORT_DISABLE_TELEMETRY ??= '1'; // ONNX Runtime reads it when it is loaded
const { default: ort } = await import('onnxruntime-node');

const CHUNK = 128; // tokens per call; longer calls need more memory and are not faster
const ARRAYS = { float32: Float32Array, float16: Uint16Array };

const { values, positionals } = parseArgs({
  options: { tokens: { type: 'string', short: 'n', default: '64' } },
  allowPositionals: true,
});
const [folder, prompt] = positionals;
if (!prompt) {
  console.error('Usage: node generate.mjs PACKAGE PROMPT [-n TOKENS]');
  process.exit(2);
}

const readJson = (name) => JSON.parse(readFileSync(join(folder, name), 'utf8'));
const manifest = readJson('manifest.json');
const tokenizer = new Tokenizer(readJson('tokenizer.json'), {});
const model = await ort.InferenceSession.create(join(folder, 'model.onnx'));
const endIds = [manifest.config.eos_token_id ?? []].flat();

const state = manifest.state.tensors;
const past = {}; // all zero before the first token
for (const { past: name, shape, dtype } of state) {
  const size = shape.reduce((product, dimension) => product * dimension, 1);
  past[name] = new ort.Tensor(dtype, new ARRAYS[dtype](size), [1, ...shape]);
}

let position = 0;

// Read tokens, and return the logits after the last one.
async function read(ids) {
  const tokens = BigInt64Array.from(ids, BigInt);
  const positions = tokens.map((_, index) => BigInt(position + index));
  const outputs = await model.run({
    input_ids: new ort.Tensor('int64', tokens, [1, ids.length]),
    position_ids: new ort.Tensor('int64', positions, [1, ids.length]),
    logits_to_keep: new ort.Tensor('int64', [1n], []),
    ...past,
  });
  for (const tensor of state) past[tensor.past] = outputs[tensor.present];
  position += ids.length;
  return outputs.logits.data;
}

const promptIds = tokenizer.encode(prompt).ids;
let logits;
for (let start = 0; start < promptIds.length; start += CHUNK) {
  logits = await read(promptIds.slice(start, start + CHUNK));
}

const answer = [];
let shown = '';
while (answer.length < Number(values.tokens)) {
  const largest = logits.reduce((most, logit) => Math.max(most, logit));
  if (!Number.isFinite(largest)) throw new Error('The logits are not finite.');
  const token = logits.indexOf(largest);
  if (endIds.includes(token)) break;
  answer.push(token);
  const text = tokenizer.decode(answer, { skip_special_tokens: true });
  const whole = text.replace(/\ufffd+$/, ''); // without the first bytes of an unfinished character
  process.stdout.write(whole.slice(shown.length));
  shown = whole;
  if (answer.length < Number(values.tokens)) logits = await read([token]);
}
process.stdout.write('\n');
