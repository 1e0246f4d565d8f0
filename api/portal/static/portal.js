"use strict";
// What makes the pages quicker to use. All of them work without it.

const KEPT = "precedent-picture ";
const SHORTCUTS = "precedent-shortcuts";
const RECENT = "precedent-recent";
const TILES = "precedent-tiles";
const PLACE = "precedent-place";
const SAVED = "precedent-saved";
const MOST_KEPT = 32;
const MOST_RECENT = 12;
const MOST_SAVED = 20;

const one = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// Pictures that were uploaded stay in this tab, under the tokens of their search.
function keepPictures() {
  const holders = all("[data-kept]");
  if (holders.length === 0) return;
  const names = holders.map((holder) => KEPT + holder.dataset.kept);
  try {
    holders.forEach((holder, at) => {
      const image = one("img", holder);
      const source = image.getAttribute("src");
      if (source) {
        sessionStorage.removeItem(names[at]);
        sessionStorage.setItem(names[at], source);
      } else if (sessionStorage.getItem(names[at])) {
        image.src = sessionStorage.getItem(names[at]);
        image.hidden = false;
      }
    });
    const kept = Object.keys(sessionStorage).filter((key) => key.startsWith(KEPT));
    kept.slice(0, Math.max(0, kept.length - MOST_KEPT))
      .filter((key) => !names.includes(key))
      .forEach((key) => sessionStorage.removeItem(key));
  } catch {
    // Storage is switched off or full: the page shows no picture then.
  }
  // Loading the page again asks for this address and sends nothing twice.
  const sent = one("[data-address]");
  if (sent) history.replaceState(null, "", sent.dataset.address);
}

function forgetPictures() {
  if (!one('input[name="key"], a[href*="login/oidc"]')) return;
  try {
    Object.keys(sessionStorage)
      .filter((key) => key.startsWith(KEPT) || key === RECENT)
      .forEach((key) => sessionStorage.removeItem(key));
  } catch {
    // Then there is nothing.
  }
}

// Searches of this tab, in this session: address and label, and nothing of any other session.
function followRecent() {
  const section = one("[data-recent-of]");
  if (!section) return;
  const owner = section.dataset.recentOf;
  const isOurs = (item) => typeof item?.address === "string" && item.address.startsWith("./?")
    && typeof item.label === "string";
  const read = () => {
    try {
      const found = JSON.parse(sessionStorage.getItem(RECENT));
      return found?.owner === owner && Array.isArray(found.items) ? found.items.filter(isOurs) : [];
    } catch {
      return [];
    }
  };
  const write = (items) => {
    try {
      sessionStorage.setItem(RECENT, JSON.stringify({ owner, items }));
    } catch {
      // Then there are none on the next page.
    }
  };
  const before = read();
  const here = one("[data-recent]");
  if (here) {
    const item = { address: here.dataset.here, label: here.dataset.recent };
    const others = before.filter((one) => one.address !== item.address);
    write([item, ...others].slice(0, MOST_RECENT));
  }
  const shown = before.filter((item) => item.address !== here?.dataset.here);
  const list = one("ul", section);
  shown.forEach((item) => {
    const link = document.createElement("a");
    link.href = item.address;
    const source = pictureOf(item.address);
    if (source) {
      const image = document.createElement("img");
      [image.src, image.alt, image.width, image.height] = [source, "", 40, 40];
      link.append(image);
    }
    link.append(` ${item.label}`);
    const place = document.createElement("li");
    place.append(link);
    list.append(place);
  });
  section.hidden = shown.length === 0;
  one("button", section).addEventListener("click", () => {
    write([]);
    list.replaceChildren();
    section.hidden = true;
  });
}

// The picture of the first example that an address names; null: there is none here.
function pictureOf(address) {
  const query = new URLSearchParams(address.slice(3));
  const token = query.get("query");
  const id = query.get("like");
  try {
    if (token) return sessionStorage.getItem(KEPT + token);
  } catch {
    return null;
  }
  return id && /^[0-9a-f-]{36}$/.test(id) ? `v1/images/${id}/thumbnail` : null;
}

