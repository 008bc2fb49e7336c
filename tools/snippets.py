"""Run every example of the documentation, `>>> …` in fenced Python, one session per page: `python tools/snippets.py [PAGE…]`."""

import doctest
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```python\n(>>> .*?)^```", re.DOTALL | re.MULTILINE)


def main(pages: list[str]) -> int:
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    for page in map(Path, pages) if pages else sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        session: dict = {}
        for fence in FENCE.finditer(text):
            line = text[: fence.start()].count("\n") + 1
            example = parser.get_doctest(fence[1], session, page.name, str(page), line)
            runner.run(example, clear_globs=False)
            session = example.globs
    print(f"{runner.tries - runner.failures} passed, {runner.failures} failed")
    return int(runner.failures > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
