"""Nested values as lines that a person reads."""

from genai_ray.progress import outline


def test_a_mapping_of_plain_values_is_one_line():
    text = outline({"samples": 1200, "classes": {"cat": 700, "dog": 500}, "range": [1, 2000]})
    assert text.splitlines() == ["samples        1,200", "classes        cat 700, dog 500", "range          1 .. 2,000"]


def test_deeper_mappings_have_a_line_for_each_entry():
    text = outline({"columns": {"age": {"type": "numerical", "missing": 2}, "city": {"type": "categorical"}}})
    assert [line.split() for line in text.splitlines()] == [
        ["columns"],
        ["age", "type", "numerical,", "missing", "2"],
        ["city", "type", "categorical"],
    ]
    assert text.splitlines()[1].startswith("  age")


def test_what_lies_deeper_stays_in_its_line():
    column = {"type": "categorical", "decimals": None, "most frequent": {"a": 2, "b\nc": 1}}
    assert outline({"columns": {"k": column}}).splitlines()[1].split(maxsplit=1)[1] == (
        "type categorical, most frequent (a 2, b c 1)"
    )


def test_of_many_entries_some_are_shown_and_the_rest_is_counted():
    classes = {f"c{i}": i for i in range(1000)}
    columns = {f"c{i}": {"type": "numerical"} for i in range(300)}
    assert outline({"classes": classes}, most=2) == "classes        c0 0, c1 1, and 998 more"
    lines = outline({"columns": columns}, most=3).splitlines()
    assert lines[-1] == "  and 297 more"
    assert len(lines) == 5
    assert len(outline({"columns": columns}).splitlines()) == 301
