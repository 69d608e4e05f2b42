"""google-genai: models.generate_content."""

from genai_common import Snippet, client, config, look
from report import MODEL, PROMPT, Report

with Report() as report:
    api = client()
    response = api.models.generate_content(model=MODEL, contents=[PROMPT], config=config())
    look(report, response)
    snippet = Snippet(report)
    snippet.save(response.parts)
    snippet.done()
