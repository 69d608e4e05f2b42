"""google-genai: client.batches with inline requests and with a file, client.files, and client.webhooks.

Prints one line of JSON: what each of them gave its user."""

import base64
import hashlib
import hmac
import http.server
import json
import os
import tempfile
import threading
import time

from google.genai import types

from genai_common import client, config
from report import MODEL, PROMPT

ENDED = {"JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED"}


def ended(api, job):
    """The loop of the documentation, with a shorter pause. Notes the states on the way."""
    states = [job.state.name]
    while job.state.name not in ENDED:
        time.sleep(0.05)
        job = api.batches.get(name=job.name)
        if job.state.name != states[-1]:
            states.append(job.state.name)
    assert job.done, job.state
    return job, states


def sha256_of(response):
    parts = response.candidates[0].content.parts
    images = [part.inline_data.data for part in parts if part.inline_data]
    return hashlib.sha256(images[-1]).hexdigest()


def listener():
    """A listener on loopback, and what it was sent."""
    heard = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            heard.append((dict(self.headers.items()), self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/hook", heard


def is_signed(secret, headers, body):
    """The check of Standard Webhooks."""
    headers = {name.lower(): value for name, value in headers.items()}
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    mac = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), signed, hashlib.sha256).digest()
    return headers["webhook-signature"] == "v1," + base64.b64encode(mac).decode()


api = client()
said = {}

uri, heard = listener()
hook = api.webhooks.create(name="jobs", uri=uri, subscribed_events=["batch.succeeded", "batch.failed"])
said["webhooks"] = [listed.id == hook.id for listed in api.webhooks.list().webhooks]

requests = [
    {"contents": [{"parts": [{"text": f"{PROMPT} {n}"}], "role": "user"}], "metadata": {"key": f"k{n}"}, "config": config()}
    for n in range(3)
]
job = api.batches.create(model=MODEL, src=requests, config={"display_name": "inline"})
job, states = ended(api, job)
said["inline"] = dict(
    states=states,
    display_name=job.display_name,
    model=job.model,
    lines=[
        dict(
            key=line.metadata["key"],
            sha256=line.response and sha256_of(line.response),
            error=line.error and [line.error.code, line.error.message],
        )
        for line in job.dest.inlined_responses
    ],
)

with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "requests.jsonl")
    with open(path, "w") as file:
        for n in range(3):
            request = {"contents": [{"parts": [{"text": f"{PROMPT} {n}"}]}]}
            file.write(json.dumps({"key": f"f{n}", "request": request}) + "\n")
    uploaded = api.files.upload(file=path, config=types.UploadFileConfig(display_name="requests", mime_type="jsonl"))
said["upload"] = dict(same=api.files.get(name=uploaded.name).size_bytes == uploaded.size_bytes, name=uploaded.display_name)
job = api.batches.create(model=MODEL, src=uploaded.name, config={"display_name": "file"})
job, states = ended(api, job)
lines = [json.loads(line) for line in api.files.download(file=job.dest.file_name).decode().splitlines()]
said["file"] = dict(
    states=states,
    lines=[
        dict(
            key=line["key"],
            sha256="response" in line and sha256_of(types.GenerateContentResponse.model_validate(line["response"])),
            error=line.get("error") and [line["error"]["code"], line["error"]["message"]],
        )
        for line in lines
    ],
)

job = api.batches.create(model=MODEL, src=requests, config={"display_name": "cancelled"})
api.batches.cancel(name=job.name)
said["cancelled"] = ended(api, job)[0].state.name
said["listed"] = [listed.display_name for listed in api.batches.list(config={"page_size": 2})]
api.batches.delete(name=job.name)
said["left"] = len(list(api.batches.list()))

deadline = time.monotonic() + 20
while len(heard) < 2 and time.monotonic() < deadline:
    time.sleep(0.05)
said["heard"] = [
    dict(signed=is_signed(hook.new_signing_secret, headers, body), type=json.loads(body)["type"], data=json.loads(body)["data"])
    for headers, body in heard
]
print(json.dumps(said), flush=True)