// What the address says comes first; without that, what was chosen here before.
function sizeTiles() {
  const links = all("[data-tiles]");
  links.forEach((link) => link.addEventListener("click", () => {
    try {
      localStorage.setItem(TILES, link.dataset.tiles);
    } catch {
      // The address has it.
    }
  }));
  let wanted = null;
  try {
    wanted = localStorage.getItem(TILES);
  } catch {
    return;
  }
  const grid = one(".grid.medium");
  if (!grid || !["small", "large"].includes(wanted)) return;
  if (new URLSearchParams(location.search).has("tiles")) return;
  grid.classList.replace("medium", wanted);
  links.forEach((link) => {
    if (link.dataset.tiles === wanted) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  });
}

// Files that are dropped anywhere, or pasted, are searched for.
function takeFiles() {
  const form = one("form[data-drop]");
  if (!form) return;
  const input = one('input[type="file"]', form);
  const search = (files) => {
    if (!files || files.length === 0) return;
    const chosen = new DataTransfer();
    [...files].forEach((file) => chosen.items.add(file));
    input.files = chosen.files;
    document.body.classList.add("busy");
    form.requestSubmit();
  };
  const brings = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!brings(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    if (!brings(event)) return;
    event.preventDefault();
    document.body.classList.remove("dropping");
    search(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => search(event.clipboardData?.files));
  form.addEventListener("submit", () => document.body.classList.add("busy"));
  window.addEventListener("pageshow", () => document.body.classList.remove("busy"));
}

// Beside each other filters stand open; below the answer they are folded until they are asked for.
function foldFilters() {
  const filters = one("#filters");
  if (!filters) return;
  const narrow = window.matchMedia("(max-width: 60rem)");
  const fold = () => { filters.open = !narrow.matches || location.hash === "#filters"; };
  fold();
  narrow.addEventListener("change", fold);
  all('a[href="#filters"]').forEach((link) => link.addEventListener("click", () => {
    filters.open = true;
    one("summary", filters).focus();
  }));
}

function searchWithin() {
  all("input[data-within]").forEach((input) => {
    const box = input.closest("details");
    input.parentElement.hidden = false;
    input.addEventListener("input", () => {
      const wanted = input.value.trim().toLowerCase();
      all("li", box).forEach((item) => {
        item.hidden = !one("a", item).textContent.toLowerCase().includes(wanted);
      });
    });
  });
}

function showInstead() {
  all("img[data-instead]").forEach((image) => {
    const instead = () => {
      if (image.src.endsWith("/thumbnail")) return;
      image.src = image.dataset.instead;
      all("[data-gone]").forEach((note) => { note.hidden = false; });
    };
    image.addEventListener("error", instead);
    if (image.complete && image.naturalWidth === 0) instead();
  });
}

// Drag across for the width of the window, up and down for its level; the fields say the same.
function dragWindow() {
  const image = one("img[data-window]");
  if (!image) return;
  const fields = ["window", "level"].map((name) => one(`input[name="${name}"]`));
  let [width, level] = image.dataset.window.split(" ").map(Number);
  let from = null;
  let moved = false;
  let loading = false;
  let waits = false;
  const load = () => {
    if (loading) {
      waits = true;
      return;
    }
    if (image.src.endsWith("/thumbnail")) return;
    const address = new URL(image.src);
    address.searchParams.set("window", width);
    address.searchParams.set("level", level);
    loading = true;
    image.src = address;
  };
  image.addEventListener("load", () => {
    loading = false;
    if (waits) {
      waits = false;
      load();
    }
  });
  image.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch" || event.button !== 0) return;
    event.preventDefault();
    image.setPointerCapture(event.pointerId);
    from = { x: event.clientX, y: event.clientY, width, level };
    moved = false;
  });
  image.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [x, y] = [event.clientX - from.x, event.clientY - from.y];
    moved = moved || Math.hypot(x, y) > 4;
    if (!moved) return;
    // A wide window is changed in larger steps.
    const step = Math.max(1, from.width / 250);
    width = Math.max(1, Math.round(from.width + x * step));
    level = Math.round(from.level + y * step);
    [fields[0].value, fields[1].value] = [width, level];
    load();
  });
  image.addEventListener("pointerup", () => {
    from = null;
    if (!moved) return;
    const here = new URL(location.href);
    here.searchParams.set("window", width);
    here.searchParams.set("level", level);
    history.replaceState(null, "", here);
  });
  // A drag opens nothing.
  image.closest("a").addEventListener("click", (event) => {
    if (moved) event.preventDefault();
    moved = false;
  });
}

