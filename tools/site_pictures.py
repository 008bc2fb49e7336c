"""Pictures of the site: an SVG that a page shows is put into the page, where `currentColor` and the theme's variables reach it."""

import html as escaping
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

__all__ = ["inline"]

IMAGE = re.compile(r"<img\b[^>]*?\bsrc=\"([^\"]+\.svg)\"[^>]*>")
DARK = re.compile(r"@media\s*\(\s*prefers-color-scheme\s*:\s*dark\s*\)")


def inline(html: str, page: Page, files: Files, report) -> str:
    """Replace each `<img src="….svg">` by the file's own elements."""
    count = 0

    def one(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        uri = posixpath.normpath(posixpath.join(page.url, match[1]))
        file = files.get_file_from_path(uri)
        if file is None:
            report(f"the picture {match[1]} does not exist")
            return match[0]
        alt = re.search(r'\balt="([^"]*)"', match[0])
        if not alt or not alt[1]:
            report(f"the picture {match[1]} has no text for those who cannot see it")
        return picture(Path(file.abs_src_path or "").read_text(encoding="utf-8"), f"picture-{count}", alt[1] if alt else "")

    return IMAGE.sub(one, html)


def picture(svg: str, name: str, alt: str) -> str:
    """The `<svg>` element with names of its own, so that two pictures on one page do not meddle with each other or with the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    for each in set(re.findall(r'\bid="([^"]+)"', svg)):
        own = re.escape(each)
        svg = re.sub(rf'(\bid="|href="#|url\(#){own}(?=["\)])', rf"\g<1>{name}-{each}", svg)
        svg = re.sub(rf'(aria-labelledby="){own}"', rf'\g<1>{name}-{each}"', svg)
    svg = re.sub(r"<style[^>]*>(.*?)</style>", lambda match: f"<style>{scoped(match[1], name)}</style>", svg, flags=re.DOTALL)
    label = escaping.escape(escaping.unescape(alt), quote=True)
    head, _, rest = svg.partition(">")
    head = re.sub(r'\s(id|role|aria-label|class|xmlns:dc|xmlns:cc|xmlns:rdf)="[^"]*"', "", head)
    size = re.search(r'\bviewBox="\s*\S+\s+\S+\s+(\S+)', head)
    width = f' style="max-width: min(100%, {float(size[1]):.0f}px)"' if size and "style=" not in head else ""
    head = re.sub(r'\s(width|height)="[^"]*"', "", head) if size else head
    return re.sub(r"\n\s*\n", "\n", f'{head} id="{name}" class="picture" role="img" aria-label="{label}"{width}>{rest}')


def scoped(style: str, name: str) -> str:
    """The picture's rules, nested under it; what it says for dark screens follows the site's own switch instead of the system's."""
    style = re.sub(r"<!\[CDATA\[|\]\]>", "", style)
    style = re.sub(r"(^|[\s},{])(:root|svg)(?=\s*[{,])", r"\1&", DARK.sub('[data-md-color-scheme="slate"] &', style))
    return f"#{name} {{ {style} }}"
