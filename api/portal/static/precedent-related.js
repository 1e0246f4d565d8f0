"use strict";
// <precedent-related study="1.2.840.1" src="https://precedent.example">: the cases related to a
// study, in a page of another site. docs/integration.md says how it is used.

(() => {
  const NAME = "precedent-related";
  if (customElements.get(NAME)) return;

  const PATIENCE_MS = 15000;
  const EARLY_S = 60;
  const MOST_PIXELS = 50000;
  const UID = /^[0-9.]{1,64}$/;
  const look = new CSSStyleSheet();
  look.replaceSync(`
    :host { display: block; }
    :host([hidden]) { display: none; }
    iframe { display: block; width: 100%; height: 12rem; border: 0; }
  `);

  class PrecedentRelated extends HTMLElement {
    static observedAttributes = ["study", "src", "label"];

    #frame = null;
    #title = "Precedent";
    #origin = "";
    #isConnected = false;
    #isReady = false;
    #token = null;
    #patience = 0;
    #renewal = 0;
    #hear = (event) => this.#heard(event);

    constructor() {
      super();
      this.attachShadow({ mode: "open" }).adoptedStyleSheets = [look];
    }

    // A token of the study that is shown; it is handed to the frame and cannot be read again.
    set token(written) {
      this.#take(written, this.#study);
    }

    connectedCallback() {
      this.#isConnected = true;
      // It may have been set before this script was there.
      if (Object.hasOwn(this, "token")) {
        const { token } = this;
        delete this.token;
        this.#token = token;
      }
      window.addEventListener("message", this.#hear);
      this.#load();
    }

    disconnectedCallback() {
      this.#isConnected = false;
      window.removeEventListener("message", this.#hear);
      this.#unload();
      this.#token = null;
    }

    attributeChangedCallback(name, before, now) {
      // The attributes of an element that was there before this script come before it is connected.
      if (!this.#isConnected || before === now) return;
      if (name === "src") this.#load();
      if (name === "label" && this.#frame) this.#frame.title = this.#label;
      if (name === "study") {
        this.#token = null;
        clearTimeout(this.#renewal);
        if (this.#isReady) {
          this.#send({ precedent: "clear" });
          this.#begin();
        }
      }
    }

    get #study() {
      return this.getAttribute("study") ?? "";
    }

    get #label() {
      return this.getAttribute("label") || this.#title;
    }

    #load() {
      this.#unload();
      const written = this.getAttribute("src");
      if (written === null) return;
      let base;
      try {
        base = new URL(written, document.baseURI);
      } catch {
        base = null;
      }
      if (base === null || !/^https?:$/.test(base.protocol) || base.search || base.hash) {
        this.#tell("failed", { code: "bad-src", message: `${written} is no address of a service` });
        return;
      }
      if (!base.pathname.endsWith("/")) base.pathname += "/";
      const address = new URL("embed", base);
      address.searchParams.set("parent", window.location.origin);
      // It speaks the language of the page around it; where that says none, that of the browser.
      const lang = this.closest("[lang]")?.lang.split("-")[0].toLowerCase() ?? "";
      if (/^[a-z]{2,3}$/.test(lang)) address.searchParams.set("lang", lang);
      this.#origin = base.origin;
      const frame = document.createElement("iframe");
      frame.title = this.#label;
      // It keeps its own origin, by which each side knows the other one, and may do nothing else.
      frame.setAttribute("sandbox", "allow-scripts allow-same-origin");
      frame.referrerPolicy = "no-referrer";
      frame.src = address.href;
      this.#frame = frame;
      this.#patience = setTimeout(() => this.#tell("failed", {
        code: "not-loaded",
        message: `${base.href} was not shown within ${PATIENCE_MS / 1000} s; is it there, and does `
          + "the policy of this page allow it in a frame (frame-src)?",
      }), PATIENCE_MS);
      this.shadowRoot.replaceChildren(frame);
    }

    #unload() {
      clearTimeout(this.#patience);
      clearTimeout(this.#renewal);
      this.#isReady = false;
      this.#frame = null;
      this.shadowRoot.replaceChildren();
    }

    #begin() {
      if (!UID.test(this.#study)) return;
      if (this.#token === null) this.#want();
      else this.#send({ precedent: "show", token: this.#token, study: this.#study });
    }

    #want() {
      const study = this.#study;
      this.#tell("token-wanted", { study, give: (token) => this.#take(token, study) });
    }

    // A token that comes when another study is shown by now is of no use.
    #take(written, study) {
      if (typeof written !== "string" || study !== this.#study) return;
      this.#token = written;
      if (this.#isReady) this.#begin();
    }

    #send(message) {
      this.#frame.contentWindow.postMessage(message, this.#origin);
    }

    #tell(name, detail) {
      this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }));
    }

    #heard(event) {
      if (this.#frame === null || event.source !== this.#frame.contentWindow) return;
      if (event.origin !== this.#origin) return;
      const said = event.data ?? {};
      switch (said.precedent) {
        case "ready":
          clearTimeout(this.#patience);
          this.#isReady = true;
          if (typeof said.title === "string") this.#title = said.title;
          this.#frame.title = this.#label;
          this.#begin();
          break;
        case "shown": {
          if (said.study !== this.#study || !(said.seconds > 0)) break;
          const early = Math.min(EARLY_S, said.seconds / 2);
          clearTimeout(this.#renewal);
          this.#renewal = setTimeout(() => this.#want(), (said.seconds - early) * 1000);
          break;
        }
        case "study-opened":
          if (UID.test(said.study)) {
            const { study, series, sop } = said;
            this.#tell("study-opened", { study, series, sop });
          }
          break;
        case "resized":
          if (said.height >= 0 && said.height <= MOST_PIXELS) {
            this.#frame.style.height = `${said.height}px`;
            this.#tell("resized", { height: said.height });
          }
          break;
        case "failed":
          this.#tell("failed", { code: String(said.code), message: String(said.message) });
          if (said.code !== "unreachable") {
            this.#token = null;
            clearTimeout(this.#renewal);
          }
          if (said.code === "expired") this.#want();
          break;
        default:
      }
    }
  }

  customElements.define(NAME, PrecedentRelated);
})();
