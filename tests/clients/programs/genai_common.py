"""Google's Python SDK: its client, and the snippet of the documentation that saves the image."""

import os
import tempfile

from google import genai
from google.genai import types

from report import API_KEY, BASE_URL, HEADERS, SENDS, SIZE


def client():
    # Its own waits of 1 to 60 s would only make the test longer.
    retries = types.HttpRetryOptions(attempts=SENDS, initial_delay=0.1, max_delay=0.5) if SENDS else None
    options = types.HttpOptions(base_url=BASE_URL, headers=HEADERS, retry_options=retries)
    return genai.Client(api_key=API_KEY, http_options=options)


def config():
    image_config = types.ImageConfig(image_size=SIZE) if SIZE else None
    return types.GenerateContentConfig(response_modalities=["TEXT", "IMAGE"], image_config=image_config)


def look(report, response):
    """Notes what is in an answer, without judging it."""
    for candidate in response.candidates or []:
        report.finish_reason(candidate.finish_reason)
        for part in (candidate.content and candidate.content.parts) or []:
            if part.inline_data:
                report.image(part.inline_data.data, part.inline_data.mime_type)
    if response.prompt_feedback and response.prompt_feedback.block_reason:
        report.finish_reason(response.prompt_feedback.block_reason)


class Snippet:
    """As documented: each image is saved to the same file, so the last one stays."""

    def __init__(self, report):
        self.report = report
        self.folder = tempfile.TemporaryDirectory()
        self.file = os.path.join(self.folder.name, "generated_image.png")

    def save(self, parts):
        for part in parts:
            if part.text is not None:
                if not part.thought:
                    self.report.text(part.text)
            elif image := part.as_image():
                image.save(self.file)

    def has_saved(self):
        return os.path.exists(self.file)

    def done(self):
        if self.has_saved():
            with open(self.file, "rb") as file:
                self.report.chosen(file.read())
        self.folder.cleanup()
