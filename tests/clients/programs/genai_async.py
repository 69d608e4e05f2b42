"""google-genai: the async client, which speaks through aiohttp because that is installed."""

import asyncio

from genai_common import Snippet, client, config, look
from report import MODEL, PROMPT, Report


async def main(report):
    async with client().aio as api:
        response = await api.models.generate_content(model=MODEL, contents=[PROMPT], config=config())
    look(report, response)
    snippet = Snippet(report)
    snippet.save(response.parts)
    snippet.done()


with Report() as report:
    asyncio.run(main(report))
