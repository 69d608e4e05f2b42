"""google-genai: the chat of two turns, streamed; the SDK puts the model's turn together from its pieces and sends it back."""

from genai_common import Snippet, client, config, look
from report import MODEL, PROMPT, Report

with Report() as report:
    api = client()
    chat = api.chats.create(model=MODEL, config=config())
    snippet = Snippet(report)
    for message in (PROMPT, "Make the cat a ginger one"):
        for chunk in chat.send_message_stream(message):
            look(report, chunk)
            # Chunks without a candidate are ordinary in a stream, and the documentation skips them.
            if chunk.parts is None:
                continue
            snippet.save(chunk.parts)
        if not snippet.has_saved():
            break  # there is nothing to edit
    snippet.done()
