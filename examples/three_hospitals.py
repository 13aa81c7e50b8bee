"""Three sites that share encoders and no image, in one process: python examples/three_hospitals.py"""

import tempfile
from pathlib import Path

from sslmed_dist import config, installation
from sslmed_dist.data.phantom import PHANTOMS
from sslmed_dist.report.plain import figure_lines
from sslmed_dist.verbs import federate

folder = Path(tempfile.mkdtemp())
PHANTOMS["shapes"](folder / "phantom", channels=1, train=480, val=60, test=180)

# The same recipe runs over Flower (federated.runtime=simulation or deployment) with the same global parameters, and
# across real sites by `sslmed server` and `sslmed site`: docs/hospitals.md.
settings = config.load(
    installation.recipe("demo_federated"),
    [
        f"data.root={folder / 'phantom' / 'shapes.npz'}",
        f"run.dir={folder}",
        "run.start_from=null",
        "run.device=cpu",
        "federated.runtime=in_process",
        "federated.rounds=2",
        "plan.steps_per_epoch=3",
        "plan.batch_size=32",
        "evaluate.protocols=[{name: knn, k: 20}]",
    ],
)
done = federate.run(settings)
for line in figure_lines(federate.results(done), settings):
    print(line)
