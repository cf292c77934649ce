// The theme's search is a web worker, and browsers start none from a page that they read from disk. There a hidden frame takes its
// place: the same script, and messages that are copied both ways. A page of a server keeps the worker.
if (location.protocol === "file:")
  window.Worker = window.IFrameWorker = class extends EventTarget {
    #frame = document.body.appendChild(document.createElement("iframe"));
    #loaded;

    constructor(url) {
      super();
      this.#frame.hidden = true;
      const inside = this.#frame.contentWindow;
      inside.document.open();
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) }));
      this.#loaded = new Promise((resolve) => this.#frame.addEventListener("load", resolve));
      const script = document.createElement("script");
      script.src = new URL(url, document.baseURI);
      inside.document.write(script.outerHTML);
      inside.document.close();
    }

    async postMessage(data) {
      const copy = structuredClone(data);
      await this.#loaded;
      this.#frame.contentWindow.dispatchEvent(new MessageEvent("message", { data: copy }));
    }

    terminate() {
      this.#frame.remove();
    }
  };
