// A page that was opened from a file may start no worker, which the search needs. Run the worker's script in a hidden frame
// instead. The frame has the origin of the page, since its document is written by the page.
function load(inner, address) {
  return new Promise((done) => {
    const script = inner.document.createElement("script");
    script.src = address;
    script.onload = done;
    inner.document.body.append(script);
  });
}

if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inner = this.frame.contentWindow;
      inner.document.open(); // clears the window, so that it comes first
      const started = new Promise((done) => { inner.onload = done; });
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      inner.importScripts = (...others) => others.reduce((before, other) => before.then(() => load(inner, other)), Promise.resolve());
      inner.document.write(`<!doctype html><body><script src="${address}"></script></body>`);
      inner.document.close();
      this.started = started.then(() => inner);
    }

    postMessage(data) {
      this.started.then((inner) => inner.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
