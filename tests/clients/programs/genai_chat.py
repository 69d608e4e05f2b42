"""google-genai: a chat of two turns; the second edits the image of the first, whose signature the SDK sends back."""

from genai_common import Snippet, client, config, look
from report import MODEL, PROMPT, Report

with Report() as report:
    api = client()
    chat = api.chats.create(model=MODEL, config=config())
    snippet = Snippet(report)
    for message in (PROMPT, "Make the cat a ginger one"):
        response = chat.send_message(message)
        look(report, response)
        snippet.save(response.parts)
    snippet.done()
