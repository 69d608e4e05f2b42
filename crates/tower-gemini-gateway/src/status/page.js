"use strict";
// Fetches what has changed every five seconds and puts it in. The HTML is made, and escaped, by the server.
(() => {
  const EVERY = 5000;
  const text = document.getElementById("live-text");
  const shown = new Map();

  const put = (id, html) => {
    const at = document.getElementById(id);
    if (!at || shown.get(id) === html) return;
    // What is being read or selected is left alone until the next time.
    const selection = getSelection();
    if (selection && !selection.isCollapsed && at.contains(selection.anchorNode)) return;
    const toggled = [...at.querySelectorAll("details[id]")].map((one) => [one.id, one.open]);
    const focused = at.contains(document.activeElement) ? document.activeElement.closest("details[id]") : null;
    at.innerHTML = html;
    for (const [id, open] of toggled) {
      const one = document.getElementById(id);
      if (one) one.open = open;
    }
    if (focused) document.getElementById(focused.id)?.querySelector("summary")?.focus({ preventScroll: true });
    shown.set(id, html);
  };

  const look = async () => {
    try {
      const response = await fetch("status.json", { cache: "no-store" });
      if (!response.ok) throw new Error("HTTP " + response.status);
      const { at, sections } = await response.json();
      for (const [id, html] of Object.entries(sections)) put(id, html);
      document.body.dataset.live = "yes";
      text.textContent = "live · " + at;
    } catch (error) {
      document.body.dataset.live = "no";
      text.textContent = "no answer: " + (error && error.message ? error.message : "unknown") + "; showing what was last seen";
    }
  };

  const again = async () => {
    // A page in the background asks nothing.
    if (document.visibilityState !== "hidden") await look();
    setTimeout(again, EVERY);
  };
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible") look();
  });
  setTimeout(again, 1000);
})();
