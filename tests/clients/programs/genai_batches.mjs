// Google's JavaScript SDK: ai.batches with inline requests and with a file, and ai.files.
// Prints one line of JSON: the states on the way, and each line's key with its image or its error.

import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

const { GoogleGenAI } = await import(createRequire(`${process.env.NODE_HOME}/`).resolve("@google/genai"));

const { BASE_URL, API_KEY, SIM_CALL, MODEL = "gemini-3-pro-image" } = process.env;
const ENDED = ["JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED"];
const api = new GoogleGenAI({ apiKey: API_KEY, httpOptions: { baseUrl: BASE_URL, headers: { "x-sim-call": SIM_CALL } } });

async function ended(job) {
  const states = [job.state];
  while (!ENDED.includes(job.state)) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    job = await api.batches.get({ name: job.name });
    if (job.state !== states.at(-1)) states.push(job.state);
  }
  return [job, states];
}

function sha256(response) {
  const image = response?.candidates[0].content.parts.findLast((part) => part.inlineData);
  return image ? createHash("sha256").update(Buffer.from(image.inlineData.data, "base64")).digest("hex") : null;
}

const line = (key, { response, error }) => ({ key, sha256: sha256(response), error: error ? [error.code, error.message] : null });
const contents = (n) => [{ parts: [{ text: `A cat in a teacup ${n}` }], role: "user" }];
const said = {};

const requests = [0, 1, 2].map((n) => ({ contents: contents(n), metadata: { key: `k${n}` } }));
let [job, states] = await ended(await api.batches.create({ model: MODEL, src: requests, config: { displayName: "inline" } }));
said.inline = { states, lines: job.dest.inlinedResponses.map((of) => line(of.metadata.key, of)) };

const jsonl = [0, 1, 2].map((n) => JSON.stringify({ key: `f${n}`, request: { contents: contents(n) } })).join("\n");
const uploaded = await api.files.upload({ file: new Blob([jsonl]), config: { mimeType: "application/jsonl" } });
[job, states] = await ended(await api.batches.create({ model: MODEL, src: uploaded.name, config: { displayName: "file" } }));
const folder = mkdtempSync(join(tmpdir(), "batches-"));
await api.files.download({ file: job.dest.fileName, downloadPath: join(folder, "results.jsonl") });
const lines = readFileSync(join(folder, "results.jsonl"), "utf8").trim().split("\n").map((text) => JSON.parse(text));
rmSync(folder, { recursive: true });
said.file = { states, lines: lines.map((of) => line(of.key, of)) };

said.listed = [];
for await (const listed of await api.batches.list({ config: { pageSize: 1 } })) said.listed.push(listed.displayName);
console.log(JSON.stringify(said));
