"""The site's hooks must notice what authors get wrong: one build of faulty pages, one warning demanded for each fault."""

import logging
import sys
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).resolve().parent.parent
PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><style>svg { color: red }</style><path id="a" d="M0 0"/></svg>'

FAULTS = {
    "unknown_function": ("::: spec attention/dense.no_such_form", "spec/attention/dense.py defines no 'no_such_form'"),
    "unknown_file": ("::: fast attention/no_such_module.forward", "fast/attention/no_such_module.py does not exist"),
    "no_counterpart": ("::: pair attention/dense.share_of_nothing", "defines no 'share_of_nothing'"),
    "no_function": ("::: spec attention/dense", "must name a module and a function"),
    "unknown_experiment": ("::: experiment no_such_run", "no committed experiment is named 'no_such_run'"),
    "unknown_directive": ("::: peculiar attention/dense.weights", "unknown directive '::: peculiar'"),
    "unknown_test": ("Held by `test_that_nobody_wrote`.", "no test is named test_that_nobody_wrote"),
    "unknown_command": (r"A formula $\nosuch x$.", r"unknown command \nosuch"),
    "half_a_fraction": (r"A formula $\frac{1}$.", "<mfrac> has 1 parts, not 2"),
    "unbalanced": (r"A formula $x_{1$.", "unbalanced braces"),
    "lone_dollar": ("It costs 5$ or so.", "a dollar sign that opens no formula"),
    "runaway": ("One $x here.\n\nAnd y$ there.", "runs over a paragraph's end"),
    "no_text": ("![](picture.svg)", "has no text for those who cannot see it"),
    "attention/dense": ("# Dense", "the page shows attention, weights"),
}
GOOD = {
    "code": "A `$variable`, and\n\n```sh\necho $HOME ::: spec x\n```\n\n```\n::: pair a.b\n```\n",
    "formulas": "# A $x^2$ title\n\n| a | b |\n|---|---|\n| $|x|$ | \\$5 |\n\n$$\\begin{aligned} a &= b \\\\ c &= d \\end{aligned}$$\n",
    "pictures": "![one](picture.svg)\n\n![two](picture.svg)\n",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The warnings of one build of all pages, and where it was built."""
    docs, site, messages = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("site"), []
    pages = {name: text for name, (text, _) in FAULTS.items()} | GOOD
    for name, text in pages.items():
        path = docs / f"{name}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (docs / "index.md").write_text("# Faults\n")
    (docs / "picture.svg").write_text(PICTURE)
    watch = logging.Handler(logging.WARNING)
    watch.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mkdocs").addHandler(watch)
    paths = sys.path.copy()
    try:
        build(load_config(str(ROOT / "mkdocs.yml"), docs_dir=str(docs), site_dir=str(site), nav=None))
    finally:
        logging.getLogger("mkdocs").removeHandler(watch)
        sys.path[:] = paths
    return messages, site


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_reported_with_its_page(built, name):
    messages, _ = built
    assert any(message.startswith(f"{name}.md: ") and FAULTS[name][1] in message for message in messages), messages


@pytest.mark.parametrize("name", GOOD)
def test_no_fault_is_invented(built, name):
    messages, _ = built
    assert not [message for message in messages if message.startswith(f"{name}.md: ")]


def test_formulas_reach_tables_titles_and_display(built):
    page = (built[1] / "formulas/index.html").read_text(encoding="utf-8")
    assert page.count("<math") >= 3 and 'display="block"' in page and "<mtable" in page and "$5" in page.replace("&#36;", "$")


def test_two_pictures_share_no_name(built):
    page = (built[1] / "pictures/index.html").read_text(encoding="utf-8")
    assert 'id="picture-1-a"' in page and 'id="picture-2-a"' in page and "#picture-2 { & { color: red } }" in page


def test_code_stays_code(built):
    page = (built[1] / "code/index.html").read_text(encoding="utf-8")
    assert "$variable" in page and "<math" not in page and "a.b" in page
