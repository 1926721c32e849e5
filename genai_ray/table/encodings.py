"""In which encoding bytes of text are written: by a byte order mark, as UTF-8, or by the letters that they would be.

A legacy encoding is believed if nearly all of its letters are common ones where the others give rare signs. Latin-1 is
never guessed: it reads any bytes.
"""

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: Bytes of lines that are not ASCII, which are looked at.
_ENOUGH = 1 << 16
_LINES = 200  # in which a word is looked for by which encodings differ
#: Share of the letters beyond ASCII that must be common in an encoding.
_COMMON = 0.8
_PLAINLY = 0.1  # by how much more of them another encoding must have to come before GB18030
_MANY = 12  # letters, for Korean to be told from Chinese, whose codes include those of all its syllables
#: The most frequent syllables of Korean.
_SYLLABLES = frozenset(
    "이다는을의에가지고하기로사리자어도인서대나시아그라한수정일해스장전보은과안상주게원구부여있제들마소김으"
    "국와만선유세오진우신화미성비경적조공동위할면영했연를모무거호울산강남북명호번수날짜박최름씨준민철희현지윤임"
)
_WESTERN = frozenset(
    "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôõöøùúûüÿŒœŠšŽžŸ€£§°²³µ·«»“”„\u201a\u2018\u2019\u2013—…™®©±½¼¾ºª¿¡\xd7÷\xa0"
)
#: Letters that come together in Central European text when it is read as cp1252, and in no Western language.
_EASTERN = re.compile(r"[^\W\d_][³¹²¼¾¿][a-zà-ÿ]")
#: What no Western word has: a capital or a sign after a small letter, as in MŸller, and letters that stand for others
#: in Gdañsk, £ódz, Œroda and Dvoøák.
_ODD = re.compile(
    r"[a-zß-öø-ÿœšž](?:[À-ÖØ-ÞŒŠŽŸ]|[^\w\s\x00-\x7f\xad\xb4\xb7\u2019](?=[a-zß-öø-ÿ]))"
    r"|£(?=[a-zß-öø-ÿ])|ñ(?![aeiouyáéíóúüâàèòA-ZÀ-Þ])|[œŒ](?![acdeinostuéèêACDEINOSTU])"
    r"|ø\w*[áýíúšžìèùò]|[áýíúšžìèùò]\w*ø"
)
_RUN = re.compile(r"[À-ÖØ-öø-ÿŒœŠšŽžŸ]{3,}")


@dataclass(frozen=True)
class Encoding:
    """A codec of Python, and why it is taken; codec None: in doubt, between `options` (codec -> a word read by it)."""

    codec: str | None
    why: str
    options: dict[str, str]


def detect(content: bytes) -> Encoding:
    """The encoding of a whole file."""
    for mark, codec in _MARKS:
        if content.startswith(mark):
            return Encoding(codec, "a byte order mark", {})
    if wide := _wide(content):
        return Encoding(wide, "every other byte of its letters is zero", {})
    if content.isascii():
        return Encoding("utf-8", "all of it is ASCII", {})
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return _legacy(content, error)
    return Encoding("utf-8", "all bytes are valid UTF-8", {})


