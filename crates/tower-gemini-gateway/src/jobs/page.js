// Draws jobs.json.
(() => {
  const { h, svg, number, usd, cost, words, live } = pages;
  const asked = new URLSearchParams(location.search);
  const id = asked.get("job"), after = asked.get("after");

  // -- values
  const time = (ms) => new Date(ms).toISOString().slice(0, 16).replace("T", " ");
  const link = (query) => "jobs?" + new URLSearchParams(query);

  // -- a job
  const BADGES = { active: ["", "▶"], finished: ["good", "✓"], capped: ["strained", "!"], paused: ["", "‖"], cancelled: ["", "✕"] };
  const ENDED = ["done", "failed", "unknown", "cancelled"];
  const KINDS = ["done", "running", "unknown", "failed", "cancelled"];
  const WORDS = { done: "done", running: "running", unknown: "unknown: perhaps paid", failed: "failed", cancelled: "cancelled" };
  const count = (job, kind) => job.counts[kind] + (kind === "running" ? job.counts.in_batch : 0);

  const bar = (job) => {
    let x = 0;
    const parts = KINDS.map((kind) => {
      const width = job.items === 0 ? 0 : count(job, kind) / job.items * 100;
      x += width;
      return width > 0 && svg("rect", { class: kind, x: (x - width).toFixed(2) + "%", width: width.toFixed(2) + "%", height: 10 });
    });
    const ended = ENDED.reduce((sum, kind) => sum + job.counts[kind], 0);
    return svg("svg", { class: "bar", width: "100%", height: 10, role: "img", "aria-label": ended + " of " + job.items + " items have ended" },
      svg("rect", { class: "track", width: "100%", height: 10 }), parts);
  };
  const counts = (job) => h("p", { class: "counts" }, number(job.items) + (job.items === 1 ? " item: " : " items: "),
    KINDS.filter((kind) => count(job, kind) > 0).map((kind) => [h("span", { class: "key" }, h("span", { class: "swatch " + kind }), number(count(job, kind)) + " " + WORDS[kind]), " "]),
    job.counts.waiting > 0 && h("span", { class: "key" }, number(job.counts.waiting) + " waiting"));
  const money = (job) => h("p", { class: "quiet" }, cost(job.spent) + " spent",
    job.max_usd !== null && " of $" + job.max_usd.toFixed(2),
    ", " + (job.to_come_at_most_microusd > 0 ? "up to " + usd(job.to_come_at_most_microusd) + " to come" : "nothing to come")
    + ", " + number(job.requests) + " requests");
  const waits = (job, now) => {
    if (job.stopped) return h("p", { class: "waits" }, "Stopped: " + job.stopped);
    if (!job.waits) return null;
    const until = job.waits.until_ms > now * 1000 ? " until " + time(job.waits.until_ms) : "";
    const why = job.waits.reason ? ": " + job.waits.reason : "";
    return (until || why) && h("p", { class: "waits" }, "Waits" + until + why);
  };
  const card = (job, now) => {
    const [kind, sign] = BADGES[job.state] ?? ["", "?"];
    return h("article", { class: "card job", "data-job": job.id },
      h("h2", {}, h("a", { href: link({ job: job.id }) }, job.name || job.id), " ",
        h("small", {}, job.name && job.id + " ", job.owner && "of " + job.owner + " ", "since " + time(job.created_ms)),
        h("span", { class: "badge state " + kind }, h("span", { "aria-hidden": "true" }, sign), " " + words(job.state))),
      bar(job), counts(job), waits(job, now), money(job));
  };

  // -- the items of one
  const thumb = (job) => (item) => item.images.map((image, i) => {
    const source = "jobs.image?" + new URLSearchParams({ job, item: item.number, image: i + 1 });
    const size = image.width ? image.width + "×" + image.height + " · " : "";
    return h("figure", { class: "card" },
      h("a", { href: source }, h("img", { src: source, loading: "lazy", decoding: "async", alt: item.item.prompt })),
      h("figcaption", {}, h("span", { class: "prompt" }, item.item.prompt), item.number + " · " + size + cost(item.spent)));
  });
  const table = (items, state) => {
    const some = items.filter((item) => item.state === state);
    return some.length > 0 && h("section", { class: "card wide" }, h("h2", {}, words(state)),
      h("table", { class: "items" }, h("thead", {}, h("tr", {}, ["Item", "Prompt", "Why"].map((title) => h("th", { scope: "col" }, title)))),
        h("tbody", {}, some.map((item) => h("tr", {}, h("th", { scope: "row" }, item.number), h("td", {}, item.item.prompt.slice(0, 200)),
          h("td", { class: "quiet" }, item.reason || (item.started_ms ? "" : "its turn has not come")))))));
  };
  const detail = (all) => [
    card(all.job, all.at_unix_seconds),
    ["failed", "unknown", "running", "in_batch", "waiting", "cancelled"].map((state) => table(all.items, state)),
    h("div", { class: "thumbs" }, all.items.filter((item) => item.state === "done").map(thumb(all.job.id))),
    all.next_after !== null && h("p", { class: "pages" }, h("a", { href: link({ job: id, after: all.next_after }) }, "further images")),
  ];
  const list = (all) => all.jobs.length === 0
    ? [h("p", { class: "card wide" }, "There are no jobs. POST /jobs and `gemini-gateway jobs submit` make some.")]
    : [all.jobs.map((job) => card(job, all.at_unix_seconds)), all.more_jobs > 0 && h("p", { class: "pages quiet" }, "and " + number(all.more_jobs) + " older ones")];

  // -- updates
  let drawn = "";
  live(async () => {
    const query = id ? "?" + new URLSearchParams({ job: id, ...(after ? { after } : {}) }) : "";
    const response = await fetch("jobs.json" + query, { cache: "no-store" });
    const all = await response.json();
    if (!response.ok) throw new Error(all.error?.message || "HTTP " + response.status);
    // Images that are there are not loaded anew where nothing changed.
    const text = JSON.stringify({ ...all, at_unix_seconds: 0 });
    if (text !== drawn) {
      document.getElementById("jobs").replaceChildren(...(id ? detail(all) : list(all)).flat(Infinity).filter(Boolean));
      drawn = text;
    }
    return all.at_unix_seconds;
  });
})();
