// Walks through the pages in Chromium, at both widths and themes, and says what it met, as JSON.
// Its one argument is JSON: browser, base, file (to upload), several (files to upload together, the
// last one bad), hostile (a label with markup), pictures (a folder; null: none).
import { join } from "node:path";
import { walk } from "./walk.js";

const asked = JSON.parse(process.argv[2]);
const { base, file, several, hostile, pictures } = asked;
const { browser, found, opened, look } = await walk(asked);
Object.assign(found, { keys: {}, plain: {}, refined: {} });

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
    const searched = page.url();
    await page.locator('a[data-mark="like"]').first().click();
    await page.locator('a[data-mark="dislike"]').last().click();
    await page.waitForURL(/query=.*like=.*dislike=/);
    await page.locator(".pick input").first().check();
    await look(page, named("refined"));
    await page.locator("#collect button").click();
    await page.waitForURL(/collection\?/);
    await look(page, named("collection"));
    if (!every) {
      await page.context().close();
      continue;
    }
    await page.goto(searched.replace("?", "?where=modality%3DCT&where=modality%3DMR&"));
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
      // Pictures of the way there are loaded first.
      await page.waitForFunction(() => {
        const shown = new URL(document.querySelector("img.large").src).searchParams;
        return ["window", "level"].every((name) =>
          shown.get(name) === document.querySelector(`input[name=${name}]`).value);
      });
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

// Liked, disliked and undone by keys; several files; recent searches; tiles.
{
  const page = await opened({ viewport: { width: 1280, height: 800 } });
  const at = () => page.evaluate(() => {
    const pictures = [...document.querySelectorAll("a.picture")];
    return pictures.indexOf(document.activeElement);
  });
  await page.goto(`${base}/?where=labels%3D${encodeURIComponent(hostile)}`);
  await page.locator("a[data-more]").first().click();
  await page.waitForURL(/like=/);
  await page.goto(`${base}/?where=modality%3DCT`);
  await page.locator("a[data-more]").first().click();
  await page.waitForURL(/like=/);
  await page.goto(page.url() + "&group_by=none");
  for (const key of ["ArrowRight", "ArrowRight"]) await page.keyboard.press(key);
  const before = page.url();
  // Nothing of this is for a shortcut.
  for (const key of ["Control+d", "Alt+l", "Meta+l"]) await page.keyboard.press(key);
  await page.locator(".again > summary").click();
  await page.locator("form.search summary").click();
  await page.locator("#k").focus();
  for (const key of ["l", "d", "u", "c", "/"]) await page.keyboard.press(key);
  found.refined.typed = page.url() === before && await page.locator(".pick input:checked").count() === 0;
  await page.locator("a.picture").nth(1).focus();
  await page.keyboard.press("c");
  found.refined.checked = await page.locator(".pick input").nth(1).isChecked();
  await page.keyboard.press("l");
  await page.waitForURL(/like=.*like=/);
  found.refined.focus = await at();
  await page.keyboard.press("d");
  await page.waitForURL(/dislike=/);
  found.refined.chips = await page.locator(".examples .chips a").count();
  await page.keyboard.press("u");
  await page.waitForURL((url) => !url.search.includes("dislike="));
  found.refined.undone = await page.locator(".examples .chips a").count();
  await page.locator('[data-tiles="small"]').click();
  await page.waitForURL(/tiles=small/);
  await page.goto(before);
  // What was chosen once holds for searches whose address does not say.
  found.refined.tiles = await page.locator(".grid.small").count();
  await page.goto(`${base}/`);
  await look(page, "recent");
  const recent = page.locator(".recent li a");
  found.refined.recent = await recent.allTextContents();
  found.refined.small = await page.locator(".recent img").evaluateAll((all) =>
    all.filter((one) => one.naturalWidth > 0).length);
  await recent.last().click();
  await page.waitForURL(/like=/);
  const other = await page.context().newPage();
  await other.goto(`${base}/`);
  found.refined.elsewhere = await other.locator(".recent li").count();
  await other.close();
  await page.goto(`${base}/`);
  await page.locator("#file").setInputFiles(several);
  await page.locator("form.search button").click();
  await page.waitForURL(/query=.*query=/);
  found.refined.unusable = await page.locator(".unusable li").allTextContents();
  await page.reload();
  found.refined.pictures = await page.locator("[data-kept] img").evaluateAll((all) =>
    all.filter((one) => one.checkVisibility() && one.naturalWidth > 0).length);
  await page.goto(`${base}/`);
  await page.evaluate(async () => {
    const brought = new DataTransfer();
    for (const shade of ["#333", "#bbb"]) {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [80, 80];
      const pen = canvas.getContext("2d");
      pen.fillStyle = shade;
      pen.fillRect(10, 10, 50, 60);
      const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
      brought.items.add(new File([blob], `${shade.slice(1)}.png`));
    }
    const event = new DragEvent("drop", { dataTransfer: brought, bubbles: true, cancelable: true });
    document.dispatchEvent(event);
  });
  await page.waitForURL(/query=.*query=/);
  found.refined.dropped = await page.locator("[data-kept]").count();
  await page.locator(".again > summary").click();
  await page.locator(".recent button").click();
  await page.goto(`${base}/`);
  found.refined.forgotten = await page.locator(".recent li").count();
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
  await page.goto(`${base}/`);
  await page.locator("a[data-more]").first().click();
  await page.locator('a[data-mark="like"]').first().click();
  await page.locator('a[data-mark="dislike"]').first().click();
  found.plain.examples = await page.locator(".examples .chips a").count();
  await page.locator(".pick input").first().check();
  await page.locator("#collect button").click();
  await page.waitForURL(/collection\?/);
  found.plain.collected = await page.locator("article").count();
  await page.goBack();
  await page.locator("a.picture").first().click();
  await page.waitForURL(/images\//, { waitUntil: "networkidle" });
  found.plain.image = await page.locator("img.large").evaluate((one) => one.naturalWidth);
  await page.context().close();
}

await browser.close();
console.log(JSON.stringify(found));
