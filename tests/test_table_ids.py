"""Ids are of their pattern, no two alike, and a function of the row's number and the seed."""

import re
from re import _parser  # pyright: ignore[reportAttributeAccessIssue]

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_ray.errors import UserError
from genai_ray.table import ids


def letters_of(regex: str) -> tuple[str, ...]:
    pattern = ids.parse_pattern(regex, "field")
    assert isinstance(pattern, ids.Pattern)
    return pattern.letters


def rows(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int64)


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        (r"INV-[0-9]{6}", 10**6),
        (r"\d{3}", 1000),
        (r"^[A-Z]{2}\.[a-c1]$", 26 * 26 * 4),
        (r"[\-\]x]\{", 3),
        (r"\w", 63),
        (r"[A-Fa-f\d]{2}", 22 * 22),
        ("Größe[0-9]", 10),
        (r"[\t ]\x41", 2),
        ("a|b", 2),
    ],
)
def test_patterns_mean_what_they_mean_to_re(pattern: str, size: int):
    parsed = ids.parse_pattern(pattern, "field")
    assert parsed.size == size
    made = parsed.ids(rows(min(size, 500)), 1, 0).tolist()
    assert len(set(made)) == len(made)
    assert all(re.fullmatch(pattern, text) for text in made)


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "a+",
        "a*",
        "(a|b)",
        "[^a]",
        "[0-9]{2,3}",
        "a?",
        "[z-a]",
        r"\s",
        "[a",
        "a{2}+",
        r"a\b",
        "(?i)a",
        ".",
        "AB\\",
        r"[!-\d]",
        r"[\d-z]",
        r"[a\x]",
        "[A-Z]<1..9",
        "K<9..1>",
        "K<1..9/0>",
    ],
)
def test_other_regular_expressions_are_refused(pattern: str):
    with pytest.raises(UserError, match="field"):
        ids.parse_pattern(pattern, "field")


def test_the_trees_of_the_private_parser_are_as_they_were():
    """`re._parser` may change with any version of Python; this says what of it is relied on."""
    tree = _parser.parse(r"^a[b-d\d]{2}(x)[^y]$")
    assert str(list(tree)) == (
        "[(AT, AT_BEGINNING), (LITERAL, 97), "
        "(MAX_REPEAT, (2, 2, [(IN, [(RANGE, (98, 100)), (CATEGORY, CATEGORY_DIGIT)])])), "
        "(SUBPATTERN, (1, 0, 0, [(LITERAL, 120)])), (NOT_LITERAL, 121), (AT, AT_END)]"
    )
    assert tree.state.flags == re.UNICODE
    assert _parser.parse("(?i)a").state.flags & re.IGNORECASE


def test_a_text_fits_its_pattern_and_a_wider_one():
    parsed = ids.parse_pattern(r"[A-Z]{2}\-[0-9]{3}[x\]^-]", "field")
    for text in ("AB-123x", "A-1]", "AB-12^", "A-123-"):
        assert parsed.fits(text)
    for text in ("AB-1234x", "-123x", "AB-x", "AB123x", "ab-123x", "AB-123", "AB-123x\n", ""):
        assert not parsed.fits(text)


@pytest.mark.parametrize(
    ("pattern", "least", "wider"),
    [
        ("[1-9][0-9]{2}", 901, "[1-9][0-9]{3}"),
        (r"^K\d\.[ab]{3}$", 1000, r"K[0-9]\.[ab]{7}"),
        (r"[\]^-]x", 10, None),
        ("fixed", 100, "fixed[0-9][0-9]"),
    ],
)
def test_a_wider_pattern_has_ids_enough(pattern: str, least: int, wider: str | None):
    parsed = ids.parse_pattern(pattern, "field")
    again = ids.parse_pattern(parsed.wider(least), "field")
    assert again.size >= least
    assert wider in (None, again.regex)
    assert all(again.fits(t) for t in parsed.ids(rows(min(parsed.size, 50)), 0, 0).tolist()) == (pattern != "fixed")


@given(seed=st.integers(0, 2**63 - 1), pattern=st.sampled_from(["[0-9]{3}", "[A-C]{6}", "x[ab]{9}"]))
def test_all_ids_of_a_pattern_are_used_once(seed: int, pattern: str):
    parsed = ids.parse_pattern(pattern, "field")
    assert len(np.unique(parsed.ids(rows(parsed.size), seed, 0))) == parsed.size


