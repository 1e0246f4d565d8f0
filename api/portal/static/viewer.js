"use strict";
// What pages with large pictures add to portal.js, which is loaded before this. All of them work
// without it.

const COMPARED = "precedent-compared";
// A flash is two changes: at this pace there is one a second, and WCAG allows three.
const QUICKEST = 500;

// Letters do something unless they are typed, are for the browser, or are switched off.
function isShortcut(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return false;
  return shortcutsOn() && !event.target.closest("input, select, textarea, dialog, [contenteditable]");
}

// Two pictures in one place: one after the other, or one over the other up to a line.
function compareInPlace() {
  const views = one("[data-views]");
  const both = one(".both");
  if (!views) return;
  const figures = all("figure", both);
  const [first, second] = figures.map((figure) => one("img", figure));
  // Another tab sent the upload: there is one picture.
  if (!second || first.hidden) return;
  views.hidden = false;
  const status = one("[data-now]", views);
  const pace = one("[data-pace]", views);
  const slider = one("[data-swipe]", views);
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  const asked = new URLSearchParams(location.search);
  const pair = ["query", "left", "right"].map((name) => asked.get(name)).join(" ");
  let view = "beside";
  let shown = 0;
  let timer = null;

  const show = (number, said) => {
    shown = number;
    figures.forEach((figure, at) => {
      figure.classList.toggle("seen-now", view === "blink" && at === number);
      figure.classList.toggle("unseen-now", view === "blink" && at !== number);
    });
    status.hidden = view !== "blink" || !said;
    if (said) one("span", status).textContent = one("strong", figures[number]).textContent;
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    all("[data-when]", views).forEach((text) => { text.hidden = text.dataset.when !== "still"; });
    if (view === "blink") show(shown, true);
  };
  const start = () => {
    if (calm.matches) return;
    clearInterval(timer);
    // What changes by itself is not told: it would be told without end.
    show(shown, false);
    timer = setInterval(() => show(1 - shown, false), Math.max(QUICKEST, Number(pace.value) || 0));
    all("[data-when]", views).forEach((text) => { text.hidden = text.dataset.when !== "running"; });
  };
  const remember = () => {
    try {
      sessionStorage.setItem(COMPARED, JSON.stringify({ pair, view, at: slider.value }));
    } catch {
      // With another window they are side by side again.
    }
  };
  const swipe = () => both.style.setProperty("--at", `${slider.value}%`);
  const change = (wanted) => {
    view = wanted;
    both.classList.toggle("stacked", view !== "beside");
    both.classList.toggle("swipe", view === "swipe");
    all("[data-view]", views).forEach((button) => {
      button.setAttribute("aria-pressed", String(button.dataset.view === view));
    });
    all("[data-of]", views).forEach((part) => { part.hidden = part.dataset.of !== view; });
    stop();
    show(0, view === "blink");
    swipe();
    remember();
  };
  const less = () => {
    if (calm.matches) stop();
    one("[data-run]", views).hidden = calm.matches;
    one("[data-moving]", views).hidden = calm.matches;
    one("[data-still]", views).hidden = !calm.matches;
  };
  const exchange = () => {
    if (view !== "blink") change("blink");
    stop();
    show(1 - shown, true);
  };
  calm.addEventListener("change", less);
  less();
  all("[data-view]", views).forEach((button) => button.addEventListener("click", () => {
    change(button.dataset.view);
    if (view === "blink") start();
  }));
  one("[data-run]", views).addEventListener("click", () => (timer === null ? start() : stop()));
  one("[data-exchange]", views).addEventListener("click", exchange);
  pace.addEventListener("change", () => { if (timer !== null) start(); });
  slider.addEventListener("input", () => {
    swipe();
    remember();
  });
  document.addEventListener("visibilitychange", () => { if (document.hidden) stop(); });
  // The line follows a pointer that is pressed on the pictures.
  let pressed = false;
  let dragged = false;
  both.addEventListener("dragstart", (event) => { if (view === "swipe") event.preventDefault(); });
  both.addEventListener("pointerdown", (event) => {
    pressed = view === "swipe" && event.button === 0 && event.target.closest("img, a") !== null;
    dragged = false;
  });
  window.addEventListener("pointermove", (event) => {
    if (!pressed) return;
    const box = both.getBoundingClientRect();
    slider.value = Math.round((100 * (event.clientX - box.left)) / box.width);
    dragged = true;
    swipe();
  });
  window.addEventListener("pointerup", () => {
    if (pressed && dragged) remember();
    pressed = false;
  });
  both.addEventListener("click", (event) => {
    if (dragged) event.preventDefault();
    dragged = false;
  }, true);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && view !== "beside" && !one("dialog[open]")) change("beside");
    if (!isShortcut(event)) return;
    if (event.key === "b") {
      if (timer !== null) {
        stop();
        return;
      }
      if (view !== "blink") change("blink");
      start();
    } else if (event.key === "x") exchange();
    else if (event.key === "w") change("swipe");
  });
  try {
    // With another window the same two are seen as before; what blinked stands still.
    const before = JSON.parse(sessionStorage.getItem(COMPARED));
    if (before?.pair === pair && ["blink", "swipe"].includes(before.view)) {
      slider.value = before.at;
      change(before.view);
    }
  } catch {
    // Then they are side by side.
  }
}

