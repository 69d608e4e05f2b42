"""openai: client.batches as Google documents it, with google-genai's client.files for what goes in and comes out.

Prints one line of JSON: what each of them gave its user."""

import hashlib
import json
import os
import tempfile
import time

from google.genai import types
from openai import APIStatusError, OpenAI

from genai_common import client
from report import API_KEY, BASE_URL, HEADERS, MODEL, PROMPT, decoded

ENDED = {"completed", "failed", "cancelled", "expired"}

google = client()
api = OpenAI(base_url=f"{BASE_URL}/v1beta/openai/", api_key=API_KEY, default_headers=HEADERS)


def line(n):
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"{PROMPT} {n}"}]}
    return json.dumps({"custom_id": f"c{n}", "method": "POST", "url": "/v1/chat/completions", "body": body})


def created(name):
    """The upload and the creation of the documentation."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "my-batch-requests.jsonl")
        with open(path, "w") as file:
            file.write("\n".join(map(line, range(3))) + "\n")
        uploaded = google.files.upload(file=path, config=types.UploadFileConfig(display_name="requests", mime_type="jsonl"))
    return api.batches.create(
        input_file_id=uploaded.name, endpoint="/v1/chat/completions", completion_window="24h", metadata={"job": name}
    )


def ended(batch):
    """The loop of the documentation, with a shorter pause. Notes the statuses on the way."""
    states = [batch.status]
    while batch.status not in ENDED:
        time.sleep(0.05)
        batch = api.batches.retrieve(batch.id)
        if batch.status != states[-1]:
            states.append(batch.status)
    return batch, states


def lines_of(name):
    return [json.loads(line) for line in google.files.download(file=name).decode().splitlines()]


def sha256_of(response):
    image = response["body"]["choices"][0]["message"]["images"][0]["image_url"]["url"]
    return hashlib.sha256(decoded(image)[1]).hexdigest()


batch, states = ended(created("cats"))
good, bad = lines_of(batch.output_file_id), lines_of(batch.error_file_id)
said = dict(
    states=states,
    object=batch.object,
    counts=batch.request_counts.model_dump(),
    metadata=batch.metadata,
    took=batch.completed_at >= batch.in_progress_at >= batch.created_at,
    # In the order of the input, as the program beside this one has them.
    lines=sorted(
        [dict(key=line["custom_id"], sha256=sha256_of(line["response"]), error=line["error"]) for line in good]
        + [
            dict(key=line["custom_id"], sha256=None, error=[line["response"]["body"][0]["error"]["code"]])
            for line in bad
        ],
        key=lambda line: line["key"],
    ),
)
last = created("cancelled")
said["cancelled"] = [api.batches.cancel(last.id).status, api.batches.retrieve(last.id).status]
said["listed"] = [listed.metadata["job"] for listed in api.batches.list(limit=1)]
try:
    api.files.create(file=("requests.jsonl", line(0).encode()), purpose="batch")
except APIStatusError as error:
    said["files"] = error.status_code
print(json.dumps(said), flush=True)
