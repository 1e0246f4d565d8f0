"use strict";
// What makes the pages quicker to use. All of them work without it.

const KEPT = "precedent-picture ";
const SHORTCUTS = "precedent-shortcuts";
const MOST_KEPT = 8;

const one = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// Pictures that were uploaded stay in this tab, under the token of their search.
function keepPicture() {
  const figure = one("figure[data-kept]");
  if (!figure) return;
  const image = one("img", figure);
  const name = KEPT + figure.dataset.kept;
  try {
    const source = image.getAttribute("src");
    if (source) {
      sessionStorage.removeItem(name);
      sessionStorage.setItem(name, source);
      const names = Object.keys(sessionStorage).filter((key) => key.startsWith(KEPT));
      names.slice(0, Math.max(0, names.length - MOST_KEPT))
        .filter((key) => key !== name)
        .forEach((key) => sessionStorage.removeItem(key));
      // Loading the page again asks for this address and sends nothing twice.
      history.replaceState(null, "", figure.dataset.address);
    } else if (sessionStorage.getItem(name)) {
      image.src = sessionStorage.getItem(name);
      image.hidden = false;
    }
  } catch {
    // Storage is switched off or full: the page shows no picture then.
  }
}

function forgetPictures() {
  if (!one('input[name="key"], a[href*="login/oidc"]')) return;
  try {
    Object.keys(sessionStorage).filter((key) => key.startsWith(KEPT))
      .forEach((key) => sessionStorage.removeItem(key));
  } catch {
    // Then there is nothing.
  }
}

// A file that is dropped anywhere, or pasted, is searched for.
function takeFiles() {
  const form = one("form[data-drop]");
  if (!form) return;
  const input = one('input[type="file"]', form);
  const search = (files) => {
    if (!files || files.length === 0) return;
    const chosen = new DataTransfer();
    chosen.items.add(files[0]);
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
    if (target.closest("input, select, textarea, dialog")) return;
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
    const links = { m: 'a[href*="like="]', s: 'a[href*="studies/"]' };
    if (event.key === "?" && help) {
      event.preventDefault();
      help.showModal();
    } else if (event.key === "/" && one("#filters")) {
      event.preventDefault();
      const filters = one("#filters");
      filters.open = true;
      one("summary", filters).focus();
    } else if (links[event.key]) {
      const link = one(links[event.key], card ?? one("main"));
      if (link) link.click();
    }
  });
}

keepPicture();
forgetPictures();
takeFiles();
foldFilters();
searchWithin();
showInstead();
dragWindow();
followKeys();
all(".scripted").forEach((hint) => { hint.hidden = false; });
all(".keys-help").forEach((button) => {
  button.hidden = false;
  button.addEventListener("click", () => one("dialog.keys").showModal());
});

// Jobs that run are followed while the page is open; a browser keeps few connections to a server.
function followJobs() {
  const number = new Intl.NumberFormat("en");
  all("[data-live]").slice(0, 4).forEach((article) => {
    const events = new EventSource(`v1/jobs/${article.dataset.job}/events`);
    const show = (event) => {
      const job = JSON.parse(event.data);
      const refused = Object.values(job.refused).reduce((sum, count) => sum + count, 0);
      const [done, total, indexed] = [job.done, job.total, job.indexed].map((one) => number.format(one));
      let said = `${done} of ${total} read, ${indexed} indexed, ${number.format(refused)} refused`;
      if (job.unchanged) said += `, ${number.format(job.unchanged)} unchanged`;
      if (job.per_second) said += `; ${job.per_second.toFixed(1)} a second`;
      if (job.seconds_left !== null && job.state === "running") {
        said += `, about ${Math.ceil(job.seconds_left / 60)} min left`;
      }
      const bar = one("progress", article);
      bar.max = Math.max(job.total, 1);
      bar.value = job.total ? job.done : Number(job.state === "finished");
      one("[data-said]", article).textContent = `${said}.`;
      one("[data-status]", article).textContent = job.status;
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
