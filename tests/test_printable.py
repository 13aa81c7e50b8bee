"""Names from files do not steer the terminal."""

import pytest

from sslmed_dist.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Röntgen 胸部.png", "Röntgen 胸部.png"),
        ("narrow\u00a0space", "narrow\u00a0space"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x1b[2Jgone\x07", r"\x1b[2Jgone\x07"),
        ("\x9b31mred", r"\x9b31mred"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("line\u2028break", r"line\u2028break"),
        ("no UTF-8: \udc80", r"no UTF-8: \udc80"),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
