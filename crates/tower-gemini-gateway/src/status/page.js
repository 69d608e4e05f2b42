// Draws status.json.
(() => {
  const { h, svg, number, usd, cost, words, live } = pages;
  const MARK = 0.7; // from here on a quota or cap deserves a look
  const CALLS_SHOWN = 25;

  // -- elements
  const quiet = (...text) => h("span", { class: "quiet" }, ...text);
  const note = (...text) => h("p", { class: "quiet" }, ...text);
  const mark = (kind, sign) => h("span", { class: "mark " + kind, "aria-hidden": "true" }, sign);
  const cell = (value) => h("td", { class: "n" }, value);
  const table = (caption, columns, rows) => h("table", { class: "bars" },
    caption && h("caption", {}, caption),
    h("thead", {}, h("tr", {}, columns.map((column, i) => h("th", { scope: "col", class: i > 0 && "n" }, column)))),
    h("tbody", {}, rows));

  // -- values
  const percent = (share) => {
    const value = share * 100;
    return (Math.abs(value - Math.round(value)) < 0.05 ? value.toFixed(0) : value.toFixed(1)) + "\u00a0%";
  };
  const seconds = (s) => s === null ? "–" : s < 1 ? (s * 1000).toFixed(0) + " ms" : s < 10 ? s.toFixed(1) + " s" : s < 120 ? s.toFixed(0) + " s" : (s / 60).toFixed(0) + " min";
  const span = (s) => s < 120 ? s + " s" : s < 7200 ? Math.floor(s / 60) + " min"
    : s < 172800 ? Math.floor(s / 3600) + " h " + Math.floor(s / 60) % 60 + " min"
    : Math.floor(s / 86400) + " d " + Math.floor(s / 3600) % 24 + " h";
  const clock = (unix) => new Date(unix * 1000).toISOString().slice(11, 16);
  const bytes = (n) => n < 1000 ? n + " B" : n < 1e6 ? Math.floor(n / 1000) + " kB" : (n / 1e6).toFixed(1) + " MB";
  const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
  const level = (share) => share >= 1 ? "failing" : share >= MARK ? "strained" : "good";
  const share = (part, whole) => whole === 0 ? 1 : part / whole;
  const byCount = (counts) => Object.entries(counts).sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));

  // A bar of a used share, with the reserved share behind it, and perhaps a mark.
  const bar = (kind, used, reserved, marked, label) => {
    const width = (part) => Math.round(Math.min(Math.max(part, 0), 1) * 10000) / 100 + "%";
    const rect = (name, part) => svg("rect", { class: name, width: width(part), height: 10, rx: 3 });
    return svg("svg", { class: "bar " + kind, width: "100%", height: 10, role: "img", "aria-label": label },
      rect("track", 1), reserved > 0 && rect("held", used + reserved), used > 0 && rect("fill", used),
      marked && svg("line", { class: "mark", x1: width(MARK), x2: width(MARK), y1: 0, y2: 10 }));
  };

  // -- sections
  const head = (s) => ["v" + s.version, "up " + span(s.uptime_seconds), s.upstream && "to " + s.upstream, number(s.calls_in_flight) + " in flight",
    s.alerts?.problem && "alerts are not delivered: " + s.alerts.problem]
    .filter(Boolean).map((fact) => h("span", {}, fact));

  const BADGES = { good: ["✓", "good"], strained: ["!", "strained"], failing: ["✕", "failing"], unknown: ["?", "too little data"] };
  const diagnosis = (title, id, of) => h("article", { class: "card diagnosis " + of.health },
    h("h2", {}, title + " ", h("span", { class: "badge " + of.health }, h("span", { "aria-hidden": "true" }, BADGES[of.health][0]), " " + BADGES[of.health][1])),
    h("p", { class: "short" }, capital(of.title)),
    h("p", {}, of.summary.replaceAll(" %", "\u00a0%")),
    of.advice.length > 0 && h("details", { id, open: true }, h("summary", {}, "What to do"),
      h("ul", {}, of.advice.map((advice) => h("li", {}, advice))),
      of.unhelpful.length > 0 && h("p", { class: "useless" }, h("b", {}, "Does not help:"), " " + of.unhelpful.join("; ") + ".")));
  const diagnoses = (s) => [diagnosis("Last hour", "advice-hour", s.diagnosis.hour), diagnosis("Last 24 hours", "advice-day", s.diagnosis.day)];

  const tiles = ({ last_hour: hour, last_day: day, total }) => {
    const success = (window) => window.failure_rate === null ? "–" : percent(1 - window.failure_rate);
    const tile = (name, value, below) => h("div", { class: "tile" }, h("dt", {}, name), h("dd", {}, value), h("dd", { class: "below" }, below));
    return [
      tile("Success, last hour", success(hour), number(hour.calls) + " calls"),
      tile("Success, last day", success(day), number(day.calls) + " calls"),
      tile("Median duration", seconds(hour.call_seconds_p50 ?? day.call_seconds_p50), "95\u00a0% within " + seconds(hour.call_seconds_p95 ?? day.call_seconds_p95)),
      tile("Images, last day", number(day.images), number(day.drafts) + " drafts removed"),
      tile("Per image, last day", cost(day.cost_per_image), "failed attempts included"),
      tile("Spent, last day", cost(day.cost), cost(total.cost) + " in total"),
    ];
  };

  const chart = (s) => {
    const HEIGHT = 120, TOP = 14, VOLUME = 22, BASE = TOP + HEIGHT, ALL = BASE + VOLUME + 24, STEP = 100 / 24;
    const targets = s.failure_rate_targets;
    const now = Math.floor(s.at_unix_seconds / 3600);
    const hours = Array.from({ length: 24 }, (_, i) => {
      const start = (now - 23 + i) * 3600;
      return { start, hour: s.hours.find((one) => one.start_unix_seconds === start) };
    });
    const rates = hours.map(({ hour }) => hour?.failure_rate ?? 0);
    // Targets are always visible; bars far above them set the scale.
    const scale = Math.max(Math.max(...rates) * 1.05, targets.peak * 1.25, 0.01);
    const y = (rate) => TOP + HEIGHT * (1 - Math.min(rate / scale, 1));
    const busiest = Math.max(1, ...hours.map(({ hour }) => hour?.calls ?? 0));
    const at = (x) => x.toFixed(2) + "%";
    const says = ({ start, hour }) => {
      const when = clock(start) + " UTC" + (hour?.is_peak ? ", peak" : "");
      if (!hour) return when + ": no calls";
      return hour.failure_rate === null ? when + ": " + number(hour.calls) + " calls, all disconnected"
        : when + ": " + hour.failures + " of " + number(hour.successes + hour.failures) + " calls failed (" + percent(hour.failure_rate) + ")";
    };
    const lines = [["off-peak", targets.off_peak], ["at-peak", targets.peak]]
      .map(([name, rate]) => svg("line", { class: "target " + name, x1: 0, x2: "100%", y1: y(rate), y2: y(rate) }));
    const bars = hours.map((one, i) => {
      const x = i * STEP, middle = at(x + STEP / 2), { hour } = one;
      if (!hour) return svg("circle", { class: "none", cx: middle, cy: BASE - 2, r: 1.5 });
      const top = Math.min(y(hour.failure_rate ?? 0), BASE - 3);
      const column = { x: at(x + STEP * 0.12), width: at(STEP * 0.76) };
      return svg("g", { class: hour.health }, svg("title", {}, says(one)),
        svg("rect", { ...column, y: top.toFixed(1), height: (BASE - top).toFixed(1), rx: 1.5 }),
        // Not by colour alone.
        hour.health === "failing" && svg("text", { class: "over", x: middle, y: (top - 3).toFixed(1) }, "▲"),
        svg("rect", { ...column, class: "volume", y: BASE + 3, height: Math.max(hour.calls / busiest * VOLUME, 1).toFixed(1) }));
    });
    const labels = hours.map(({ start }, i) => start / 3600 % 6 === 0
      && svg("text", { class: "hour", x: at(i * STEP + STEP / 2), y: BASE + VOLUME + 18 }, clock(start)));
    const day = s.last_day;
    const label = "Share of failed calls by hour. " + (day.failure_rate === null ? "No calls in the last 24 hours."
      : "In the last 24 hours " + percent(day.failure_rate) + " of " + day.calls + " calls failed.");
    const key = (kind, what) => [h("span", { class: "key" }, h("span", { class: "swatch " + kind }), what), " "];
    return [
      h("div", { class: "plot" },
        svg("svg", { class: "chart", width: "100%", height: ALL, role: "img", "aria-label": label }, lines, bars, labels),
        svg("svg", { class: "names", width: 78, height: ALL, "aria-hidden": "true" },
          [[targets.off_peak, "off-peak"], [targets.peak, "peak"]].map(([rate, name]) => svg("text", { x: 6, y: (y(rate) + 4).toFixed(1) }, percent(rate) + " " + name)),
          svg("text", { x: 6, y: BASE + 16 }, "calls"))),
      h("p", { class: "legend quiet" }, key("good", "within its target"), key("strained", percent(targets.off_peak) + " or more off peak"),
        key("failing", "▲ " + percent(targets.peak) + " or more"), key("none", "no calls")),
      h("table", { class: "unseen" }, h("caption", {}, "Failed calls by hour"),
        hours.filter(({ hour }) => hour).map((one) => h("tr", {}, h("td", {}, says(one))))),
    ];
  };

  const KINDS = {
    rate_limited: "429, rate limits", overloaded: "503, no capacity", server_fault: "500, 502 or 504", refused: "refused content",
    no_image: "no image in the response", bad_request: "400, bad request", thought_signatures: "400, thought signatures",
    key_or_region: "401 or 403, key or region", model_gone: "404, unknown model", connection: "connection", mixed: "other",
  };
  const outcomes = ({ last_hour: hour, last_day: day }) => {
    const limited = day.failure_kinds.rate_limited ?? 0, overloaded = day.failure_kinds.overloaded ?? 0;
    const ratio = h("p", {}, limited + overloaded === 0 ? "No 429s and no 503s in the last 24 hours."
      : overloaded === 0 ? number(limited) + " 429s (your limits) and no 503s (no capacity) in the last 24 hours."
      : [h("b", {}, "429 : 503 = " + number(limited) + " : " + number(overloaded)), " in the last 24 hours: your limits against the service's capacity."]);
    if (day.calls + day.attempts === 0) return [ratio];
    const counts = (caption, column, field, name, kind) => {
      const sorted = byCount(day[field]);
      return sorted.length > 0 && table(caption, [column, "Hour", "Day", h("span", { class: "unseen" }, "Share")], sorted.map(([key, count]) =>
        h("tr", {}, h("th", { scope: "row" }, name(key)), cell(number(hour[field][key] ?? 0)), cell(number(count)),
          h("td", {}, bar(kind(key), count / sorted[0][1], 0, false, number(count) + " " + name(key))))));
    };
    const kind = (outcome) => ["success", "answered", "replayed"].includes(outcome) ? "good" : outcome === "client_disconnected" ? "left" : "failing";
    const waits = Object.entries(day.waits).map(([why, wait]) => number(wait.count) + " times for " + seconds(wait.seconds) + " in total (" + words(why) + ")");
    return [ratio,
      h("div", { class: "two" }, counts("Calls by outcome", "Outcome", "outcomes", words, kind),
        counts("Failed attempts by kind", "Kind", "failure_kinds", (key) => KINDS[key] ?? words(key), () => "plain")),
      note(number(day.attempts) + " attempts: " + number(day.retries) + " retries, " + number(day.fallback_attempts) + " at other targets, "
        + number(day.degraded) + " degraded responses, " + number(day.skipped_targets) + " skipped targets. Waited " + (waits.join(", ") || "never") + "."),
    ];
  };

  const DIMENSIONS = { rpm: "requests per minute", tpm: "tokens per minute", ipm: "images per minute", rpd: "requests per day" };
  const quotas = (s) => {
    const shown = s.quotas.filter((quota) => quota.limits.length > 0);
    if (shown.length === 0) return [note("No quota is configured, or nothing has been counted yet.")];
    const limit = (of) => {
      const taken = share(of.used + of.reserved, of.limit), name = DIMENSIONS[of.dimension] ?? "limit";
      return h("tr", {}, h("th", { scope: "row" }, h("abbr", { title: name }, of.dimension.toUpperCase())),
        h("td", {}, bar(level(taken), share(of.used, of.limit), share(of.reserved, of.limit), true, name + ": " + percent(taken) + " taken")),
        cell((taken >= MARK ? "⚠ " : "") + percent(taken)),
        h("td", { class: "n quiet" }, number(of.used) + (of.reserved > 0 ? " + " + number(of.reserved) + " reserved" : "") + " of " + number(of.limit)
          + (of.resets_in_seconds > 0 ? ", resets in " + span(of.resets_in_seconds) : "")));
    };
    // The beginning of a fingerprint identifies it.
    const short = (project) => project.length > 18 ? project.slice(0, 18) + "…" : project;
    return [...shown.flatMap((quota) => [
      h("h3", {}, quota.model + " ", quiet(short(quota.project)), quota.waiting_calls > 0 && quiet(" " + quota.waiting_calls + " waiting")),
      h("table", { class: "meters" }, h("tbody", {}, quota.limits.map(limit)))]),
      note("The line marks 70 %.")];
  };

  const load = ({ load: of }) => {
    const meter = (name, taken, limit, text) => {
      const part = share(taken, limit);
      return h("tr", {}, h("th", { scope: "row" }, name),
        h("td", {}, bar(level(part), part, 0, true, name + ": " + percent(part) + " taken")),
        cell((part >= MARK ? "⚠ " : "") + percent(part)),
        h("td", { class: "n quiet" }, text(taken) + " of " + text(limit)));
    };
    const waiting = [[of.waiting_for_place, "request", "for a place"], [of.waiting_for_memory, "request", "for memory"], [of.responses_waiting_for_memory, "response", "for memory"]]
      .filter(([count]) => count > 0).map(([count, what, why]) => number(count) + " " + what + (count === 1 ? " " : "s ") + why);
    return [
      h("table", { class: "meters" }, h("tbody", {}, meter("Requests", of.requests, of.requests_limit, number), meter("Memory", of.memory_bytes, of.memory_limit_bytes, bytes))),
      note(waiting.length > 0 ? "Waiting: " + waiting.join(", ") + "; at most " + number(of.waiting_limit) + " requests may." : "Nobody waits for a place or for memory."),
    ];
  };

  const STATES = { failing: "failing", open: "cooling down", half_open: "being probed" };
  const targets = (s) => {
    const circuit = (of) => {
      const failing = of.state === "failing";
      const times = failing ? ", " + of.consecutive + " in a row" : of.consecutive > 1 ? ", time " + of.consecutive : "";
      return h("li", {}, mark(failing ? "strained" : "failing", failing ? "!" : "✕"), h("span", {}, h("b", {}, of.name), " " + (STATES[of.state] ?? of.state)
        + (of.cause ? " after " + words(of.cause) : "") + (of.cooldown_seconds !== null ? ", " + span(of.cooldown_seconds) + " left" : "") + times));
    };
    const models = Object.entries(s.last_day.models);
    return [
      s.circuits.length > 0 ? h("ul", { class: "targets" }, s.circuits.map(circuit)) : h("p", {}, mark("good", "✓"), " All circuits are closed: no target is failing."),
      models.length > 0 && table("Models in the last 24 hours", ["Model", "Attempts", "Succeeded", "5xx"], models.map(([name, of]) =>
        h("tr", {}, h("th", { scope: "row" }, name), cell(number(of.attempts)), cell(percent(share(of.successes, of.attempts))), cell(number(of.service_faults))))),
    ];
  };

  const money = (s) => {
    const windows = [["Hour", s.last_hour], ["24 hours", s.last_day], ["Total", s.total]];
    const day = s.last_day;
    const cap = (what, one) => {
      const part = (micro) => share(micro ?? 0, one.cap_microusd);
      const spent = part(one.spent.at_most_microusd ?? one.spent.at_least_microusd);
      const per = one.period === "total" ? what + " in total" : what + " per " + one.period;
      return [h("h3", {}, per + " ", quiet(cost(one.spent) + " of " + usd(one.cap_microusd)
        + (one.rejected_attempts > 0 ? "; " + number(one.rejected_attempts) + " attempts were not sent" : ""))),
        bar(level(spent), spent, part(one.reserved_at_most_microusd), true, percent(spent) + " spent: " + per)];
    };
    const caps = s.spending.filter((one) => one.cap_microusd !== null).map((one) => cap("Cap", one))
      .concat(s.budgets.map((of) => of.spending.filter((one) => one.cap_microusd !== null).map((one) => cap("Budget of " + of.upstream, one))));
    return [
      table("", ["Window", "Cost", "Images", "Per image"], windows.map(([name, window]) =>
        h("tr", {}, h("th", { scope: "row" }, name), cell(cost(window.cost)), cell(number(window.images)), cell(cost(window.cost_per_image))))),
      note("Of " + number(day.attempts) + " attempts " + number(day.charged_attempts) + " were charged, " + number(day.maybe_charged_attempts) + " may have been."
        + (day.unpriced_attempts > 0 ? " " + number(day.unpriced_attempts) + " have no known price, so there is no upper bound." : "")),
      caps,
    ];
  };

  const callers = (s) => {
    if (s.callers.length === 0) return [note("Nobody has called with a token.")];
    const uses = (of) => of.limits.map((limit) => number(limit.used) + " of " + number(limit.limit) + " " + limit.dimension)
      .concat(of.spending.filter((one) => one.cap_microusd !== null).map((one) => cost(one.spent) + " of " + usd(one.cap_microusd) + " per " + one.period));
    return [table("", ["Caller", "In flight", "Used"], s.callers.map((of) =>
      h("tr", {}, h("th", { scope: "row" }, of.name), cell(number(of.requests_in_flight)), h("td", {}, uses(of).join("; ") || "no limits"))))];
  };

  const stored = (s) => {
    if (!s.stored) return [note("Off: calls of disconnected clients are neither completed nor stored.")];
    const lines = [
      ["Disconnected after dispatch", number(s.total.completed_without_client)],
      ["Being completed now", number(s.stored.in_progress)],
      ["Stored responses", number(s.stored.stored) + " (" + bytes(s.stored.stored_bytes) + ")"],
      ["Replayed to an identical request", number(s.stored.replayed)],
      ["Cost nothing", number(s.stored.free)],
      ["Possibly charged and lost", number(s.stored.lost)],
    ];
    return [h("dl", { class: "list" }, lines.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))))];
  };

  const calls = (s) => {
    const good = ["success", "answered", "replayed"];
    const one = (call) => {
      const [kind, sign] = call.outcome === "client_disconnected" ? ["left", "↩"] : good.includes(call.outcome) ? ["good", "✓"] : ["failing", "✕"];
      return h("details", { id: "call-" + call.id },
        h("summary", {}, mark(kind, sign), h("span", { class: "what" }, h("b", {}, words(call.outcome)), h("span", { class: "says" }, call.sentence)),
          h("span", { class: "when" }, span(Math.max(s.at_unix_seconds - call.ended_unix_seconds, 0)) + " ago")),
        h("p", { class: "facts" }, "call " + call.id + " · " + seconds(call.took_ms / 1000) + " · " + cost(call.cost) + (call.under_way ? " · being completed without its client" : "")),
        h("ol", { class: "trail" }, call.trail.map((line) => h("li", {}, line))));
    };
    return s.recent_calls.length > 0 ? s.recent_calls.slice(0, CALLS_SHOWN).map(one) : [note("No call has ended yet.")];
  };

  const SECTIONS = { head, diagnoses, tiles, chart, outcomes, quotas, load, targets, money, callers, stored, calls };

  // -- updates
  const put = (id, children) => {
    const at = document.getElementById(id);
    // What is being selected is left alone until the next time.
    const selection = getSelection();
    if (selection && !selection.isCollapsed && at.contains(selection.anchorNode)) return;
    const toggled = [...at.querySelectorAll("details[id]")].map((one) => [one.id, one.open]);
    const focused = at.contains(document.activeElement) ? document.activeElement.closest("details[id]")?.id : undefined;
    at.replaceChildren(...children.flat(Infinity).filter(Boolean));
    for (const [detail, open] of toggled) {
      const one = document.getElementById(detail);
      if (one) one.open = open;
    }
    if (focused) document.getElementById(focused)?.querySelector("summary")?.focus({ preventScroll: true });
  };
  live(async () => {
    const response = await fetch("status.json", { cache: "no-store" });
    if (!response.ok) throw new Error("HTTP " + response.status);
    const status = await response.json();
    for (const [id, section] of Object.entries(SECTIONS)) put(id, section(status));
    return status.at_unix_seconds;
  });
})();
