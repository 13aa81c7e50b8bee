"""YAML means what a person reads; what could mean two things, or stand for gigabytes, is refused with its line."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from sslmed_dist import plain_yaml


@pytest.mark.parametrize(
    "text, value",
    [
        ("010", 10),
        ("-007", -7),
        ("0x1F", 31),
        ("0o17", 15),
        ("1.5e2", 150.0),
        ("1e-3", 0.001),
        ("5.", 5.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2026-11-26", "2026-11-26"),
        *((word, word) for word in ("no", "No", "yes", "on", "OFF", "y", "=", ".", "nan", "inf", "0x", "1e", "e3")),
        *((word, True) for word in ("true", "True", "TRUE")),
        *((word, None) for word in ("", "~", "null", "NULL")),
        ("'010'", "010"),
        ("[1, '1', {a: no}]", [1, "1", {"a": "no"}]),
    ],
)
def test_a_value_is_what_a_person_reads(text: str, value: Any) -> None:
    read = plain_yaml.parse(f"key: {text}")["key"]
    assert read == value and type(read) is type(value)


def test_what_is_no_number_is_read_as_such() -> None:
    assert math.isnan(plain_yaml.parse("a: .NaN")["a"])


@pytest.mark.parametrize(
    "text, line",
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' comes twice, in lines 1 and 3"),
        ("a:\n  b: 1\n  c: 1\n  b: 2", "line 4, column 3: the key 'b' comes twice, in lines 2 and 4"),
        ("x: {b: 1,\n b: 2}", "line 2, column 2: the key 'b' comes twice, in lines 1 and 2"),
        ("1: a\n'1': b", "line 2, column 1: the key '1' comes twice, in lines 1 and 2"),
        ("a: &x [1]", "line 1, column 4: anchor 'x': write the value out as plain data"),
        ("a: *x", "line 1, column 4: anchor 'x': write the value out as plain data"),
        ("<<: {a: 1}", "line 1, column 1: the key '<<': expected a name"),
        ("? [a]\n: 1", "line 1, column 3: the key ['a']: expected a name"),
        ("null: 1", "line 1, column 1: the key None: expected a name"),
        ('"\\e[2J": 1', "line 1, column 1: the key '\\x1b[2J': expected a name"),
        ("1.5: 1", "line 1, column 1: the key 1.5: expected a name"),
        ("a: !!str 1", "line 1, column 4: tag 'tag:yaml.org,2002:str': write the value out as plain data"),
        ("a: !!python/object:os.system {}", "line 1, column 4: tag 'tag:yaml.org,2002:python/object:os.system': "),
        ("a: " + "9" * 10**6, "line 1, column 4: a whole number of 1000000 characters, at most 20 digits"),
        ("[" * 10**5, "line 1, column 51: more than 50 levels"),
        ("a: 1\n---\nb: 2", "line 2, column 1: expected a single document in the stream, but found another document"),
        ("a: [1", "line 1, column 6: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'"),
        ("a: \x1b[0m", "unacceptable character #x001b: special characters are not allowed"),
        ("#" * (1 << 21), "more than 1,048,576 characters"),
    ],
)
def test_refused_with_its_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(ValueError) as caught:
        plain_yaml.parse(text)
    assert str(caught.value).startswith(line) and str(caught.value).isprintable()
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError) as of_file:
        plain_yaml.read(tmp_path / "a.yaml")
    shown = str(caught.value).replace("characters", "bytes") if text.startswith("#") else str(caught.value)
    assert str(of_file.value) == f"{tmp_path / 'a.yaml'}: not valid YAML: {shown}"


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ValueError, match="a.yaml: not valid YAML: 'utf-8' codec can't decode byte 0xff"):
        plain_yaml.read(tmp_path / "a.yaml")


def test_what_is_written_reads_back_by_both_rules() -> None:
    """Text that looks like something else, and random text of the characters that YAML is sensitive to."""
    words = ["no", "y", "N", "on", "1:30", "010", "08", "0o7", "1e3", "1.5e2", "5.", ".inf", ".nan", "~", "null", ""]
    words += [
        "2026-11-26",
        "1_000",
        "0b1",
        "=",
        "<<",
        "- a",
        "a: b",
        "#",
        "a\nb",
        "\x85",
        "\u2028x",
        "\ufeff",
        "\udc80",
    ]
    draw = random.Random(0)
    letters = "yNo01exX._-+:~ #'\"\\\n\t\r\x00\x1b\x85\u2028\ufeffä\ud800\U0001f600[]{},&*!|>%@`=<?"
    words += ["".join(draw.choices(letters, k=draw.randint(1, 8))) for _ in range(2000)]
    numbers = [0, -7, 10**19, 1e-5, 1e16, 1.5, -0.0, 5e-324, math.inf, True, None]
    shared = ["a"]
    tree = {"words": words, "numbers": numbers, "twice": [shared, shared], "by word": {word: 1 for word in words[:16]}}
    text = plain_yaml.write(tree)
    assert plain_yaml.parse(text) == tree == yaml.safe_load(text)
