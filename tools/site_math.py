"""Formulas of the site: `$…$` and `$$…$$` become MathML while the pages are built, so that no browser needs a script or a font for them.

latex2mathml passes over what it does not know; here that is an error, because a formula with a hole in it is worse than none.
"""

import re
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

__all__ = ["Formulas", "left_over", "mathml"]

NAMESPACE = "http://www.w3.org/1998/Math/MathML"
CHILDREN = {"mfrac": 2, "msub": 2, "msup": 2, "msubsup": 3, "mover": 2, "munder": 2, "munderover": 3, "mroot": 2}
LIMITS = {"max", "min", "sup", "inf", "lim", "argmax", "argmin"}  # in display, what stands under them goes below
OPERANDS = {"mi", "mn", "msub", "msup", "msubsup", "munder", "mfrac"}
CLOSING = {")", "]", "}", "|", "′"}
REWRITTEN = [  # names latex2mathml lacks, in terms of those it has
    (re.compile(r"\\(begin|end)\{aligned\}"), r"\\\1{split}"),
    (re.compile(r"\\arg(?![a-z])"), r"\\operatorname{arg}"),
    (re.compile(r"\\(argmax|argmin|softmax|TV|KL)(?![a-zA-Z])"), r"\\operatorname{\1}"),
]

FORMULA = re.compile(
    r"(?P<code>(?<!`)(`+)(?!`).+?(?<!`)\2(?!`))"  # inline code keeps its dollars
    r"|(?<!\\)\$\$(?P<display>.+?)(?<!\\)\$\$"
    r"|(?<![\\$])\$(?P<inline>(?=[^\s$])[^$]*?[^\s$\\])\$(?![\d$])",
    re.DOTALL,
)
CODE = re.compile(r"<(pre|code|math|script|style|svg|textarea)\b.*?</\1>", re.DOTALL)


class Formulas(Extension):
    """Runs after fenced code is set aside and before anything else, so bars in tables and underscores are safe in a formula."""

    def __init__(self, report):
        super().__init__()
        self.report = report

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(_Convert(md, self.report), "formulas", 24)  # fenced code is 25, raw HTML 20


class _Convert(Preprocessor):
    def __init__(self, md: Markdown, report):
        super().__init__(md)
        self.report = report

    def run(self, lines: list[str]) -> list[str]:
        return FORMULA.sub(self._one, "\n".join(lines)).replace(r"\$", "&#36;").split("\n")

    def _one(self, match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        latex = match["display"] or match["inline"]
        if "\n\n" in latex:
            self.report(f"a dollar sign opens a formula that runs over a paragraph's end: ${latex[:40]}…")
            return match[0]
        try:
            return self.md.htmlStash.store(mathml(latex, display=match["display"] is not None))
        except ValueError as error:
            self.report(str(error))
            return self.md.htmlStash.store(f'<code class="problem">{error}</code>')


def mathml(latex: str, display: bool = False) -> str:
    r"""MathML of a formula; ValueError where part of it would be lost.

    >>> mathml("x_1")
    '<math><mrow><msub><mi>x</mi><mn>1</mn></msub></mrow></math>'
    >>> mathml(r"\frac{1")
    Traceback (most recent call last):
    ValueError: unbalanced braces in $\frac{1$
    >>> mathml(r"\nosuch x")
    Traceback (most recent call last):
    ValueError: unknown command \nosuch in $\nosuch x$
    """
    bare = re.sub(r"\\.", "", latex)
    if bare.count("{") != bare.count("}"):
        raise ValueError(f"unbalanced braces in ${latex}$")
    source = " ".join(latex.split())
    for pattern, replacement in REWRITTEN:
        source = pattern.sub(replacement, source)
    try:
        root = ElementTree.fromstring(convert(source, display="block" if display else "inline"))
    except Exception as error:  # the converter raises its own classes, IndexError, and unparsable output on bad input
        raise ValueError(f"cannot convert ${latex}$: {type(error).__name__}: {error}") from error
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{NAMESPACE}}}")
        if element.text and "\\" in element.text:
            raise ValueError(f"unknown command {element.text.strip()} in ${latex}$")
        if len(element) != CHILDREN.get(element.tag, len(element)):
            raise ValueError(f"<{element.tag}> has {len(element)} parts, not {CHILDREN[element.tag]}, in ${latex}$")
    for element in list(root.iter()):
        _tidy(element, display)
    if not display:
        del root.attrib["display"]
    return ElementTree.tostring(root, encoding="unicode")


def _tidy(element: ElementTree.Element, display: bool) -> None:
    """What browsers show better: words of one piece, limits below, and alignment by a class (they ignore `columnalign`)."""
    if element.tag in ("msup", "msubsup") and set(element[-1].text or " ") <= set("′″‴"):
        _prime(element)
    parts = list(element)
    upright = [part.tag == "mi" and part.get("mathvariant") == "normal" for part in parts]
    if element.tag == "mrow" and len(parts) > 1 and all(upright):
        element[:] = [_word("".join(part.text or "" for part in parts))]
    if display and element.tag == "msub" and element[0].text in LIMITS:
        element.tag = "munder"
    if element.tag == "mo" and (element.text or "").isalpha() and len(element.text or "") > 1:
        element.tag, element.attrib = "mi", {}
    if element.tag == "mo" and element.text in {"|", "/"}:  # bars around a number, a slash in it: no operators
        element.attrib |= {"lspace": "0", "rspace": "0"}
    if element.tag == "mo" and element.text == "∞":
        element.tag = "mi"
    if element.tag == "mi" and element.text == "~":
        element.tag = "mo"
    if "columnalign" in element.attrib:
        element.set("class", element.attrib.pop("columnalign"))
    for before, part in zip([None, *parts], parts, strict=False):
        if part.tag == "mo" and part.text in ("−", "±") and (before is None or (before.tag == "mo" and before.text not in CLOSING)):
            part.attrib |= {"form": "prefix", "lspace": "0", "rspace": "0"}  # a sign, no operation
    for at in range(len(parts) - 1, 0, -1) if element.tag == "mrow" else ():
        if all(part.tag in OPERANDS for part in parts[at - 1 : at + 1]) and any(map(_function, parts[at - 1 : at + 1])):
            element.insert(at, ElementTree.Element("mspace", width="0.167em"))


def _prime(element: ElementTree.Element) -> None:
    """A prime beside its letter: fonts have it raised and small already, and browsers would raise and shrink it once more."""
    *base, prime = list(element)
    inner = ElementTree.Element("msub")
    inner[:] = base
    element.tag, element[:] = "mrow", [*(base if len(base) == 1 else [inner]), prime]
    prime.tag = "mo"
    prime.attrib |= {"lspace": "0", "rspace": "0"}


def _word(text: str) -> ElementTree.Element:
    word = ElementTree.Element("mi")  # of several letters: browsers set it upright
    word.text = text
    return word


def _function(element: ElementTree.Element) -> bool:
    """Whether this is a function's name, with what stands under it: a thin space sets it off from its neighbors."""
    name = element[0] if element.tag in ("msub", "munder", "msup") and len(element) else element
    return name.tag in ("mi", "mo") and len(name.text or "") > 1 and (name.text or "").isalpha()


def left_over(html: str) -> str | None:
    """The surroundings of a dollar sign that is still in a page's text: a formula that nobody recognized."""
    text = re.sub(r"<[^>]*>", "", CODE.sub("", html)).replace("&#36;", "")
    at = text.find("$")
    return " ".join(text[max(0, at - 30) : at + 50].split()) if at >= 0 else None