function shortcutsOn() {
  try {
    return localStorage.getItem(SHORTCUTS) !== "off";
  } catch {
    return true;
  }
}

function moved(pictures, at, key) {
  if (key === "ArrowRight") return at + 1;
  if (key === "ArrowLeft") return at - 1;
  // Up and down: the nearest one of the rows beside.
  const here = pictures[at].getBoundingClientRect();
  const down = key === "ArrowDown";
  let best = at;
  let least = Infinity;
  pictures.forEach((picture, index) => {
    const there = picture.getBoundingClientRect();
    const rows = down ? there.top - here.top : here.top - there.top;
    if (rows < here.height / 2) return;
    const far = rows * 4 + Math.abs(there.left - here.left);
    if (far < least) [best, least] = [index, far];
  });
  return best;
}

// Goes on by keys: on the next page the picture at the same place has the focus.
function follow(link, place) {
  try {
    sessionStorage.setItem(PLACE, String(place));
  } catch {
    // Then the focus is where it is on every page.
  }
  link.click();
}

function goOn() {
  try {
    const place = sessionStorage.getItem(PLACE);
    sessionStorage.removeItem(PLACE);
    const pictures = all("a.picture");
    if (place === null || pictures.length === 0) return;
    pictures[Math.min(Number(place), pictures.length - 1)].focus();
  } catch {
    // As above.
  }
}

function followKeys() {
  const help = one("dialog.keys");
  const box = one("#keys-on");
  if (box) {
    box.checked = shortcutsOn();
    box.addEventListener("change", () => {
      try {
        localStorage.setItem(SHORTCUTS, box.checked ? "on" : "off");
      } catch {
        // It is asked again on the next page.
      }
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const target = event.target;
    if (target.closest("input, select, textarea, dialog, [contenteditable]")) return;
    const pictures = all("a.picture");
    if (event.key.startsWith("Arrow")) {
      const card = target.closest("li");
      const at = card ? pictures.indexOf(one("a.picture", card)) : -1;
      // From elsewhere arrows scroll, as ever; only those that do not, go to the first picture.
      if (at < 0 && (event.key === "ArrowUp" || event.key === "ArrowDown")) return;
      if (pictures.length === 0) return;
      event.preventDefault();
      const next = at < 0 ? 0 : moved(pictures, at, event.key);
      pictures[Math.max(0, Math.min(pictures.length - 1, next))].focus();
      return;
    }
    if (!shortcutsOn()) return;
    const card = target.closest("article");
    const links = { m: "a[data-more]", s: 'a[href*="studies/"]' };
    const marks = { l: "like", d: "dislike" };
    if (event.key === "?" && help) {
      event.preventDefault();
      help.showModal();
    } else if (event.key === "/" && one("#filters")) {
      event.preventDefault();
      const filters = one("#filters");
      filters.open = true;
      one("summary", filters).focus();
    } else if (marks[event.key] && card) {
      const link = one(`[data-mark="${marks[event.key]}"]`, card);
      if (link) follow(link, pictures.indexOf(one("a.picture", card)));
    } else if (event.key === "u") {
      const link = one('[data-mark="undo"]');
      if (link) follow(link, Math.max(0, pictures.indexOf(one("a.picture", card ?? link))));
    } else if (event.key === "c" && card) {
      const box = one(".pick input", card);
      if (box) box.checked = !box.checked;
    } else if (links[event.key]) {
      const link = one(links[event.key], card ?? one("main"));
      if (link) link.click();
    }
  });
}

// A key that is shown once. Where a browser has no clipboard for the page it is marked instead.
function copyTexts() {
  all("button[data-copy]").forEach((button) => button.addEventListener("click", async () => {
    const shown = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(shown.textContent.trim());
      button.textContent = button.dataset.copied;
    } catch {
      getSelection().selectAllChildren(shown);
    }
  }));
}

keepPictures();
forgetPictures();
followRecent();
sizeTiles();
takeFiles();
foldFilters();
searchWithin();
showInstead();
dragWindow();
followKeys();
goOn();
copyTexts();
all(".scripted").forEach((hint) => { hint.hidden = false; });
all(".keys-help").forEach((button) => {
  button.hidden = false;
  button.addEventListener("click", () => one("dialog.keys").showModal());
});

