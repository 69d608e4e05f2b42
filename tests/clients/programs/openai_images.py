"""openai: images.generate."""

import base64

from openai import OpenAI

from report import API_KEY, BASE_URL, HEADERS, MODEL, PROMPT, SENDS, SIZE, Report

with Report() as report:
    retries = {"max_retries": SENDS - 1} if SENDS else {}
    client = OpenAI(base_url=f"{BASE_URL}/v1beta/openai/", api_key=API_KEY, default_headers=HEADERS, **retries)
    size = {"size": {"1K": "1024x1024", "2K": "2048x2048", "4K": "4096x4096"}[SIZE]} if SIZE else {}
    answer = client.images.generate(model=MODEL, prompt=PROMPT, response_format="b64_json", **size)
    images = [base64.b64decode(image.b64_json) for image in answer.data or [] if image.b64_json]
    for data in images:
        report.image(data, f"image/{answer.output_format}" if answer.output_format else None)
    # The snippet takes `data[0]`, whatever there is.
    report.chosen(base64.b64decode(answer.data[0].b64_json))
