"""google-genai: models.generate_content_stream."""

from genai_common import Snippet, client, config, look
from report import MODEL, PROMPT, Report

with Report() as report:
    api = client()
    snippet = Snippet(report)
    for chunk in api.models.generate_content_stream(model=MODEL, contents=[PROMPT], config=config()):
        look(report, chunk)
        # Chunks without a candidate are ordinary in a stream, and the documentation skips them.
        if chunk.parts is None:
            continue
        snippet.save(chunk.parts)
    snippet.done()
