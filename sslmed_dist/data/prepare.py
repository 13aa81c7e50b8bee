"""``data prepare``: published sets from the form they are downloaded in to the exams that are trained on."""

from collections.abc import Callable
from pathlib import Path

from sslmed_dist.data.prepare_chaos import prepare_chaos
from sslmed_dist.data.prepare_ct import prepare_ct

PREPARATIONS: dict[str, Callable[..., Path]] = {"chaos": prepare_chaos, "abdomen-ct": prepare_ct}
