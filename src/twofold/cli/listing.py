"""`twofold list` and `twofold show`."""

from typing import Any

from twofold import discovery
from twofold.cli.console import console, table

PARTS = ("spec", "fast", "conformance", "docs")


def rows() -> list[dict[str, Any]]:
    """One record per chapter; the four parts as booleans."""
    return [
        {name: getattr(chapter, name) for name in ("family", "algorithm", "title", "paper")}
        | {"forms": list(chapter.forms)}
        | {part: getattr(chapter, part) is not None for part in PARTS}
        for chapter in discovery.chapters()
    ]


def show() -> None:
    listing = table("chapter", "title", "forms", *PARTS)
    for row in rows():
        parts = ["✓" if row[part] else "–" for part in PARTS]
        listing.add_row(f"{row['family']}.{row['algorithm']}", row["title"], " ".join(row["forms"]), *parts)
    console().print(listing)
    if discovery.checkout() is None:
        console().print("The pages (docs) live in the repository and are not installed with the package.")


def show_spec(chapter: discovery.Chapter) -> None:
    if chapter.spec is None:
        raise discovery.Unknown(f"{chapter.name} has no spec")
    source = chapter.spec.read_text(encoding="utf-8")
    if not console().is_terminal:  # a pipe wants the text as it is
        print(source, end="")
        return
    from rich.syntax import Syntax

    console().print(Syntax(source, "python", theme="ansi_dark", background_color="default"))
