"use strict";
// What the pages share: elements, values, and the look at the data every five seconds. Values become
// text and attributes, never markup.
const pages = (() => {
  const EVERY_MS = 5000;
  const SVG = "http://www.w3.org/2000/svg";

  // -- elements
  const node = (made, attributes, children) => {
    for (const [name, value] of Object.entries(attributes ?? {})) {
      if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false));
    return made;
  };
  const h = (name, attributes, ...children) => node(document.createElement(name), attributes, children);
  const svg = (name, attributes, ...children) => node(document.createElementNS(SVG, name), attributes, children);

  // -- values
  const number = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, "\u202f");
  const usd = (micro) => micro === 0 ? "$0" : "$" + (micro / 1e6).toFixed(micro < 1e6 ? 4 : 2);
  const cost = (of) => {
    if (!of) return "–";
    const least = usd(of.at_least_microusd);
    if (of.at_most_microusd === null) return "≥\u00a0" + least;
    const most = usd(of.at_most_microusd);
    return least === most ? most : least + "–" + most.slice(1);
  };
  const words = (name) => name.replaceAll("_", " ");

  // Has `look` draw what there is now, again and again. It returns when the data were written.
  const live = (look) => {
    const say = (is, text) => {
      document.body.dataset.live = is;
      document.getElementById("live-text").textContent = text;
    };
    const once = async () => {
      try {
        const unix = await look();
        say("yes", "live · " + new Date(unix * 1000).toISOString().slice(11, 16) + " UTC");
      } catch (error) {
        say("no", "no data: " + (error?.message || "unknown error"));
      }
    };
    const again = async () => {
      // A page in the background requests nothing.
      if (document.visibilityState !== "hidden") await once();
      setTimeout(again, EVERY_MS);
    };
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") once();
    });
    again();
  };
  return { h, svg, number, usd, cost, words, live };
})();
