"""One annotated scan in, a mask of another one out, in its own voxels: python examples/segment.py"""

import tempfile
from pathlib import Path

import sslmed_dist as sd
from sslmed_dist.data.phantom import PHANTOMS
from sslmed_dist.verbs.segment.tool import segment

if __name__ == "__main__":  # superpixels are computed by processes that import this file anew
    folder = Path(tempfile.mkdtemp())
    scans = PHANTOMS["abdomen"](folder / "scans", exams=6, sites=1, size=64, slices=10)

    # An encoder of a few steps on slices without labels; use one of your own for masks that count.
    words = [f"data.root={scans}", f"run.dir={folder}", "run.device=cpu", "data.size=64", "views.size=64"]
    small = ["plan.epochs=1", "plan.steps_per_epoch=4", "method.encoder.depth=9", "method.encoder.width=8"]
    run = sd.train("chaos_cowpro_cpu", [*words, *small])

    written = segment(
        run,
        support=scans / "image_01.nii.gz",
        support_mask=scans / "label_01.nii.gz",
        query=scans / "image_02.nii.gz",
        out=folder / "masks",
    )
    for file in written:
        print(file.relative_to(folder))
