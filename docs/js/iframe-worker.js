// Browsers start no workers for pages opened from disk; there the search's runs in a hidden frame.
// The name of this file keeps the theme from fetching such a script from elsewhere.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.started = new Promise((done) => {
        const script = inside.document.createElement("script");
        script.src = url;
        script.onload = done;
        inside.document.body.append(script);
      });
      this.inside = inside;
    }

    postMessage(data) {
      const event = new MessageEvent("message", { data });
      this.started.then(() => this.inside.dispatchEvent(event));
    }
  };
}
