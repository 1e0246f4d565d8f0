// Walks through the pages in Chromium, at both widths and themes, and says what it met, as JSON.
// Its one argument is JSON: browser, base, file (to upload), pictures (a folder; null: none).
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { chromium } from "playwright-core";

const { browser: executablePath, base, file, pictures } = JSON.parse(process.argv[2]);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"];
const found = { violations: [], strangers: [], complaints: [], looks: [], keys: {}, plain: {} };

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });

async function opened(options) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.setDefaultTimeout(60000);
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(base) && !url.startsWith("data:")) found.strangers.push(url);
  });
  page.on("console", (message) => {
    // What the browser says of an answer that is a problem, as some are asked for here.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) {
      found.complaints.push(message.text());
    }
  });
  page.on("pageerror", (error) => found.complaints.push(String(error)));
  return page;
}

async function look(page, name, until = "networkidle") {
  await page.waitForLoadState(until);
  if (pictures) await page.screenshot({ path: join(pictures, `${name}.png`), fullPage: true });
  await page.evaluate(axe);
  const told = await page.evaluate((tags) => window.axe.run(document, { runOnly: tags }), TAGS);
  for (const one of told.violations) {
    for (const node of one.nodes) {
      found.violations.push(`${name}: ${one.id}: ${node.html.slice(0, 160)}: ${node.failureSummary}`);
    }
  }
  found.looks.push({
    name,
    passes: told.passes.length,
    ...(await page.evaluate(() => {
      const first = document.querySelector("a.picture");
      const able = [...document.querySelectorAll("a[href], button, input:not([type=hidden]), select, summary")];
      const seen = able.filter((one) => one.checkVisibility());
      return {
        wide: document.scrollingElement.scrollWidth - window.innerWidth,
        top: first ? first.getBoundingClientRect().top + window.scrollY : null,
        stops: first ? seen.indexOf(first) : null,
      };
    })),
  });
}

for (const theme of ["light", "dark"]) {
  for (const width of [1280, 390]) {
    const viewport = { width, height: width === 390 ? 844 : 800 };
    const page = await opened({ viewport, colorScheme: theme });
    const every = (width === 1280) === (theme === "light");
    const named = (name) => `${name}-${width}-${theme}`;
    await page.goto(`${base}/`);
    if (every) await look(page, named("front"));
    if (width === 390) await page.locator("summary", { hasText: "Options" }).click();
    await page.locator("#file").setInputFiles(file);
    await page.locator("form.search button").click();
    await page.waitForURL(/query=/);
    await look(page, named("hits"));
    if (!every) {
      await page.context().close();
      continue;
    }
    await page.goto(page.url().replace("?", "?where=modality%3DCT&where=modality%3DMR&"));
    // The picture was kept by the browser.
    found.plain[named("kept")] = await page.locator(".asked img").isVisible();
    await page.locator("article summary").first().click();
    await page.locator(".verdict summary").click();
    await look(page, named("narrowed"));
    const chest = page.locator("article", { hasText: "CT CHEST" }).first();
    await chest.locator('a[href*="studies/"]').click();
    await look(page, named("study"));
    await page.locator("a.picture").first().click();
    await look(page, named("image"));
    if (width === 1280) {
      const box = await page.locator("img[data-window]").boundingBox();
      await page.mouse.move(box.x + 50, box.y + 50);
      await page.mouse.down();
      await page.mouse.move(box.x + 90, box.y + 80, { steps: 8 });
      await page.mouse.up();
      await page.waitForLoadState("networkidle");
      found.keys.dragged = [
        await page.evaluate(() => location.search),
        new URL(await page.locator("img.large").evaluate((one) => one.src)).search,
        await page.locator("input[name=window]").inputValue(),
      ];
    }
    await page.goto(`${base}/?query=never`);
    await look(page, named("over"));
    await page.goto(`${base}/`);
    await page.locator("a.picture").first().click();
    await page.waitForURL(/images\//);
    await page.locator("a.button", { hasText: "More like this" }).click();
    await page.locator('a[href^="compare"]').first().click();
    await look(page, named("compare"));
    await page.goto(`${base}/jobs`);
    // Followed by a connection that stays open.
    await look(page, named("jobs"), "load");
    const live = page.locator("[data-live]");
    if (await live.count()) {
      const job = await live.first().getAttribute("data-job");
      await page.evaluate((id) => fetch(`v1/jobs/${id}/pause`, { method: "POST" }), job);
      const status = page.locator(`[data-job="${job}"] [data-status]`, { hasText: "paused" });
      await status.waitFor();
      found.keys.followed = true;
    }
    await page.context().close();
  }
}

// By keys alone.
{
  const page = await opened({ viewport: { width: 1280, height: 800 } });
  await page.goto(`${base}/`);
  const focused = () => page.evaluate(() => {
    const pictures = [...document.querySelectorAll("a.picture")];
    return pictures.indexOf(document.activeElement);
  });
  const gone = [];
  for (const key of ["ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"]) {
    await page.keyboard.press(key);
    gone.push(await focused());
  }
  found.keys.moves = gone;
  await page.keyboard.press("?");
  found.keys.help = await page.locator("dialog.keys").isVisible();
  await look(page, "keys");
  await page.keyboard.press("Escape");
  await page.keyboard.press("/");
  found.keys.filters = await page.evaluate(() => document.activeElement.closest("#filters") !== null);
  await page.keyboard.press("?");
  await page.locator("#keys-on").uncheck();
  await page.keyboard.press("Escape");
  await page.keyboard.press("?");
  found.keys.off = await page.locator("dialog.keys").isHidden();
  await page.locator("a.picture").nth(1).focus();
  await page.keyboard.press("Enter");
  await page.waitForURL(/images\//);
  found.keys.opened = page.url().slice(base.length);
  await page.context().close();
}

// Without JavaScript.
{
  const page = await opened({ viewport: { width: 390, height: 844 }, javaScriptEnabled: false });
  await page.goto(`${base}/`);
  await page.locator("#file").setInputFiles(file);
  await page.locator("form.search button").click();
  await page.locator("a.picture").first().waitFor();
  if (pictures) await page.screenshot({ path: join(pictures, "plain.png"), fullPage: true });
  found.plain.hits = await page.locator("meter").count();
  await page.locator(".facet a", { hasText: "CT" }).first().click();
  await page.waitForURL(/where=/);
  found.plain.narrowed = await page.locator("meter").count();
  await page.locator('article a[href*="studies/"]').first().click();
  await page.locator(".strip a.picture").first().click();
  await page.waitForURL(/images\//, { waitUntil: "networkidle" });
  found.plain.image = await page.locator("img.large").evaluate((one) => one.naturalWidth);
  await page.context().close();
}

await browser.close();
console.log(JSON.stringify(found));