// Jobs that run are followed while the page is open; a browser keeps few connections to a server.
function followJobs() {
  const list = one("[data-words]");
  if (!list) return;
  const words = JSON.parse(list.dataset.words);
  const { lang } = document.documentElement;
  const number = new Intl.NumberFormat(lang);
  const speed = new Intl.NumberFormat(lang, { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  all("[data-live]").slice(0, 4).forEach((article) => {
    const events = new EventSource(`v1/jobs/${article.dataset.job}/events`);
    const show = (event) => {
      const job = JSON.parse(event.data);
      const refused = Object.values(job.refused).reduce((sum, count) => sum + count, 0);
      const numbers = {
        done: number.format(job.done),
        total: number.format(job.total),
        indexed: number.format(job.indexed),
        refused: number.format(refused),
        unchanged: number.format(job.unchanged),
        speed: speed.format(job.per_second ?? 0),
        minutes: number.format(Math.ceil((job.seconds_left ?? 0) / 60)),
      };
      const say = (part) => words[part].replace(/\{(\w+)\}/g, (_, name) => numbers[name]);
      let said = say("read");
      if (job.unchanged) said += say("unchanged");
      if (job.per_second) said += say("speed");
      if (job.seconds_left !== null && job.state === "running") said += say("left");
      const bar = one("progress", article);
      bar.max = Math.max(job.total, 1);
      bar.value = job.total ? job.done : Number(job.state === "finished");
      one("[data-said]", article).textContent = `${said}.`;
      one("[data-status]", article).textContent = words[job.status] ?? job.status;
    };
    events.addEventListener("progress", show);
    events.addEventListener("end", (event) => {
      show(event);
      events.close();
      // What can be done with it is another now.
      const form = one("form", article);
      if (form) all("button", form).forEach((button) => { button.disabled = true; });
    });
    events.addEventListener("error", () => {
      if (events.readyState === EventSource.CLOSED) article.removeAttribute("data-live");
    });
  });
}

followJobs();

// Filters that this browser keeps by name, each key's apart. On another search they take the place
// of those that are set.
function saveFilters() {
  const section = one("[data-saved-of]");
  if (!section) return;
  const place = `${SAVED} ${section.dataset.savedOf}`;
  const isOurs = (item) => typeof item?.name === "string" && Array.isArray(item.where)
    && item.where.length > 0 && item.where.every((term) => typeof term === "string");
  const read = () => {
    try {
      const found = JSON.parse(localStorage.getItem(place));
      return Array.isArray(found) ? found.filter(isOurs) : [];
    } catch {
      return [];
    }
  };
  const form = one("form", section);
  const status = one("[role=status]", section);
  const list = one("ul", section);
  const address = (where) => {
    const [path, query] = section.dataset.plain.split("?");
    const written = new URLSearchParams(query);
    where.forEach((term) => written.append("where", term));
    return `${path}?${written}`;
  };
  const show = (items) => {
    list.replaceChildren(...items.map((item) => {
      const made = one("template", section).content.cloneNode(true);
      const link = one("a", made);
      link.href = address(item.where);
      link.textContent = item.name;
      link.title = item.where.join("\n");
      one("[data-name]", made).textContent = item.name;
      one("button", made).addEventListener("click", () => {
        write(read().filter((other) => other.name !== item.name));
        (one("a, input", section) ?? one("#filters > summary")).focus();
      });
      return made;
    }));
    section.hidden = items.length === 0 && !form;
  };
  const write = (items) => {
    try {
      localStorage.setItem(place, JSON.stringify(items));
      status.textContent = "";
    } catch (error) {
      status.textContent = String(error.message);
    }
    show(read());
  };
  if (form) form.addEventListener("submit", (event) => {
    event.preventDefault();
    const name = form.elements.name.value.trim();
    const where = new URLSearchParams(section.dataset.here.split("?")[1]).getAll("where");
    if (!name) return;
    // The same name again stands for other filters.
    const others = read().filter((item) => item.name !== name);
    write([...others, { name, where }].slice(-MOST_SAVED));
    form.reset();
  });
  show(read());
}

saveFilters();
