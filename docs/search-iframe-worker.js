// Search from disk. Browsers start no Worker on pages opened as file:, so the theme's search script runs in a hidden
// frame there, behind the Worker interface that the theme calls. On a host this file does nothing.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<!doctype html>";
      this.ready = new Promise((resolve) => {
        frame.addEventListener("load", () => {
          const inner = frame.contentWindow;
          const load = (source) =>
            new Promise((done, failed) => {
              const script = inner.document.createElement("script");
              script.src = source;
              script.onload = () => done(inner);
              script.onerror = failed;
              inner.document.head.append(script);
            });
          inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
          inner.importScripts = (...sources) =>
            sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve());
          load(new URL(url, location.href).href).then(resolve);
        }, { once: true });
      });
      (document.body || document.documentElement).append(frame);
    }

    postMessage(data) {
      this.ready.then((inner) => inner.dispatchEvent(new inner.MessageEvent("message", { data })));
    }
  };
}
