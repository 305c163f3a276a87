// Headless Chromium, and a server of this package and other folders for it.
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";

const PACKAGE = fileURLToPath(new URL("..", import.meta.url));
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm" };
const ISOLATION = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

/**
 * What `action` returns for a page in Chromium; the page must stay without errors.
 *
 * @param {string} chromium path of the program
 * @param {Record<string, string>} folders what is served besides this package, by the beginning of its path
 * @param {(page: object) => Promise<any>} action gets puppeteer's page; `page.origin` is the address of the server
 * @param {{ isolated?: boolean }} [options] `isolated`: the page is cross-origin isolated, so that WebAssembly may have threads
 */
export async function withPage(chromium, folders, action, { isolated = false } = {}) {
  const headers = isolated ? ISOLATION : {};
  const server = createServer((request, response) => serve(folders, headers, request, response)).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  try {
    return await withBrowser(chromium, async (page) => {
      page.origin = `http://127.0.0.1:${server.address().port}`;
      return action(page);
    });
  } finally {
    server.close();
    server.closeAllConnections();
  }
}

/** What `action` returns for a new page in Chromium; an error there, or on the console, is one here. */
export async function withBrowser(chromium, action) {
  const { default: puppeteer } = await import("puppeteer-core");
  const browser = await puppeteer.launch({ executablePath: chromium, args: ["--no-sandbox", "--disable-gpu"], timeout: 60_000 });
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
