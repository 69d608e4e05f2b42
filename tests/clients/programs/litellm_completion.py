"""litellm: completion in Gemini's own dialect."""

import os

# Otherwise importing it fetches a price list from the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

from report import API_KEY, BASE_URL, HEADERS, MODEL, PROMPT, SENDS, SIZE, Report, decoded

# It prints advice on errors, and stdout is for the report.
litellm.suppress_debug_info = True

with Report() as report:
    size = {"imageConfig": {"imageSize": SIZE}} if SIZE else {}
    answer = litellm.completion(
        model=f"gemini/{MODEL}",
        messages=[{"role": "user", "content": PROMPT}],
        modalities=["image", "text"],
        api_base=f"{BASE_URL}/v1beta",
        api_key=API_KEY,
        extra_headers=HEADERS,
        **size,
        **({"num_retries": SENDS - 1} if SENDS else {}),
    )
    choice = answer.choices[0]
    report.finish_reason(choice.finish_reason)
    if choice.message.content:
        report.text(choice.message.content)
    images = [decoded(image["image_url"]["url"]) for image in getattr(choice.message, "images", None) or []]
    for mime, data in images:
        report.image(data, mime)
    if images:
        report.chosen(images[0][1])
