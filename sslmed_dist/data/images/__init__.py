"""Sets of pictures: files, arrays and packs."""
