// The page: a conversation if the package has a chat template, otherwise a text that goes on.

import { openPackage, wasmBytes } from "./liger.js";

const element = (id) => document.getElementById(id);
const options = new URLSearchParams(location.search);
let session = null;
let history = [];
let running = null;

function megabytes(bytes) {
  return bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function show(role, text) {
  const message = document.createElement("div");
  message.className = `message ${role}`;
  message.textContent = text;
  element("messages").append(message);
  message.scrollIntoView({ block: "end" });
  return message;
}

function showMemory() {
  element("length").textContent = `${session.read.length} tokens read`;
  element("state").textContent = `${megabytes(session.stateBytes)} at any length`;
  element("memory").textContent = megabytes(wasmBytes());
}

function showSpeed(times) {
  if (times.length < 2) return;
  const seconds = (times.at(-1) - times[0]) / 1e3;
  element("speed").textContent = `${((times.length - 1) / seconds).toFixed(1)} tokens/s`;
}

function showProgress(done, total) {
  element("stage").textContent = `Loading the package: ${megabytes(done)} of ${megabytes(total)}`;
  element("progress").value = done / total;
  if (done === total) element("stage").textContent = "Starting the model";
}

/** The prompt's token ids, and the element that its continuation is added to. */
function begin(text) {
  if (!session.hasChat) {
    const message = show("text", "");
    message.append(Object.assign(document.createElement("b"), { textContent: text }));
    return [session.text.encode(text), message];
  }
  show("user", text);
  history.push({ role: "user", content: text });
  return [session.text.encodeChat(history), show("assistant", "")];
}

async function send() {
  const text = element("text").value;
  if (!text.trim() || running || !session) return;
  running = new AbortController();
  element("text").value = "";
  element("send").hidden = true;
  element("stop").hidden = false;
  const times = [];
  let answer = "";
  const [prompt, message] = begin(text);
  const onToken = () => {
    times.push(performance.now());
    showMemory();
    showSpeed(times);
  };
  try {
    const settings = { maxTokens: element("limit").valueAsNumber, signal: running.signal, onToken };
    for await (const piece of session.generate(prompt, settings)) {
      answer += piece;
      message.append(piece);
      message.scrollIntoView({ block: "end" });
    }
  } catch (error) {
    show("error", error.message);
  }
  if (session.hasChat) history.push({ role: "assistant", content: answer });
  running = null;
  element("send").hidden = false;
  element("stop").hidden = true;
}

function reset() {
  running?.abort();
  history = [];
  document.querySelectorAll(".message").forEach((message) => message.remove());
}

async function start() {
  const address = options.get("package") ?? "package/";
  try {
    session = await openPackage(address, { device: options.get("device") ?? "auto", onProgress: showProgress });
  } catch (error) {
    element("stage").textContent = error.message;
    element("progress").hidden = true;
    return;
  }
  element("loading").hidden = true;
  element("runs").textContent = session.description;
  element("text").placeholder = session.hasChat ? "Message" : "Text to continue";
  element("text").disabled = element("send").disabled = false;
  element("text").focus();
  showMemory();
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
element("new").addEventListener("click", reset);
start();
