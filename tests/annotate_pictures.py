"""The pictures of docs/annotate.md, from an app with one project of its own: `python -m tests.annotate_pictures`.

The ranking page on desktop and phone, in light and dark, in English and Chinese; and its tools. Needs Chromium.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from playwright.async_api import Browser, Page, ViewportSize, async_playwright
from sqlalchemy.ext.asyncio import AsyncSession

from app.config import Settings
from app.db import make_engine, make_sessionmaker
from app.embedded import EmbeddedPostgres
from app.main import create_app
from app.migrate import upgrade
from app.tasks.models import TaskCompletion
from tests.browser.conftest import FLAGS, LiveServer, wait_for_port
from tests.chromium import find_chromium
from tests.factories import make_completion, make_project, make_prompt, make_task, make_user

OUT = Path(__file__).resolve().parent.parent / "docs" / "images"
DESKTOP: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 390, "height": 844}
SLUG = "explain"
CONVERSATION = [
    ("system", "You are a patient teacher. Answer briefly, in the language of the question."),
    ("user", "I have forgotten most of school mathematics."),
    ("assistant", "That is fine. Where shall we begin?"),
    ("user", "What is a derivative? Give one example, and show me some code that computes it."),
]
ANSWERS = [
    r"""The **derivative** of $f$ says how fast $f(x)$ changes at a point:

$$
f'(x) = \lim_{h \to 0} \frac{f(x+h) - f(x)}{h}
$$

For $f(x) = x^2$ it is $f'(x) = 2x$.

| $x$ | $f(x)$ | $f'(x)$ |
|---|---|---|
| 1 | 1 | 2 |
| 3 | 9 | 6 |
""",
    """The **derivative** of $f$ says how steep $f(x)$ is at a point.

For $f(x) = x^2$ it is $f'(x) = 2x$.

```python
def slope(f, x, h=1e-6):
    return (f(x + h) - f(x - h)) / (2 * h)
```

1. Take two points that are close.
2. Divide the rise by the run.
""",
    """A derivative is a financial contract whose value depends on something else, such as a share.

> Past performance is no guarantee of future results.
""",
    """Think of a car: the derivative of its way is its speed. After $t$ seconds it has gone $t^2$ metres, at $2t$ m/s.

- at 1 s: 2 m/s
- at 3 s: 6 m/s
""",
]


async def make_sample(session: AsyncSession) -> None:
    """A project whose every task is this conversation with these answers."""
    project = await make_project(session, name="Explain it well", slug=SLUG, k=len(ANSWERS), overlap=99)
    messages = [{"role": role, "content": content} for role, content in CONVERSATION]
    prompt = await make_prompt(session, project, messages=messages)
    task = await make_task(session, prompt, k=0, overlap=99)
    for position, answer in enumerate(ANSWERS):
        completion = await make_completion(session, prompt, text=answer)
        session.add(TaskCompletion(task_id=task.id, completion_id=completion.id, position=position))


@asynccontextmanager
async def serve(folder: Path) -> AsyncIterator[LiveServer]:
    """The app on a throwaway database, in a thread, on a free port."""
    with EmbeddedPostgres(folder, durable=False) as database:
        url = database.url("postgres")
        upgrade(url)
        app = create_app(Settings(data_dir=folder, database_url=url))
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        engine = make_engine(url, pool_size=2)
        try:
            yield LiveServer(f"http://127.0.0.1:{wait_for_port(server, thread)}", make_sessionmaker(engine))
        finally:
            server.should_exit = True
            thread.join()
            await engine.dispose()


async def open_page(server: LiveServer, browser: Browser, size: ViewportSize, colours: str, language: str) -> Page:
    """The ranking page as a new annotator sees it."""
    context = await browser.new_context(
        viewport=size,
        color_scheme="dark" if colours == "dark" else "light",
        locale=language,
        has_touch=size is PHONE,
        is_mobile=size is PHONE,
    )
    async with server.sessions.begin() as session:
        annotator = await make_user(session, name="Ada")
    await server.sign_in(context, annotator)
    page = await context.new_page()
    await page.goto(f"{server.url}/projects/{SLUG}/rank")
    await page.wait_for_selector(".formula math")
    return page


async def press(page: Page, *keys: str) -> None:
    for key in keys:
        await page.keyboard.press(key)
    await page.wait_for_timeout(300)


async def choose_alike(page: Page) -> None:
    """In the comparison: the two answers that begin alike."""
    alike = page.locator(".answer", has_text="says how")
    for index, label in enumerate(("First answer", "Second answer")):
        await page.get_by_label(label).select_option(await alike.nth(index).get_attribute("data-id"))


async def take_all(folder: Path, out: Path) -> None:
    """The page in its eight looks, then its tools."""
    async with serve(folder) as server, async_playwright() as playwright:
        async with server.sessions.begin() as session:
            await make_sample(session)
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        for name, size in (("desktop", DESKTOP), ("phone", PHONE)):
            for colours in ("light", "dark"):
                for language in ("en", "zh"):
                    page = await open_page(server, browser, size, colours, language)
                    await press(page, "2", "1", "2", "Shift+Digit3")
                    await page.evaluate("scrollTo(0, matchMedia('(max-width: 900px)').matches ? 470 : 0)")
                    await page.screenshot(path=out / f"annotate-{name}-{language}-{colours}.png")
                    await page.context.close()
        for name, keys in {"compare": ["d"], "keys": ["?"], "find": ["f", "d", "e", "r", "i"]}.items():
            page = await open_page(server, browser, DESKTOP, "light", "en")
            await press(page, *keys)
            if name == "compare":
                await choose_alike(page)
            await page.screenshot(path=out / f"annotate-{name}.png")
            await page.context.close()
        await browser.close()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the pictures")
    out = parser.parse_args().out
    # Open to the user that the database runs as when this runs as root.
    folder = Path(tempfile.mkdtemp(prefix="rankloop-pictures-"))
    folder.chmod(0o755)
    try:
        asyncio.run(take_all(folder, out))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
