// Photographs pages for the docs. Its one argument is JSON: browser, base, image, series and
// foreign (files to search for), pictures (the folder they go to).
import { join } from "node:path";
import { walk } from "./walk.js";

const asked = JSON.parse(process.argv[2]);
const { base, image, series, foreign, pictures } = asked;
const { browser, found, opened } = await walk(asked);

// Of a page in this theme, so wide; `height`: what is shown of it without scrolling.
const page = (width, height, colorScheme = "light") =>
  opened({ viewport: { width, height }, colorScheme, locale: "en-GB", reducedMotion: "reduce" });

async function photograph(shown, name) {
  await shown.waitForLoadState("networkidle");
  await shown.evaluate(async () => {
    document.activeElement?.blur();
    const seen = [...document.images].filter((one) => one.getBoundingClientRect().top < innerHeight);
    await Promise.all(seen.map((one) => one.decode()));
  });
  await shown.mouse.move(0, 0);
  await shown.screenshot({ path: join(pictures, `${name}.png`) });
}

async function search(shown, file) {
  await shown.goto(`${base}/`);
  const options = shown.locator("summary", { hasText: "Options" });
  if (!(await shown.locator("#file").isVisible()) && (await options.isVisible())) await options.click();
  await shown.locator("#file").setInputFiles(file);
  await shown.locator("form.search button").click();
  await shown.waitForURL(/query=/);
}

const wide = await page(1280, 860);
await search(wide, image);
await photograph(wide, "search");
await search(wide, series);
await wide.locator('article a[href*="studies/"]').first().click();
await photograph(wide, "study");
await search(wide, foreign);
await wide.locator(".verdict summary").click();
await photograph(wide, "foreign");

const narrow = await page(390, 844);
await search(narrow, image);
await photograph(narrow, "search-narrow");

// Of two images of the archive, as the page of a study leads to.
const square = await page(1000, 860);
await search(square, image);
await square.locator('article a[href*="studies/"]').first().click();
await square.locator('a[href*="compare?"]').first().click();
await photograph(square, "compare");

const dark = await page(900, 1010, "dark");
await dark.goto(`${base}/archive#map`);
await photograph(dark, "archive");

await browser.close();
process.stdout.write(JSON.stringify(found));