// A picture that is turned or mirrored without loading the page again.
function turnPicture() {
  const part = one("[data-turned]");
  if (!part) return;
  const image = one("img.large");
  const [degrees, mirrored] = part.dataset.turned.split(" ");
  let now = { degrees: Number(degrees), mirrored: mirrored === "mirrored" };
  const after = {
    left: (from) => ({ ...from, degrees: (from.degrees + 270) % 360 }),
    right: (from) => ({ ...from, degrees: (from.degrees + 90) % 360 }),
    // A mirror image of what is seen is turned the other way round.
    mirror: (from) => ({ degrees: (360 - from.degrees) % 360, mirrored: !from.mirrored }),
    stored: () => ({ degrees: 0, mirrored: false }),
  };
  const write = (query, turned) => {
    query.delete("turn");
    query.delete("mirror");
    if (turned.degrees) query.set("turn", turned.degrees);
    if (turned.mirrored) query.set("mirror", "true");
  };
  const addressed = (link, turned) => {
    const address = new URL(link.href);
    write(address.searchParams, turned);
    link.href = address;
  };
  const step = (name) => {
    now = after[name](now);
    const changed = now.degrees !== 0 || now.mirrored;
    image.classList.remove("turned-90", "turned-180", "turned-270");
    if (now.degrees) image.classList.add(`turned-${now.degrees}`);
    image.classList.toggle("mirrored", now.mirrored);
    all("[data-turned-by]", part).forEach((text) => {
      const by = Number(text.dataset.turnedBy);
      text.hidden = by === 0 ? changed : by !== now.degrees;
    });
    one("[data-mirrored-so]", part).hidden = !now.mirrored;
    one("[data-changed]", part).hidden = !changed;
    const here = new URL(location.href);
    write(here.searchParams, now);
    history.replaceState(null, "", here);
    all("[data-carries]").forEach((link) => addressed(link, now));
    all("[data-step]", part).forEach((link) => {
      // The window may have been dragged meanwhile.
      link.href = here;
      addressed(link, after[link.dataset.step](now));
      if (link.dataset.step !== "stored") return;
      if (changed) link.removeAttribute("aria-current");
      else link.setAttribute("aria-current", "true");
    });
  };
  all("[data-step]", part).forEach((link) => link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    step(link.dataset.step);
  }));
  all("form.small").forEach((form) => form.addEventListener("formdata", (event) => {
    const query = new URLSearchParams();
    write(query, now);
    ["turn", "mirror"].forEach((name) => {
      event.formData.delete(name);
      if (query.has(name)) event.formData.set(name, query.get(name));
    });
  }));
  document.addEventListener("keydown", (event) => {
    if (!isShortcut(event)) return;
    if (event.key === "r") step("right");
    else if (event.key === "R") step("left");
    else if (event.key === "f") step("mirror");
  });
}

compareInPlace();
turnPicture();

// A rectangle that is drawn on a picture; the four fields say the same.
function drawRegion() {
  const image = one("img[data-draw]");
  if (!image) return;
  const fields = ["x", "y", "w", "h"].map((name) => one(`input[name="region_${name}"]`));
  const frames = all("rect", image.parentElement);
  image.closest(".draw").classList.add("drawn-on");
  image.draggable = false;
  const rounded = (value) => Math.round(Math.min(1, Math.max(0, value)) * 1000) / 1000;
  const mark = () => {
    const edges = fields.map((field) => Number(field.value) || 0);
    frames.forEach((frame) => ["x", "y", "width", "height"].forEach((name, at) => {
      frame.setAttribute(name, edges[at]);
    }));
  };
  const place = (event) => {
    const box = image.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map(rounded);
  };
  let from = null;
  image.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    image.setPointerCapture(event.pointerId);
    from = place(event);
  });
  image.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [x, y] = place(event);
    const edges = [Math.min(x, from[0]), Math.min(y, from[1]), Math.abs(x - from[0]), Math.abs(y - from[1])];
    // A click chooses nothing.
    if (edges[2] < 0.005 || edges[3] < 0.005) return;
    fields.forEach((field, at) => { field.value = rounded(edges[at]); });
    mark();
  });
  ["pointerup", "pointercancel"].forEach((name) => image.addEventListener(name, () => { from = null; }));
  fields.forEach((field) => field.addEventListener("input", mark));
}

drawRegion();
