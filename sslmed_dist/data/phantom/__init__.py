"""Phantoms: generated images in the on-disk layouts of real sets, for demonstrations and tests.

They are drawings with scanner differences between sites, not measurements, and carry no clinical meaning. Each writer
is a pure function of its arguments and refuses to write over anything but itself.
"""

from collections.abc import Callable
from pathlib import Path

from sslmed_dist.data.phantom.abdomen import write_abdomen
from sslmed_dist.data.phantom.chaos import write_btcv, write_chaos, write_flare22
from sslmed_dist.data.phantom.knee import write_knee
from sslmed_dist.data.phantom.knee_exams import write_knee_exams
from sslmed_dist.data.phantom.kneemri import write_kneemri
from sslmed_dist.data.phantom.layouts import LAYOUTS, writer
from sslmed_dist.data.phantom.pelvis import write_mogambo
from sslmed_dist.data.phantom.shapes import write_shapes

PHANTOMS: dict[str, Callable[..., Path]] = {
    "shapes": write_shapes,
    "knee": write_knee,
    "knee_exams": write_knee_exams,
    "kneemri": write_kneemri,
    "abdomen": write_abdomen,
    "chaos": write_chaos,
    "btcv": write_btcv,
    "flare22": write_flare22,
    "mogambo": write_mogambo,
    **{kind: writer(kind) for kind in LAYOUTS},
}
