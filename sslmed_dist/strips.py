"""Long, narrow images: work in proportion to what is made of them, not to what they would be enlarged to."""

MOST_ASPECT = 16  # times the short side: how much of a strip is enlarged


def middle_of_strip(height: int, width: int, size: int) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right): the part of an image that has to be resized when its shorter side becomes ``size``
    and the middle square is cut out afterwards. None: all of it, as of every ordinary image.

    Of a strip that would be enlarged it is the middle, ``MOST_ASPECT`` times as long as wide: one of 10,000 x 1 pixels
    would become 2,240,000 x 224. As many pixels go at either end, so the middle stays the middle.
    """
    short, long = min(height, width), max(height, width)
    if short >= size or long <= MOST_ASPECT * short + 1:
        return None
    cut = (long - MOST_ASPECT * short) // 2
    return (cut, height - cut, 0, width) if height > width else (0, height, cut, width - cut)
