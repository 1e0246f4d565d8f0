// A Chromium that looks at pages: it photographs them, and lets axe check them against WCAG.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { chromium } from "playwright-core";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"];

// executablePath: of the browser. base: address of the service; what is asked of others is noted.
// pictures: a folder; null: none. What was met is gathered in `found`.
export async function walk({ browser: executablePath, base, pictures }) {
  const found = { violations: [], strangers: [], complaints: [], looks: [] };
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

  return { browser, found, opened, look };
}
