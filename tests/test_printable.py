"""Names from files do not steer the terminal."""

import pytest

from sslmed_dist.cli_answers import show
from sslmed_dist.printable import as_html, as_markdown, note, plural, printable, said_lines, say, without_folders


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


def test_what_is_said_is_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    say("sent\x1b[2J\nsslmed: done")
    note("data: a\rb")
    assert capsys.readouterr() == ("", "sent\\x1b[2J\\nsslmed: done\nnote: data: a\\rb\n")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/srv/st-elsewhere/scans.npz", "…/scans.npz"),
        ("~/st-elsewhere/scans.npz", "…/scans.npz"),
        ("../st-elsewhere/scans/", "…/scans"),
        (r"C:\st-elsewhere\scans.npz", "…/scans.npz"),
        ("file:///st-elsewhere/scans.npz", "…/scans.npz"),
        ("/home/elsewhere", "…"),
        ("~elsewhere", "…"),
        ("~", "…"),
        ("/", "…/"),
        ("mio_v3", "mio_v3"),
        (0.2, 0.2),
        ({"weights": "/a/b.pt", "of": ("/c", "d")}, {"weights": "…/b.pt", "of": ["…/c", "d"]}),
    ],
)  # fmt: skip
def test_paths_keep_their_last_part(value: object, shown: object) -> None:
    assert without_folders(value) == shown


@pytest.mark.parametrize(
    ("text", "markdown", "html"),
    [
        ("a | b", r"a \| b", "a | b"),
        ("<script>x</script>", "&lt;script&gt;x&lt;/script&gt;", "&lt;script&gt;x&lt;/script&gt;"),
        ("R&D 'x'", "R&amp;D 'x'", "R&amp;D &#x27;x&#x27;"),
        ("![x](http://y)", r"!\[x\](http://y)", "![x](http://y)"),
        ("*a* `b`", r"\*a\* \`b\`", "*a* `b`"),
        ("two\nlines \x1b[1m", r"two\\nlines \\x1b\[1m", r"two\nlines \x1b[1m"),
        ("mio_v3 (84.2 %)", "mio_v3 (84.2 %)", "mio_v3 (84.2 %)"),
    ],
)
def test_names_change_neither_markdown_nor_html(text: str, markdown: str, html: str) -> None:
    assert as_markdown(text) == markdown
    assert as_html(text) == html


@pytest.mark.parametrize(
    ("rank", "world", "speaks"), [(None, None, True), ("0", "4", True), ("3", "4", False), ("1", "1", True)]
)
def test_of_a_group_one_speaks(
    rank: str | None,
    world: str | None,
    speaks: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", world)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    say("once")
    show("runs/a", "b")
    assert tuple(capsys.readouterr()) == (("runs/a\nb\n", "once\n") if speaks else ("", ""))


def test_of_what_another_program_says_the_lines_that_say_something_are_kept() -> None:
    assert said_lines(" a \n\n\t\n b\n", "nothing") == ["a", "b"]
    assert said_lines("\n \n", "nothing") == said_lines("", "nothing") == ["nothing"]


@pytest.mark.parametrize(
    ("count", "words", "said"),
    [
        (0, ("image",), "0 images"),
        (1, ("step",), "1 step"),
        (2, ("class", "classes"), "2 classes"),
        (1, ("series", "series"), "1 series"),
    ],
)
def test_one_thing_is_no_several(count: int, words: tuple[str, ...], said: str) -> None:
    assert plural(count, *words) == said
