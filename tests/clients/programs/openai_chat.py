"""openai: chat.completions, with images in the message as the OpenAI-compatible gateways answer them."""

from openai import OpenAI

from report import API_KEY, BASE_URL, HEADERS, MODEL, PROMPT, SENDS, SIZE, Report, decoded

with Report() as report:
    retries = {"max_retries": SENDS - 1} if SENDS else {}
    client = OpenAI(base_url=f"{BASE_URL}/v1beta/openai/", api_key=API_KEY, default_headers=HEADERS, **retries)
    extra = {"modalities": ["image", "text"]}
    if SIZE:
        extra["image_config"] = {"image_size": SIZE}
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": PROMPT}], extra_body=extra)
    choice = answer.choices[0]
    report.finish_reason(choice.finish_reason)
    if choice.message.content:
        report.text(choice.message.content)
    images = [decoded(image["image_url"]["url"]) for image in getattr(choice.message, "images", None) or []]
    for mime, data in images:
        report.image(data, mime)
    if images:
        report.chosen(images[0][1])
