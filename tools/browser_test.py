"""Open every page of the built site in a real browser and look for what a reader would trip over: `python tools/browser_test.py`.

Per page, wide and light, narrow and dark: it loads, asks nothing of another host, fails no request, writes no error to the console,
shows every formula of its source as MathML of some size, and does not scroll sideways. All links and anchors inside the site exist, and
the search finds something. Of the pages that show whole source files the longest stands for all.
"""

import argparse
import functools
import http.server
import re
import shutil
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlparse

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SCREENS = {"wide": ({"width": 1440, "height": 900}, "light"), "narrow": ({"width": 390, "height": 844}, "dark")}
CODE = re.compile(r"^(`{3,}|~{3,}).*?^\1|(`+).+?\2", re.DOTALL | re.MULTILINE)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def serve(site: Path) -> str:
    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/"


def formulas(path: str) -> int:
    """How many formulas the source of a page has, counted in our own way: pairs of dollars outside code."""
    source = ROOT / ("CONTRIBUTING.md" if path == "contributing/" else f"docs/{path.strip('/') or 'index'}.md")
    if not source.is_file():
        return 0
    text = CODE.sub("", source.read_text(encoding="utf-8")).replace(r"\$", "")
    return len(re.findall(r"\$\$.+?\$\$|\$[^$]+\$", text, re.DOTALL))


def visit(context: BrowserContext, base: str, path: str) -> list[str]:
    """Everything wrong with one page on one screen."""
    page = context.new_page()
    requests, failed, responses, messages, errors = (
        listen(page, event) for event in ("request", "requestfailed", "response", "console", "pageerror")
    )
    page.goto(base + path, wait_until="networkidle")
    wrong = [f"asks {request.url}" for request in requests if not request.url.startswith((base, "data:", "blob:"))]
    wrong += [f"failed request {request.url}" for request in failed]
    wrong += [f"{response.status} {response.url}" for response in responses if response.status >= 400]
    wrong += [f"console: {message.text}" for message in messages if message.type == "error"]
    wrong += [f"script error: {error}" for error in errors]
    wrong += inspect(page, path)
    page.close()
    return wrong


def listen(page: Page, event: Any) -> list:
    """A list that fills with what happens on the page."""
    seen: list = []
    page.on(event, lambda each: seen.append(each))
    return seen


def inspect(page: Page, path: str) -> list[str]:
    wrong = []
    shown = page.evaluate("[...document.querySelectorAll('article math')].filter(m => m.getBoundingClientRect().width > 2).length")
    wanted = formulas(path)
    if shown < wanted:
        wrong.append(f"{shown} formulas shown, {wanted} in the source")
    over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if over > 0:
        culprit = page.evaluate(
            "[...document.querySelectorAll('article *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
            ".map(e => e.tagName + '.' + (e.getAttribute('class') || '')).slice(0, 3).join(', ')"
        )
        wrong.append(f"scrolls sideways by {over} pixels ({culprit})")
    if page.evaluate("document.querySelectorAll('.problem, .admonition.failure').length"):
        wrong.append("shows a problem that the build reported")
    if page.evaluate("[...document.querySelectorAll('article svg.picture')].some(s => s.getBoundingClientRect().height < 20)"):
        wrong.append("a picture has no height")
    return wrong


def dead_links(site: Path) -> list[str]:
    """Links inside the site whose page or anchor does not exist."""
    dead: list[str] = []
    names: dict[Path, set[str]] = {}
    for file in site.rglob("*.html"):
        names[file] = set(re.findall(r'\b(?:id|name)="([^"]+)"', file.read_text(encoding="utf-8")))
    for file in names:
        here = "/" + file.relative_to(site).as_posix().removesuffix("index.html")
        for href in set(re.findall(r'<a\b[^>]*?\bhref="([^"]+)"', file.read_text(encoding="utf-8"))):
            if urlparse(href).scheme or file.name == "404.html":
                continue
            url, anchor = urldefrag(urljoin(here, href))
            target = site / unquote(url).lstrip("/")
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (anchor and target in names and unquote(anchor) not in names[target]):
                dead.append(f"{here} links to {href}, which does not exist")
    return sorted(dead)


def search(browser: Browser, base: str) -> list[str]:
    page = browser.new_page()
    page.goto(base, wait_until="networkidle")
    page.click(".md-search__input")
    page.keyboard.type("tolerance", delay=20)
    try:
        page.wait_for_selector(".md-search-result__item", timeout=60_000)
    except Exception as error:
        return [f"the search finds nothing: {error}"]
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", type=Path, default=ROOT / "site")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome"))
    options = parser.parse_args()
    if not (options.site / "index.html").is_file():
        sys.exit(f"{options.site} holds no built site: run `mkdocs build --strict` first")
    base = serve(options.site)
    paths = sorted(file.parent.relative_to(options.site).as_posix() + "/" for file in options.site.rglob("index.html"))
    paths = ["" if path == "./" else path for path in paths]
    source = [path for path in paths if path.startswith("source/")]  # pages that differ in nothing but their text: open the longest
    source.sort(key=lambda path: (options.site / path / "index.html").stat().st_size)
    paths = [path for path in paths if path not in source] + source[-1:]
    results: dict[str, list[str]] = {"links": dead_links(options.site)}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=FLAGS)
        results["search"] = search(browser, base)
        for screen, (viewport, scheme) in SCREENS.items():
            context = browser.new_context(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
            for path in paths:
                results[f"/{path} {screen}"] = visit(context, base, path)
        browser.close()
    for name, wrong in results.items():
        for each in wrong:
            print(f"FAILED {name}: {each}")
    failed = sum(bool(wrong) for wrong in results.values())
    print(f"{len(results) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
