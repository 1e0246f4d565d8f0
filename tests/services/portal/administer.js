// Walks through the pages of keys and of the audit log in Chromium, and says what it met, as JSON.
// Its one argument is JSON: browser, base, key (that may do everything), pictures (a folder).
import { walk } from "./walk.js";

const asked = JSON.parse(process.argv[2]);
const { base, key } = asked;
const { browser, found, opened, look } = await walk(asked);
Object.assign(found, { shown: [], copied: [], again: 0, states: [], verified: [], rows: [] });

for (const [width, theme, scripts] of [[1280, "light", true], [390, "dark", true], [390, "light", false]]) {
  const viewport = { width, height: width === 390 ? 844 : 800 };
  // What scrolls smoothly is not clicked before it stands still.
  const options = { viewport, colorScheme: theme, javaScriptEnabled: scripts, reducedMotion: "reduce" };
  const page = await opened(options);
  // axe-core is a script.
  const seen = async (name) => { if (scripts) await look(page, `${name}-${width}-${theme}`); };
  await page.goto(`${base}/keys`);
  await page.locator("#key").fill(key);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.waitForURL(/keys$/);
  await seen("keys");
  await page.locator("#name").fill(`ward ${width} ${theme}`);
  await page.getByRole("button", { name: "Make the key" }).click();
  const shown = (await page.locator("#secret").textContent()).trim();
  found.shown.push(shown);
  if (scripts) {
    await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
    await page.getByRole("button", { name: "Copy" }).click();
    await page.getByText("Copied").waitFor();
    found.copied.push(await page.evaluate(() => navigator.clipboard.readText()));
  }
  await seen("made");
  await page.getByRole("link", { name: "Done" }).click();
  found.again += (await page.content()).includes(shown);
  await page.getByRole("link", { name: `Revoke ward ${width} ${theme}` }).click();
  await page.waitForURL(/revoke=/);
  await seen("revoke");
  await page.getByRole("button", { name: "Revoke" }).click();
  await page.waitForURL(/keys#key-/);
  found.states.push(await page.locator("tr", { hasText: `ward ${width} ${theme}` }).textContent());
  await page.getByRole("link", { name: "Audit log" }).click();
  await page.waitForURL(/audit$/);
  await seen("audit");
  await page.locator("#route").fill("keys");
  await page.getByRole("button", { name: "Search" }).click();
  await page.waitForURL(/route=keys/);
  found.rows.push(await page.locator("tbody tr").count());
  await page.getByRole("button", { name: "Verify", exact: true }).click();
  await page.locator("#verified-title").waitFor();
  found.verified.push(await page.locator("#verified-title").textContent());
  await page.locator("summary", { hasText: "Heads" }).click();
  await seen("verified");
  await page.context().close();
}

await browser.close();
console.log(JSON.stringify(found));
