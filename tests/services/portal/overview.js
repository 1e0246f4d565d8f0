// Looks at the pages of the archive, its duplicates and the model, at both widths and themes, and says
// what it met, as JSON. Its one argument is JSON: browser, base, pictures (a folder; null: none).
import { walk } from "./walk.js";

const asked = JSON.parse(process.argv[2]);
const { base } = asked;
const { browser, found, opened, look } = await walk(asked);
found.plain = {};

for (const colorScheme of ["light", "dark"]) {
  for (const width of [1280, 390]) {
    const viewport = { width, height: width === 390 ? 844 : 800 };
    const page = await opened({ viewport, colorScheme });
    for (const [name, path] of [
      ["archive", "archive?colour=labels"],
      ["duplicates", "archive/duplicates"],
      ["model", "model"],
    ]) {
      await page.goto(`${base}/${path}`);
      await page.evaluate(() => document.querySelectorAll("details").forEach((one) => (one.open = true)));
      await look(page, `${name}-${width}-${colorScheme}`);
    }
    await page.context().close();
  }
}

// Without JavaScript: by a bar, by a point of the map, and by keys to a picture of its list.
{
  const page = await opened({ viewport: { width: 1280, height: 800 }, javaScriptEnabled: false });
  const came = async (url) => {
    await page.waitForURL(url, { waitUntil: "commit" });
    await page.locator("footer").waitFor();
  };
  const shown = async () => page.locator("meter").count();
  await page.goto(`${base}/`);
  await page.locator("nav a", { hasText: "Archive" }).click();
  await page.locator(".bars a", { hasText: "CT" }).first().click();
  await came(/where=modality/);
  found.plain.cases = await page.locator("article").count();
  await page.goto(`${base}/archive`);
  // Whichever lies on top.
  await page.locator(".map a").first().click({ force: true });
  await came(/like=/);
  found.plain.alike = await shown();
  await page.goto(`${base}/archive`);
  await page.locator(".legend a").first().focus();
  await page.keyboard.press("Tab");
  // The points of the map are passed over: their list follows.
  for (let n = 0; n < 8; n += 1) {
    if (await page.evaluate(() => document.activeElement.matches("a.picture"))) break;
    await page.keyboard.press("Tab");
  }
  await page.keyboard.press("Enter");
  await came(/like=/);
  found.plain.listed = await shown();
  await page.context().close();
}

await browser.close();
console.log(JSON.stringify(found));
