// Opens a page of Netron in headless Chromium and prints the nodes that it shows as JSON: `node netron.mjs CHROMIUM URL`.
import puppeteer from "puppeteer-core";

const [chromium, url] = process.argv.slice(2);
const browser = await puppeteer.launch({ executablePath: chromium, args: ["--no-sandbox", "--disable-gpu"] });
try {
  const page = await browser.newPage();
  await page.goto(url);
  const consent = await page.waitForSelector("#message-button", { visible: true, timeout: 20_000 });
  await consent.click();
  await page.waitForSelector("g.node", { timeout: 240_000 });
  const shown = await page.$$eval("g.node", (nodes) => nodes.map((node) => [node.id, node.textContent]));
  console.log(JSON.stringify(shown));
} finally {
  await browser.close();
}