def test_ids_depend_on_row_seed_and_column_alone():
    parsed = ids.parse_pattern("[0-9]{8}", "field")
    whole = parsed.ids(rows(100), 7, 0)
    assert parsed.ids(rows(100)[40:60], 7, 0).tolist() == whole[40:60].tolist()
    assert parsed.ids(rows(100), 8, 0).tolist() != whole.tolist()
    assert parsed.ids(rows(100), 7, 1).tolist() != whole.tolist()


def test_a_space_beyond_64_bits_is_filled_evenly():
    uuid = ids.parse_pattern("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", "f")
    made = uuid.ids(rows(4096), 0, 0)
    assert len(set(made.tolist())) == 4096
    letters = made.view(np.uint32).reshape(4096, -1)
    # The first place varies as much as the last: 16 letters, each about 256 times.
    for place in (0, 35):
        assert np.unique(letters[:, place], return_counts=True)[1].min() > 190


@given(st.sampled_from(["[A-Z]{2}[0-9]{5}", "K-[0-9]{4}", "[0-9a-f]{12}", "x[0-9]{2}_[A-Z0-9]{4}"]))
def test_a_pattern_is_found_again_in_its_ids(pattern: str):
    texts = ids.parse_pattern(pattern, "field").ids(rows(800 if "{2}_" in pattern else 2000), 3, 0)
    found = ids.infer_pattern(sorted(set(texts.tolist())))
    assert found is not None
    assert letters_of(found) == letters_of(pattern)


@pytest.mark.parametrize(
    ("texts", "pattern"),
    [
        ([f"user_{i}" for i in range(1, 1200)], "user_<1..1199>"),
        ([f"K{i:05}" for i in range(1, 901)], "K<00001..00900>"),
        ([f"{i}/A" for i in range(100, 9000, 100)], None),
        ([str(i) for i in range(100, 9001, 100)], "<100..9000/100>"),
    ],
)
def test_numbers_are_counted_on_and_no_wider_than_they_are(texts: list[str], pattern: str | None):
    found = ids.infer_pattern(texts)
    assert found == pattern
    if found is None:
        return
    parsed = ids.parse_pattern(found, "field")
    assert sorted(parsed.ids(rows(len(texts)), 3, 1).tolist()) == sorted(texts)
    assert all(parsed.fits(t) for t in texts)
    # More rows count on from the last, and each row's id stays what it was.
    more = parsed.ids(rows(len(texts) + 50), 3, 1).tolist()
    assert more[: len(texts)] == parsed.ids(rows(len(texts)), 3, 1).tolist()
    assert len(set(more)) == len(more)
    wider = ids.parse_pattern(parsed.wider(5000), "field")
    assert wider.size >= 5000
    assert all(wider.fits(t) for t in texts)


def test_ids_of_numbers_are_no_wider_than_they_are():
    generator = np.random.Generator(np.random.Philox(4))
    long = [str(1_500_000_000_000_000_000 + int(i)) for i in generator.choice(10**6, 300, replace=False)]
    assert ids.infer_whole(long) == "1500000000000[0-9]{6}"
    assert ids.infer_whole([str(i * i + 10) for i in range(60)]) == "[1-9][0-9]{3}"


def test_the_digits_of_a_uuid_that_say_its_version_are_kept():
    pattern = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    texts = ids.parse_pattern(pattern, "f").ids(rows(2000), 3, 0).tolist()
    found = ids.infer_pattern(texts)
    assert found is not None
    assert letters_of(found) == letters_of(pattern)


@pytest.mark.parametrize(
    ("check", "known", "digits"),
    [("luhn", "79927398713", 15), ("ean", "4006381333931", 12), ("isbn10", "080442957X", 9)],
)
def test_check_digits_are_found_and_kept(check: str, known: str, digits: int):
    assert ids.check_digit(known[:-1], check) == known[-1]
    parsed = ids.parse_pattern(f"[0-9]{{{digits}}}<{check}>", "field")
    texts = parsed.ids(rows(1000), 3, 0).tolist()
    assert all(t[-1] == ids.check_digit(t[:-1], check) for t in texts)
    assert len(set(texts)) == 1000
    assert ids.infer_pattern(texts) == parsed.regex
    assert not parsed.fits(texts[0][:-1] + str((int(texts[0][-1].replace("X", "0")) + 1) % 10))


@pytest.mark.parametrize("texts", [["Anna", "Otto"], ["Anna", "Berta"], ["", "a1"], ["a1", "b22"]])
def test_names_have_no_pattern(texts: list[str]):
    assert ids.infer_pattern(texts) is None
