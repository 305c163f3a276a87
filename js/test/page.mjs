// Uses the example page in Chromium as a person would: `node page.mjs CHROMIUM URL WIDTH OTHER FOLDER`.
//
// All is done on a screen of WIDTH pixels; whether the page fits is seen there and on one of OTHER.
// Prints "loaded" once the page has all of its files, and then waits for a line: by then the server may be gone. Prints what was
// seen as JSON at the end; the checkpoint that was downloaded lies in FOLDER.
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";

import { withBrowser } from "./browser.mjs";

const [chromium, url, width, other, folder] = process.argv.slice(2);

await withBrowser(chromium, async (page) => {
  await page.setViewport({ width: Number(width), height: 900 });
  const text = (id) => page.$eval(`#${id}`, (element) => element.textContent);
  const says = (id, part) =>
    page.waitForFunction((id, part) => document.getElementById(id).textContent.includes(part), {}, id, part);

  await page.goto(url);
  await says("status", "Ready to train");
  await page.evaluate(() => navigator.serviceWorker.ready);
  console.log("loaded");
  await once(process.stdin, "data");
  await page.reload();
  await says("status", "Ready to train");
  const loaded = await text("status");

  await page.focus("#drawing");
  for (const key of ["ArrowRight", "ArrowRight", "ArrowRight", "Space", "ArrowDown", "Space"]) await page.keyboard.press(key);
  const place = await text("drawing-place");
  await says("guess", "%");
  const box = await (await page.$("#drawing")).boundingBox();
  await page.mouse.move(box.x + box.width / 2, box.y + 10);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width / 2, box.y + box.height - 10, { steps: 8 });
  await page.mouse.up();
  const painted = () => page.$eval("#drawing", (canvas) => {
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
    return data.filter((value, i) => i % 4 === 0 && value < 128).length / (canvas.width * canvas.height);
  });
  const inked = await painted();
  await page.select("#class", "1");
  await page.click("#teach button");
  const examples = await text("examples");
  const cleared = await painted();

  await page.$eval("#epochs", (input) => (input.value = "50"));
  await page.click("#start");
  await page.waitForFunction(() => document.getElementById("progress").value >= 20);
  await page.click("#cancel");
  await says("status", "Cancelled");
  const cancelled = await text("status");

  await page.evaluate(() => {
    // What a click on a link with `download` would save.
    HTMLAnchorElement.prototype.click = function () {
      globalThis.saved = fetch(this.href).then((response) => response.arrayBuffer());
      globalThis.savedAs = this.download;
    };
  });
  await page.click("#save");
  await says("status", "Saved");
  const [name, bytes] = await page.evaluate(async () => [globalThis.savedAs, [...new Uint8Array(await globalThis.saved)]]);
  await writeFile(join(folder, name), Uint8Array.from(bytes));
  await (await page.$("#load")).uploadFile(join(folder, name));
  await says("status", "Goes on");

  const fits = {};
  for (const each of [other, width]) {
    await page.setViewport({ width: Number(each), height: 900 });
    fits[each] = await page.evaluate(() => ({
      tooWide: [...document.querySelectorAll("body *")]
        .filter((element) => element.getBoundingClientRect().right > document.documentElement.clientWidth)
        .map((element) => element.outerHTML.slice(0, 80)),
      scrolls: document.documentElement.scrollWidth > document.documentElement.clientWidth,
    }));
  }
  const seen = await page.evaluate(() => ({
    unnamed: [...document.querySelectorAll("button, input, select, progress, meter, canvas, svg")]
      .filter((element) => !(element.labels?.length || element.textContent.trim() || element.ariaLabel || element.hasAttribute("aria-labelledby")))
      .map((element) => element.outerHTML),
    headings: [...document.querySelectorAll("h1, h2, h3")].map((heading) => Number(heading.tagName[1])),
    points: document.querySelector("#chart .loss").getAttribute("points").split(" ").length,
    words: document.getElementById("chart-text").textContent,
  }));
  // With Tab alone everything that can be used is reached.
  await page.evaluate(() => document.activeElement.blur());
  const reached = [];
  for (let i = 0; i < 10; i++) {
    await page.keyboard.press("Tab");
    reached.push(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent.trim()));
  }
  const status = await text("status");
  console.log(JSON.stringify({ ...seen, fits, reached, loaded, place, inked, cleared, examples, cancelled, name, status }));
});
process.exit(0);
