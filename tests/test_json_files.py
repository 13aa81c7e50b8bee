"""What is wrong with a JSON file is said by file, line and field."""

from pathlib import Path
from typing import Any

import pytest

from sslmed_dist.json_files import Lines, read_object

REQUIRED: dict[str, Any] = {"name": str, "value": float}
OPTIONAL: dict[str, Any] = {"step": int | None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON: "),
        ("[1]", "expected an object, got list"),
        ("[" * 100_000, "not valid JSON: "),
        ("{}", "has no name, value"),
        ('{"name": "a", "value": null}', "value: expected float, got None"),
        ('{"name": "a", "value": true}', "value: expected float, got True"),
        ('{"name": "a", "value": NaN}', "not valid JSON: NaN is not a number of JSON"),
        ('{"name": ["a"], "value": 1}', "name: expected text, got ['a']"),
        ('{"name": "a", "value": 1, "step": "1"}', "step: expected int or null, got '1'"),
        ('{"name": "a", "value": 1, "step": "' + "x" * 99 + '"}', "step: expected int or null, got 'xxx"),
        (b'{"name": "\xff"}', "not valid JSON: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_an_object_is_checked_field_by_field(tmp_path: Path, text: str | bytes, message: str) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as caught:
        read_object(file, REQUIRED, OPTIONAL)
    assert str(caught.value).startswith(f"{file}: {message}") and len(str(caught.value)) < len(str(file)) + 200


def test_other_fields_are_left_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text('{"name": "a", "value": 1, "step": null, "more": [2]}')
    assert read_object(file, REQUIRED, OPTIONAL) == {"name": "a", "value": 1, "step": None, "more": [2]}


WHOLE = '{"name": "a", "value": 1}\n'


@pytest.mark.parametrize("torn", ['{"name": "a", "val', "\0\0\0", '{"name": "a", "val\n', '{"name": "\udc80'])
def test_a_torn_last_line_is_left_out_and_known(tmp_path: Path, torn: str) -> None:
    file = tmp_path / "file.jsonl"
    row = {"name": "a", "value": 1}
    for text, expected, is_torn in (
        (2 * WHOLE, [(1, row), (2, row)], False),
        (2 * WHOLE + "\n \n", [(1, row), (2, row)], False),
        (2 * WHOLE + torn, [(1, row), (2, row)], True),
        (torn, [], True),
        ("", [], False),
    ):
        file.write_bytes(text.encode(errors="surrogateescape"))
        lines = Lines(file, REQUIRED)
        for _ in range(2):
            assert list(lines) == expected and lines.torn == is_torn


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"name": "a", "val', "2: not valid JSON: "),
        ("", "2: not valid JSON: "),
        ("3", "2: expected an object, got int"),
        ('{"name": "a"}', "2: has no value"),
        ('{"name": "a", "value": 1, "step": 1.5}', "2: step: expected int or null, got 1.5"),
    ],
)
def test_any_other_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "file.jsonl"
    file.write_text(WHOLE + line + "\n" + WHOLE)
    with pytest.raises(ValueError) as caught:
        list(Lines(file, REQUIRED, OPTIONAL))
    assert str(caught.value).startswith(f"{file}:{message}")


def test_numbers_that_are_no_floats_do_not_overflow(tmp_path: Path) -> None:
    file = tmp_path / "file.jsonl"
    file.write_text('{"name": "a", "value": 1' + "0" * 400 + '}\n{"name": "a", "value": NaN}\n')
    values = [row["value"] for _, row in Lines(file, REQUIRED)]
    assert values[0] == float("inf") and values[1] != values[1]
