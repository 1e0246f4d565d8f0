// Compares two images in one place, and turns one, in Chromium; says what it met, as JSON.
// Its one argument is JSON: browser, base, pair (the address of a page that compares), image (that
// of an image), file (to upload), pictures (a folder; null: none).
import { walk } from "./walk.js";

const asked = JSON.parse(process.argv[2]);
const { base, pair, image, file } = asked;
const { browser, found, opened, look } = await walk(asked);
Object.assign(found, { compared: {}, calm: {}, turned: {}, region: {}, plain: {} });

const wide = { width: 1280, height: 800 };
const narrow = { width: 390, height: 844 };
// Which pictures are to be seen: 0 is the left one.
const seen = (page) => page.locator(".both figure").evaluateAll((all) =>
  all.map((one, at) => (getComputedStyle(one.querySelector("a, .both img")).opacity === "0" ? null : at))
    .filter((at) => at !== null).join());
const changes = (page, milliseconds) => page.evaluate((time) => new Promise((done) => {
  let count = 0;
  const watched = new MutationObserver((all) => { count += all.length ? 1 : 0; });
  watched.observe(document.querySelector(".both figure"), { attributeFilter: ["class"] });
  setTimeout(() => done(count), time);
}), milliseconds);

// By buttons and keys.
{
  const page = await opened({ viewport: wide });
  await page.goto(`${base}${pair}`);
  const now = found.compared;
  now.first = await seen(page);
  await page.locator('[data-view="blink"]').click();
  await page.locator("[data-pace]").selectOption("500");
  // Whatever the page is told, it is not quicker.
  await page.locator("[data-pace]").evaluate((one) => {
    one.options[2].value = "10";
    one.dispatchEvent(new Event("change"));
  });
  now.blinks = await changes(page, 3000);
  await page.locator("[data-run]").click();
  now.stopped = await changes(page, 1500);
  await look(page, "blink");
  const still = await seen(page);
  await page.locator("body").press("x");
  now.exchanged = `${still}${await seen(page)}`;
  now.said = await page.locator("[data-now]").textContent();
  await page.locator("body").press("b");
  now.again = await changes(page, 2500) > 0;
  await page.locator("body").press("b");
  now.byKey = await changes(page, 1500);
  await page.locator("body").press("w");
  const clip = () => page.locator(".both figure:last-of-type > a").evaluate((one) =>
    getComputedStyle(one).clipPath);
  now.half = await clip();
  await page.locator("[data-swipe]").focus();
  for (const key of ["ArrowRight", "ArrowRight", "ArrowRight"]) await page.keyboard.press(key);
  now.moved = await clip();
  await look(page, "swipe");
  const box = await page.locator(".both").boundingBox();
  await page.mouse.move(box.x + box.width / 2, box.y + 100);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.2, box.y + 110, { steps: 5 });
  await page.mouse.up();
  now.dragged = [await clip(), page.url() === `${base}${pair}`];
  // The same two through another window are seen as before.
  await page.locator("a[data-carries]").nth(1).click();
  await page.waitForURL(/window=/);
  now.windowed = [await clip(), await page.locator(".both img").evaluateAll((all) =>
    all.every((one) => /window=/.test(one.src)))];
  await page.locator("body").press("Escape");
  now.last = [await seen(page), await page.locator(".both.stacked").count()];
  await page.context().close();
}

// Where less motion is asked for, nothing moves by itself.
{
  const page = await opened({ viewport: narrow, reducedMotion: "reduce", colorScheme: "dark" });
  await page.goto(`${base}${pair}`);
  await page.locator('[data-view="blink"]').click();
  await page.locator("body").press("b");
  found.calm.changes = await changes(page, 2500);
  found.calm.told = await page.locator("[data-still]").isVisible();
  found.calm.run = await page.locator("[data-run]").isVisible();
  const before = await seen(page);
  await page.locator("[data-exchange]").click();
  found.calm.exchanged = `${before}${await seen(page)}`;
  await look(page, "calm");
  await page.emulateMedia({ reducedMotion: "no-preference" });
  await page.locator("[data-run]").click();
  await page.emulateMedia({ reducedMotion: "reduce" });
  found.calm.after = await changes(page, 1500);
  await page.context().close();
}

// Turned by keys and links.
{
  const page = await opened({ viewport: narrow });
  await page.goto(`${base}${image}`);
  const now = found.turned;
  const matrix = () => page.locator("img.large").evaluate((one) => getComputedStyle(one).transform);
  now.stored = await matrix();
  await page.locator("body").press("r");
  now.right = await matrix();
  await page.locator("body").press("f");
  now.mirrored = [await matrix(), await page.evaluate(() => location.search)];
  now.said = (await page.locator(".turns [role=status]").innerText()).replace(/\s+/g, " ").trim();
  await look(page, "turned");
  await page.reload();
  now.again = await matrix();
  await page.locator("input[name=window]").fill("300");
  await page.locator("input[name=level]").fill("30");
  await page.locator('[data-step="mirror"]').click();
  await page.locator("form.small button").first().click();
  await page.waitForURL(/window=300/);
  now.windowed = await page.evaluate(() => location.search);
  await page.locator("body").press("R");
  now.back = [await matrix(), await page.evaluate(() => location.search)];
  await page.context().close();
}

