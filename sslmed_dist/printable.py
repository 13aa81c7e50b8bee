"""Text from files and folders in a form that is safe to print."""

import unicodedata


def printable(text: str) -> str:
    r"""``text`` without control characters: line breaks, terminal codes, marks that turn the direction of writing and
    bytes that are no UTF-8 stand as escapes (``\n``, ``\x1b``, ``\u202e``, ``\udc80``). All else stays as it is."""
    return "".join(letter if shows(letter) else letter.encode("unicode_escape").decode() for letter in text)


def shows(letter: str) -> bool:
    """Whether a character prints as itself; any kind of space does."""
    return letter.isprintable() or unicodedata.category(letter) == "Zs"
