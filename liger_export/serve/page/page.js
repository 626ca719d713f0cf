"use strict";

const element = (id) => document.getElementById(id);
const sizes = new Map();
let history = [];
let running = null;

function megabytes(bytes) {
  return bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function headers() {
  const key = element("key").value.trim();
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

function show(role, text) {
  element("empty").hidden = true;
  const message = document.createElement("div");
  message.className = `message ${role}`;
  message.textContent = text;
  element("messages").append(message);
  message.scrollIntoView({ block: "end" });
  return message;
}

function showState() {
  const bytes = sizes.get(element("model").value);
  element("state").textContent = bytes === undefined ? "State: ?" : `State: ${megabytes(bytes)} at any length`;
}

async function loadModels() {
  const response = await fetch("v1/models", { headers: headers() });
  element("key-label").hidden = response.status !== 401 && !element("key").value;
  if (!response.ok) return;
  const chosen = element("model").value;
  const models = (await response.json()).data;
  sizes.clear();
  element("model").replaceChildren(...models.map((model) => {
    sizes.set(model.id, model.state_bytes);
    return new Option(model.id, model.id, false, model.id === chosen);
  }));
  showState();
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function showUsage(usage) {
  const cached = usage.prompt_tokens_details.cached_tokens;
  const fresh = usage.prompt_tokens - cached;
  element("read").textContent = `Read: ${fresh} of ${usage.prompt_tokens} tokens; ${cached} were in the state`;
}

async function answer(message) {
  const body = { model: element("model").value, messages: history, stream: true, stream_options: { include_usage: true } };
  const response = await fetch("v1/chat/completions", {
    method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal,
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  let first = null, pieces = 0;
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    if (event.usage) {
      showUsage(event.usage);
      showSpeed(event.usage.completion_tokens, first);
    }
    const text = event.choices[0]?.delta.content;
    if (!text) continue;
    first ??= performance.now();
    pieces += 1;
    message.textContent += text;
    message.scrollIntoView({ block: "end" });
    showSpeed(pieces, first);
  }
}

function showSpeed(tokens, first) {
  const seconds = (performance.now() - first) / 1e3;
  if (tokens > 1 && seconds > 0) element("speed").textContent = `Speed: ${((tokens - 1) / seconds).toFixed(1)} tokens/s`;
}

async function send() {
  const text = element("text").value.trim();
  if (!text || running) return;
  element("text").value = "";
  show("user", text);
  const conversation = history;
  conversation.push({ role: "user", content: text });
  const message = show("assistant", "");
  running = new AbortController();
  element("read").textContent = "Read: -";
  element("speed").textContent = "Speed: -";
  element("send").hidden = true;
  element("stop").hidden = false;
  try {
    await answer(message);
  } catch (error) {
    if (error.name !== "AbortError") show("error", error.message);
  }
  running = null;
  element("send").hidden = false;
  element("stop").hidden = true;
  if (message.textContent) conversation.push({ role: "assistant", content: message.textContent });
  else {
    conversation.pop();
    message.remove();
  }
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
element("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
element("stop").addEventListener("click", () => running?.abort());
element("new").addEventListener("click", () => {
  running?.abort();
  history = [];
  document.querySelectorAll(".message").forEach((message) => message.remove());
  element("empty").hidden = false;
});
element("model").addEventListener("change", showState);
element("key").addEventListener("change", loadModels);
loadModels();
