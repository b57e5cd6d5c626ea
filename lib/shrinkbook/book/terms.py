"""The glossary's terms in the chapters: the first mention of each leads to its entry."""

import re
from collections.abc import Iterable

# Code, mathematics, links, roles, emphasis (titles of papers) and headings stay as they are.
KEPT = re.compile(
    r"(```.*?```|(?:\{[\w:]+\})?`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|!?\[[^\]]*\]\([^)]*\)|<?https?://\S+|^#[^\n]*$"
    r"|(?<!\*)\*[^*\n]+\*(?!\*))",
    re.S | re.M,
)
BLOCK = re.compile(r"^```\{glossary\}\n(.*?)^```", re.S | re.M)


def field_terms(glossary: str) -> set[str]:
    """Terms of the first glossary of a page, the field's own; alternatives of one entry each count."""
    block = BLOCK.search(glossary)
    return set(re.findall(r"^(\S.*)$", block[1], re.M)) if block else set()


def with_terms(text: str, terms: set[str]) -> str:
    """Markdown in which the first mention of each term is a link; those found are taken out of ``terms``."""
    parts = KEPT.split(text)
    return "".join(part if number % 2 else _linked(part, terms) for number, part in enumerate(parts))


def _linked(text: str, terms: set[str]) -> str:
    def link(found: re.Match[str]) -> str:
        term = next((one for one in terms if one.lower() == found[1].lower()), None)
        if term is None:
            return found[0]
        terms.remove(term)
        return f"{{term}}`{found[0]} <{term}>`"

    return _mention(terms).sub(link, text) if terms else text


def _mention(terms: Iterable[str]) -> re.Pattern[str]:
    """Any of the terms as a word of its own or in the plural, longer ones first."""
    names = "|".join(map(re.escape, sorted(terms, key=len, reverse=True)))
    return re.compile(rf"(?<![\w-])({names})s?(?![\w-])", re.I)
