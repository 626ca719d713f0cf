// A static server for the page: node server.mjs PACKAGE [PORT]
//
// The two isolation headers give the page SharedArrayBuffer, without which WebAssembly has one thread.

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize, sep } from "node:path";
import { fileURLToPath } from "node:url";

const TYPES = {
  ".css": "text/css",
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".json": "application/json",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
};
const HEADERS = {
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-embedder-policy": "require-corp",
  "cache-control": "no-cache",
};

const page = fileURLToPath(new URL(".", import.meta.url));
const [packageDirectory, port = "8000"] = process.argv.slice(2);
if (packageDirectory === undefined) {
  console.error("Usage: node server.mjs PACKAGE [PORT]");
  process.exit(2);
}

function fileOf(url) {
  const path = normalize(decodeURIComponent(new URL(url, "http://localhost").pathname));
  if (path.split(sep).includes("..")) return null;
  if (path.startsWith("/package/")) return join(packageDirectory, path.slice("/package/".length));
  return join(page, path === "/" ? "index.html" : path);
}

const server = createServer(async (request, response) => {
  try {
    const file = fileOf(request.url);
    const { size } = await stat(file);
    const type = TYPES[extname(file)] ?? "application/octet-stream";
    response.writeHead(200, { ...HEADERS, "content-type": type, "content-length": size });
    createReadStream(file).on("error", () => response.destroy()).pipe(response);
  } catch {
    response.writeHead(404, HEADERS).end();
  }
});
server.listen(Number(port), "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}`));