def _wide(content: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark: text in one byte a letter holds no zero bytes."""
    head = content[: 1 << 16]
    zeros = np.flatnonzero(np.frombuffer(head, np.uint8) == 0) % 2
    # One of two bytes is zero in an end of line; few zeros at odd and even places are damage.
    if not len(zeros) or (0.1 < zeros.mean() < 0.9 and b"\0\0" not in head):
        return None
    for codec in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        try:
            string = codecs.getincrementaldecoder(codec)().decode(head)  # which may end within a letter
        except UnicodeDecodeError:
            continue
        # In the other byte order a line feed is U+0A00 and a comma is U+2C00.
        if "\0" not in string and re.search(r"[\n\r]", string):
            return codec
    return None


def _legacy(content: bytes, error: UnicodeDecodeError) -> Encoding:
    sample = _lines_beyond_ascii(content)
    damaged = sample.decode("utf-8", "replace")
    if sum(c > "\x7f" for c in damaged.replace("\ufffd", "")) > damaged.count("\ufffd"):
        return Encoding(None, f"is UTF-8 but for a few bytes ({error.reason})", {})
    readable = {codec: string for codec in _TESTS if (string := _decoded(content, sample, codec)) is not None}
    shares = {codec: _TESTS[codec](string) for codec, string in readable.items()}
    options = {codec: _word(string) for codec, string in readable.items()}
    best = max((c for c in _ASIAN if c in shares), key=lambda c: (shares[c], c == "gb18030"), default=None)
    if best is not None and shares[best] >= _COMMON:
        chinese = shares.get("gb18030", 0.0)
        if chinese >= _COMMON and shares[best] - chinese < _PLAINLY:
            best = "gb18030"
        korean = shares.get("cp949", 0.0) > 0.97
        if best in ("gb18030", "cp949") and korean and chinese >= _COMMON:
            usual = _share(_SYLLABLES.__contains__)(readable["cp949"])
            many = sum(c > "\x7f" for c in readable["cp949"]) >= _MANY
            if usual > 0.6 and not many:
                return Encoding(None, error.reason, {c: options[c] for c in ("gb18030", "cp949")})
            best = "cp949" if usual > 0.4 and many else "gb18030"
        return Encoding(best, f"not UTF-8, and common letters in {best}, as in {options[best]!r}", {})
    if shares.get("cp1252", 0.0) > 0:
        return Encoding("cp1252", f"not UTF-8, and Western letters in cp1252, as in {options['cp1252']!r}", {})
    doubtful = [c for c in (*_ASIAN, "cp1252", *_SINGLE) if c in options]
    likely = [c for c in doubtful if _readable(readable[c])] or doubtful
    return Encoding(None, error.reason, _words({c: readable[c] for c in likely}))


def _words(readings: dict[str, str]) -> dict[str, str]:
    """By codec a word of the line in which the readings differ most."""
    lines = zip(*(string.split("\n")[:_LINES] for string in readings.values()), strict=False)
    words = [tuple(map(_word, line)) for line in lines]
    return dict(zip(readings, max(words, key=lambda w: len(set(w))), strict=True)) if words else {}


def _readable(string: str) -> bool:
    """Whether letters stand among letters of their script, without signs or capitals in the middle of a word."""
    for before, letter, after in zip(string, string[1:], string[2:], strict=False):
        if letter <= "\x7f":
            continue
        if "\x80" <= letter < "\xa0" or "\u2500" <= letter <= "\u259f":
            return False
        small = before.islower() and after.islower()
        latin = before.isascii() and before.isalpha()
        if small and not letter.islower() and letter not in "\u2019\xb7\xb4":
            return False
        if (before.islower() and letter.isupper()) or (latin and letter.isalpha() and letter > "\u036f"):
            return False
    return True


def _lines_beyond_ascii(content: bytes) -> bytes:
    lines, size = [], 0
    for match in re.finditer(rb"[^\n]*[\x80-\xff][^\n]*\n?", content):
        lines.append(match[0])
        size += len(match[0])
        if size > _ENOUGH:
            break
    return b"".join(lines)


def _decoded(content: bytes, sample: bytes, codec: str) -> str | None:
    """The sample, if the whole content can be read."""
    try:
        content.decode(codec)
        return sample.decode(codec)
    except UnicodeDecodeError:
        return None


def _word(string: str) -> str:
    """The first word with a letter beyond ASCII."""
    match = re.search(r"\w*[^\W\x00-\x7f]\w*", string)
    return match[0][:12] if match else next((c for c in string if c > "\x7f"), "")


def _share(common: Callable[[str], bool]) -> Callable[[str], float]:
    def share(string: str) -> float:
        letters = [c for c in string if c > "\x7f"]
        return sum(map(common, letters)) / max(1, len(letters))

    return share


def _in_rows(codec: str, *rows: tuple[int, int]) -> Callable[[str], bool]:
    """Whether a letter is in some rows of a double-byte set: its common letters and its punctuation."""

    def common(letter: str) -> bool:
        code = letter.encode(codec, "ignore")
        return len(code) == 2 and any(low <= code[0] <= high for low, high in rows)

    return common


def _chinese(letter: str) -> bool:
    # Western letters, too: other text does not give the long codes of them by chance.
    return letter in _WESTERN or _in_rows("gb2312", (0xB0, 0xD7), (0xA1, 0xA3))(letter)


def _kana(letter: str) -> bool:
    return "\u3040" <= letter <= "\u30ff"


def _japanese(codec: str, *rows: tuple[int, int]) -> Callable[[str], float]:
    """Japanese has kana; the same bytes read as Chinese text without them are no Japanese."""
    common = _in_rows(codec, *rows)

    def share(string: str) -> float:
        return _share(lambda c: _kana(c) or common(c))(string) if _share(_kana)(string) > 0.1 else 0.0

    return share


def _western(string: str) -> float:
    """1 for text whose letters beyond ASCII stand singly among others, as in Western languages; else 0."""
    letters = [c for c in string if c > "\x7f"]
    odd = (
        _EASTERN.search(string)
        or _ODD.search(string)
        or any(c not in _WESTERN for c in letters)
        or _mixed(set(letters))
    )
    alone = re.search(r"(?<![\w])[À-ÖØ-öø-ÿ](?![\w])", string) and not re.search(r"[A-Za-z][À-ÿ]|[À-ÿ][A-Za-z]", string)
    runs = sum(len(run) for run in _RUN.findall(string))
    return 0.0 if odd or alone or runs > 0.05 * len(letters) else 1.0


def _mixed(letters: set[str]) -> bool:
    """Letters of no single Western language: Czech or Hungarian, read as cp1252."""
    return bool("ø" in letters and letters & set("ìèùò")) or bool("õ" in letters and letters & set("öüû"))


#: Encodings that are only proposed: one byte a letter, so that they read nearly anything.
_SINGLE = ("cp1251", "koi8_r", "cp1250", "iso8859_2", "cp1253", "cp1254", "mac_roman", "cp850")
_ASIAN = ("gb18030", "big5", "cp932", "euc_jp", "cp949")
#: By codec, the share of letters that are common in it; for single bytes, whether they read as a language.
_TESTS: dict[str, Callable[[str], float]] = {
    "gb18030": _share(_chinese),
    "big5": _share(_in_rows("big5", (0xA4, 0xC6), (0xA1, 0xA3))),
    "cp932": _japanese("cp932", (0x81, 0x83), (0x88, 0x97)),
    "euc_jp": _japanese("euc_jp", (0xA1, 0xA5), (0xB0, 0xCF)),
    "cp949": _share(_in_rows("cp949", (0xB0, 0xC8), (0xA1, 0xA3))),
    "cp1252": _western,
    **dict.fromkeys(_SINGLE, lambda string: 0.0),
}
