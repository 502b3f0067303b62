"""Where the sentences of a text begin and end: a few rules, no model, time linear in the text.

Made for English news and prose; reasonable for other languages that end a sentence with a mark.
What ends a sentence:

- `.`, `!`, `?` and ellipses, with the quotes and brackets that close behind them, before a space
  (or the end) and something that is not lower case;
- the marks of other scripts (。！？ । ؟ ۔ ። and so on), with or without a space behind;
- a blank line, a line that begins with a bullet or a list number, and the end of a short line whose
  successor does not go on in lower case (a headline; longer lines are taken for wrapped text).

What does not: the stop of a decimal, an address or a name (no space follows), of a title ("Mr.")
or an initial ("J. K. Rowling"), of a list number, and that of an abbreviation that may end a
sentence ("Inc.", "a.m.", "U.S.") unless a word follows that usually opens one.
"""

# The marks of many scripts are what this file is about.
# ruff: noqa: RUF001, RUF002

from __future__ import annotations

import re
from collections.abc import Iterator

Span = tuple[int, int]
"""Characters from the first to before the second."""

LONGEST = 1000
"""Characters: a sentence with more is cut at spaces. No model reads so many; tables have them."""

# The longest line whose end may be that of a headline. Text is wrapped at 60 and more.
_SHORT_LINE = 50

_OPENING = "\"'“‘„«‹([{¿¡「『（【《*_"
_CLOSING = "\"'”’»›)\\]}」』）】》*_"
# These end a sentence whatever follows: no language uses them inside one.
_WIDE = "。！？｡．؟۔।॥።។။։"
_LINE_ENDS = "\n\r\v\f\x85\u2028\u2029"

# A place where a sentence may end. All of it is optional behind the first character, so nothing is
# ever tried twice.
_PLACE = re.compile(
    rf"(?P<stop>[.!?…{_WIDE}]+)(?P<closing>[{_CLOSING}]*)(?P<space>\s*)|[{_LINE_ENDS}]\s*"
)
_LINE_END = re.compile(f"\r\n|[{_LINE_ENDS}]")
_BULLET = re.compile(r"(?:[•‣◦▪●·*–—-]|\d{1,3}[.)]|[a-zA-Z][)])\s")
_LIST_NUMBER = re.compile(r"\s*[(\[]?(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{1,4})")
_OPENED = re.compile(rf"[{re.escape(_OPENING)}]*")
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘/—–-]*\Z")
_FIRST_WORD = re.compile(r"[^\W\d_]+")

# Longer than any abbreviation.
_LOOK_BACK = 24


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Never at the end of a sentence.
_TITLES = _words("""
    mr mrs ms messrs mme mlle dr drs prof st ste sen rep gov gen col lt maj capt cmdr cpl sgt adm
    rev fr hon pres supt insp vs v cf viz e.g eg i.e ie fig figs eq sec ch vol pp ed eds approx ca
    al mt ft
""")
# An abbreviation before a number only: "No. 10", "p. 7", "Jan. 5".
_BEFORE_NUMBERS = _words("no nos nr p art jan feb mar apr jun jul aug sep sept oct nov dec")
_MAY_END = _words("etc inc ltd co corp bros jr sr dept est ave blvd rd univ assn plc")
_OPENERS = _words("""
    a after all also although an and another as at because before but by during each even every few
    for he her here his how however i if in instead it its last many meanwhile more most my no nor
    not now on once one only or our over several she since so some such that the their then there
    these they this those though to under until we what when where which while who why with
    yesterday yet you your
""")


def sentence_spans(text: str) -> list[Span]:
    """The sentences of a text, in order, without the space around them.

    Every character that is not whitespace is in exactly one of them.
    """
    return [piece for start, end in _sentences(text) for piece in _pieces(text, start, end)]


def _sentences(text: str) -> Iterator[Span]:
    start = line = 0
    for place in _PLACE.finditer(text):
        end = place.start() if place["stop"] is None else place.end("closing")
        lines = _LINE_END.findall(text, end, place.end())
        if (place["stop"] is not None and _ends(text, place, start)) or (
            lines and _new_block(text, place.end(), len(lines), end - line)
        ):
            yield from _stripped(text, start, end)
            start = place.end()
        if lines:
            line = place.end()
    yield from _stripped(text, start, len(text))


def _new_block(text: str, after: int, line_ends: int, line_length: int) -> bool:
    """Whether a line end begins something new, whatever the sentence before looks like."""
    if line_ends > 1 or _BULLET.match(text, after):
        return True
    return line_length <= _SHORT_LINE and not text[after : after + 1].islower()


def _ends(text: str, place: re.Match[str], start: int) -> bool:
    """Whether the stop at a place ends the sentence that began at `start`."""
    stop, after = place["stop"], place.end()
    follows = text[after : after + 1]
    if not stop.isascii() and any(mark in _WIDE for mark in stop):
        return not (stop == "．" and follows.isdigit())
    if not follows:
        return True
    if not place["space"]:
        return False
    opened = _OPENED.match(text, after)
    word = opened.end() if opened else after
    if text[word : word + 1].islower() or follows in ",;:)":
        return False
    return stop != "." or place["closing"] != "" or not _abbreviated(text, place, start, word)


def _abbreviated(text: str, place: re.Match[str], start: int, next_word: int) -> bool:
    """Whether the lone stop at a place belongs to the word before it and ends nothing."""
    dot = place.start()
    if dot - start <= _LOOK_BACK and _LIST_NUMBER.fullmatch(text, start, dot):
        return True
    found = _LAST_WORD.search(text, max(start, dot - _LOOK_BACK), dot)
    last = found[0] if found else ""
    lower = last.lower()
    if lower in _TITLES:
        return True
    if lower in _BEFORE_NUMBERS:
        return text[next_word : next_word + 1].isdigit()
    # "J", "U.S", "a.m": letters with stops between them.
    letters = last.split(".")
    if not (lower in _MAY_END or all(len(part) == 1 and part.isalpha() for part in letters)):
        return False
    opener = _FIRST_WORD.match(text, next_word)
    return opener is None or opener[0].lower() not in _OPENERS


def _stripped(text: str, start: int, end: int) -> Iterator[Span]:
    """A span without the space at its ends; nothing if it is all space."""
    sentence = text[start:end]
    left = len(sentence) - len(sentence.lstrip())
    right = len(sentence.rstrip())
    if right:
        yield start + left, start + right


def _pieces(text: str, start: int, end: int) -> Iterator[Span]:
    """A sentence in pieces of up to LONGEST characters, cut at spaces where there are any."""
    while end - start > LONGEST:
        space = _last_space(text, start, start + LONGEST + 1)
        cut = start + LONGEST if space is None else space
        yield from _stripped(text, start, cut)
        start = cut
        while text[start].isspace():  # not all the rest is space: the end is not
            start += 1
    yield from _stripped(text, start, end)


def _last_space(text: str, start: int, end: int) -> int | None:
    return next((at for at in range(end - 1, start, -1) if text[at].isspace()), None)
