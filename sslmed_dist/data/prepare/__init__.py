"""``data prepare``: published sets from the form they are downloaded in to the exams that are trained on."""

from collections.abc import Callable
from pathlib import Path

from sslmed_dist.data.prepare.abdomen_ct import prepare_ct
from sslmed_dist.data.prepare.chaos import prepare_chaos

PREPARATIONS: dict[str, Callable[..., Path]] = {"chaos": prepare_chaos, "abdomen-ct": prepare_ct}