// A region is drawn, of an image and of an upload, and searched for.
for (const [name, viewport] of [["wide", wide], ["narrow", narrow]]) {
  const page = await opened({ viewport, colorScheme: name === "wide" ? "light" : "dark" });
  if (name === "wide") await page.goto(`${base}${image.replace("images/", "?like=")}`);
  else {
    await page.goto(`${base}/`);
    await page.locator("#file").setInputFiles(file);
    await page.locator("form.search button").click();
    await page.waitForURL(/query=/);
  }
  await page.locator('.asked a[href*="region?"]').click();
  await page.waitForURL(/region\?/, { waitUntil: "networkidle" });
  const box = await page.locator("img[data-draw]").boundingBox();
  await page.mouse.move(box.x + box.width * 0.9, box.y + box.height * 0.8);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.4, box.y + box.height * 0.2, { steps: 6 });
  await page.mouse.up();
  const fields = page.locator(".region input[type=number]");
  const drawn = await fields.evaluateAll((all) => all.map((one) => Math.round(one.value * 10) / 10));
  const marked = () => page.locator(".draw rect").last().evaluate((one) =>
    ["x", "y", "width", "height"].map((edge) => Math.round(one.getAttribute(edge) * 10) / 10));
  const first = await marked();
  await fields.nth(0).fill("0.3");
  await look(page, `draw-${name}`);
  found.region[name] = { drawn, first, typed: await marked() };
  await page.locator(".region button").click();
  await page.waitForURL(/region=/);
  await look(page, `region-${name}`);
  found.region[name].hits = await page.locator("meter").count();
  // The rectangle lies on the picture.
  found.region[name].laid = await page.locator(".asked .framed").evaluate((one) => {
    const [picture, frame] = [...one.children].map((child) => child.getBoundingClientRect());
    return picture.width > 20 && Math.abs(picture.width - frame.width) < 1
      && Math.abs(picture.height - frame.height) < 1 && Math.abs(picture.top - frame.top) < 1;
  });
  await page.locator(".asked a", { hasText: "whole image" }).click();
  await page.waitForURL((url) => !url.search.includes("region="));
  found.region[name].whole = await page.locator(".asked img").isVisible();
  await page.context().close();
}

// Filters are saved by name, applied to another search, and deleted.
{
  const page = await opened({ viewport: narrow });
  const named = () => page.locator(".saved li a").allTextContents();
  const open = async (address) => {
    await page.goto(`${base}${address}`);
    await page.locator("#filters > summary").click();
  };
  await open("/");
  found.saved = { none: await page.locator(".saved").isVisible() };
  await open("/?where=modality%3DCT&where=study_year%3D2010..2020");
  const save = async (name) => {
    await page.locator(".saved input").fill(name);
    await page.keyboard.press("Enter");
  };
  await save("Chests <b>of late</b>");
  await save("Others");
  await look(page, "saved");
  found.saved.listed = await named();
  await open(`${image.replace("images/", "?like=")}&where=modality%3DMR`);
  await page.locator(".saved a").first().click();
  await page.waitForURL(/2010/);
  found.saved.applied = new URL(page.url()).searchParams.getAll("where");
  found.saved.like = new URL(page.url()).searchParams.has("like");
  await open("/?where=modality%3DMR");
  await page.locator(".saved li button").first().click();
  found.saved.left = await named();
  // Of another key there is nothing here.
  await page.evaluate(() => { document.querySelector("[data-saved-of]").dataset.savedOf = "other"; saveFilters(); });
  found.saved.others = await named();
  await open("/?where=modality%3DMR");
  await page.locator(".saved li button").first().click();
  await open("/");
  found.saved.last = await page.locator(".saved").isVisible();
  await page.context().close();
}

// Without JavaScript.
{
  const page = await opened({ viewport: narrow, javaScriptEnabled: false });
  await page.goto(`${base}${pair}`);
  found.plain.views = await page.locator("[data-views]").isVisible();
  found.plain.seen = await page.locator(".both img").count();
  await page.goto(`${base}${image}`);
  await page.locator('[data-step="right"]').click();
  await page.waitForURL(/turn=90/);
  found.plain.turned = await page.locator("img.large.turned-90").count();
  await page.goto(`${base}/?where=modality%3DCT`);
  found.plain.saved = await page.locator(".saved").isVisible();
  await page.goto(`${base}${image.replace("images/", "region?like=")}`);
  await page.locator("input[name=region_w]").fill("0.6");
  await page.locator(".region button").click();
  await page.waitForURL(/region=/);
  found.plain.region = [new URL(page.url()).searchParams.get("region"), await page.locator("meter").count() > 0];
  await page.context().close();
}

await browser.close();
console.log(JSON.stringify(found));
