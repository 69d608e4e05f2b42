// Google's JavaScript SDK: generateContent, or generateContentStream when the first argument is "stream".

import { createHash } from "node:crypto";
import { createRequire } from "node:module";

// The packages are in target/clients, not beside this file.
const { GoogleGenAI } = await import(createRequire(`${process.env.NODE_HOME}/`).resolve("@google/genai"));

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
const { BASE_URL, API_KEY, SIM_CALL, MODEL = "gemini-3-pro-image", SIZE, SENDS } = process.env;
const said = { ok: false, error_type: null, error: null, status: null, images: [], chosen_sha256: null, finish_reason: null, text: null };

// As documented: each image is written to the same file, so the last one stays.
function save(answer) {
  said.finish_reason = answer.candidates?.[0]?.finishReason ?? answer.promptFeedback?.blockReason ?? said.finish_reason;
  for (const part of answer.candidates?.[0]?.content?.parts ?? []) {
    if (part.text) {
      if (!part.thought) said.text = (said.text ?? "") + part.text;
    } else if (part.inlineData) {
      const bytes = Buffer.from(part.inlineData.data, "base64");
      said.images.push({ sha256: sha256(bytes), bytes: bytes.length, mime: part.inlineData.mimeType });
      said.chosen_sha256 = sha256(bytes);
    }
  }
}

try {
  const retryOptions = SENDS ? { retryOptions: { attempts: Number(SENDS) } } : {};
  const httpOptions = { baseUrl: BASE_URL, headers: { "x-sim-call": SIM_CALL }, ...retryOptions };
  const api = new GoogleGenAI({ apiKey: API_KEY, httpOptions });
  const config = { responseModalities: ["TEXT", "IMAGE"], ...(SIZE ? { imageConfig: { imageSize: SIZE } } : {}) };
  const request = { model: MODEL, contents: "A cat in a teacup", config };
  if (process.argv[2] === "stream") {
    for await (const chunk of await api.models.generateContentStream(request)) save(chunk);
  } else {
    save(await api.models.generateContent(request));
  }
  said.ok = true;
} catch (error) {
  said.error_type = error.name;
  said.error = String(error.message).slice(0, 500);
  said.status = error.status ?? null;
}
console.log(JSON.stringify(said));
