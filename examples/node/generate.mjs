// Continue a prompt with a liger-export package: ONNX Runtime and a tokenizer, nothing else.
// Inputs and outputs: docs/reference/graph.md. The state has a fixed size, so memory does not grow with the text.
import { readFileSync } from 'node:fs';
import { Tokenizer } from '@huggingface/tokenizers';

process.env.ORT_DISABLE_TELEMETRY ??= '1'; // ONNX Runtime reads it when it is loaded
const { default: ort } = await import('onnxruntime-node');

const CHUNK = 128; // tokens per call; longer calls need more memory and are not faster
const ARRAYS = { float32: Float32Array, float16: Uint16Array };

const [folder, prompt, count = '64'] = process.argv.slice(2);
if (!prompt) {
  console.error('Usage: node generate.mjs PACKAGE PROMPT [TOKENS]');
  process.exit(2);
}
const readJson = (name) => JSON.parse(readFileSync(`${folder}/${name}`, 'utf8'));
const { config, state } = readJson('manifest.json');
const tokenizer = new Tokenizer(readJson('tokenizer.json'), {});
const model = await ort.InferenceSession.create(`${folder}/model.onnx`);
const endIds = [config.eos_token_id ?? []].flat();

let position = 0;
const past = {}; // all zero before the first token
for (const { past: name, shape, dtype } of state.tensors) {
  const size = shape.reduce((product, dimension) => product * dimension, 1);
  past[name] = new ort.Tensor(dtype, new ARRAYS[dtype](size), [1, ...shape]);
}

// Read tokens, and return the logits after the last one.
async function read(ids) {
  const positions = ids.map((_, index) => BigInt(position + index));
  const outputs = await model.run({
    input_ids: new ort.Tensor('int64', ids.map(BigInt), [1, ids.length]),
    position_ids: new ort.Tensor('int64', positions, [1, ids.length]),
    logits_to_keep: new ort.Tensor('int64', [1n], []),
    ...past,
  });
  for (const tensor of state.tensors) past[tensor.past] = outputs[tensor.present];
  position += ids.length;
  return outputs.logits.data;
}

let logits, shown = '';
const promptIds = tokenizer.encode(prompt).ids, answer = [];
for (let at = 0; at < promptIds.length; at += CHUNK) logits = await read(promptIds.slice(at, at + CHUNK));
while (answer.length < Number(count)) {
  const largest = logits.reduce((most, logit) => Math.max(most, logit));
  if (!Number.isFinite(largest)) throw new Error('The logits are not finite.');
  const token = logits.indexOf(largest);
  if (endIds.includes(token)) break;
  answer.push(token);
  const text = tokenizer.decode(answer, { skip_special_tokens: true }).replace(/\ufffd+$/, ''); // whole characters
  process.stdout.write(text.slice(shown.length));
  shown = text;
  if (answer.length < Number(count)) logits = await read([token]);
}
process.stdout.write('\n');
