// Headless Chromium, and a server of this package and other folders for it.
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const PACKAGE = fileURLToPath(new URL("..", import.meta.url));
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm" };
const NO_GPU = ["--disable-gpu"];
const SOFTWARE_GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=WebMachineLearningNeuralNetwork"];
const ISOLATION = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

/**
 * What `action` returns for a page in Chromium; the page must stay without errors.
 *
 * @param {string} chromium path of the program
 * @param {Record<string, string>} folders what is served besides this package, by the beginning of its path
 * @param {(page: object) => Promise<any>} action gets puppeteer's page; `page.origin` is the address of the server
 * @param {{ isolated?: boolean, gpu?: boolean }} [options] `isolated`: the page is cross-origin isolated, so that WebAssembly may
 *     have threads; `gpu`: it has WebGPU, which SwiftShader computes on the processor, and WebNN where the platform has it
 */
export async function withPage(chromium, folders, action, { isolated = false, gpu = false } = {}) {
  const headers = isolated ? ISOLATION : {};
  const server = createServer((request, response) => serve(folders, headers, request, response)).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  try {
    return await withBrowser(chromium, async (page) => {
      page.origin = `http://127.0.0.1:${server.address().port}`;
      return action(page);
    }, gpu);
  } finally {
    server.close();
    server.closeAllConnections();
  }
}

/** What `action` returns for a new page in Chromium; an error there, or on the console, is one here. */
export async function withBrowser(chromium, action, gpu = false) {
  const { default: puppeteer } = await import("puppeteer-core");
  const browser = await puppeteer.launch({ executablePath: chromium, args: ["--no-sandbox", ...(gpu ? SOFTWARE_GPU : NO_GPU)], timeout: 60_000 });
  try {
    const page = await browser.newPage();
    const said = [];
    page.on("console", (message) => ["error", "warn"].includes(message.type()) && said.push(message.text()));
    page.on("pageerror", (error) => said.push(String(error)));
    const result = await action(page);
    if (said.length > 0) throw new Error(`the page said: ${said.join("\n")}`);
    return result;
  } finally {
    await browser.close();
  }
}

async function serve(folders, headers, request, response) {
  const path = normalize(decodeURIComponent(new URL(request.url, "http://localhost").pathname));
  const prefix = Object.keys(folders).find((start) => path.startsWith(start));
  const file = prefix === undefined ? join(PACKAGE, path) : join(folders[prefix], path.slice(prefix.length));
  try {
    const content = await readFile(file);
    response.writeHead(200, { ...headers, "Content-Type": TYPES[extname(file)] ?? "application/octet-stream" }).end(content);
  } catch {
    response.writeHead(404).end();
  }
}
