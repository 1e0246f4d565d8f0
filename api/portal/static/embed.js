"use strict";
// Inside the frame of the component: takes tokens from the page around it, which the server has
// named, and shows what each is for until it ends. What is told to that page goes to no other.

const around = document.documentElement.dataset.parent;
const main = document.querySelector("main");
// What is said here, in the language of the page.
const words = { ...main.dataset };
let turn = 0;
let until = 0;
let ending = 0;

const tell = (precedent, detail = {}) => window.parent.postMessage({ precedent, ...detail }, around);

function say(text, isError) {
  const box = document.createElement("p");
  box.textContent = text;
  box.className = isError ? "box error" : "quiet";
  if (isError) box.setAttribute("role", "alert");
  main.replaceChildren(box);
}

function clear() {
  turn += 1;
  until = 0;
  clearTimeout(ending);
  say(words.waiting, false);
}

function fail(code, text) {
  clear();
  say(text, true);
  tell("failed", { code, message: text });
}

// Timers stand still while a computer sleeps; what has ended must not be seen when it wakes.
function checkEnd() {
  clearTimeout(ending);
  if (!until) return;
  const left = until - Date.now();
  if (left <= 0) fail("expired", words.ended);
  else ending = setTimeout(checkEnd, left);
}

async function show(token, study) {
  turn += 1;
  const mine = turn;
  main.setAttribute("aria-busy", "true");
  let answer = null;
  let text = "";
  try {
    answer = await fetch("embed", {
      method: "POST",
      body: new URLSearchParams({ token, study, parent: around, lang: document.documentElement.lang }),
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
    });
    text = await answer.text();
  } catch {
    answer = null;
  }
  if (mine !== turn) return;
  main.removeAttribute("aria-busy");
  if (answer === null) {
    const message = words.unreachable;
    // What is shown may be shown on until its own token ends.
    if (until) tell("failed", { code: "unreachable", message });
    else fail("unreachable", message);
    return;
  }
  if (!answer.ok) {
    let problem = {};
    try {
      problem = JSON.parse(text);
    } catch {
      // Something on the way has answered instead.
    }
    const detail = problem.detail ?? words.answered.replace("{status}", answer.status);
    fail(problem.code ?? String(answer.status), detail[0].toUpperCase() + detail.slice(1));
    return;
  }
  const found = new DOMParser().parseFromString(text, "text/html").querySelector("main");
  const seconds = Number(found.dataset.seconds);
  // Renewed and the same: who reads it keeps their place.
  const probe = document.createElement("div");
  probe.append(...[...found.childNodes].map((one) => document.importNode(one, true)));
  if (probe.innerHTML !== main.innerHTML) main.replaceChildren(...probe.childNodes);
  until = Date.now() + seconds * 1000;
  checkEnd();
  tell("shown", { study, seconds });
}

window.addEventListener("message", (event) => {
  if (event.source !== window.parent || event.origin !== around) return;
  const { precedent, token, study } = event.data ?? {};
  if (precedent === "clear") clear();
  if (precedent === "show" && typeof token === "string" && typeof study === "string") {
    show(token, study);
  }
});

main.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-study]");
  if (!button) return;
  const { study, series, sop } = button.dataset;
  tell("study-opened", { study, series: series || null, sop: sop || null });
});

document.addEventListener("visibilitychange", checkEnd);

new ResizeObserver(() => {
  tell("resized", { height: Math.ceil(document.documentElement.getBoundingClientRect().height) });
}).observe(document.documentElement);

if (window.parent !== window) tell("ready", { title: document.title.split(" – ")[0] });
