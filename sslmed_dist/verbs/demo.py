"""``sslmed demo``: the whole story on phantom data, from an empty folder to one HTML page.

Two Ray workers pretrain an encoder. Three sites go on training it through Flower, and no image leaves a site. Then
every site measures the federated encoder beside an untrained one, one trained on its own data alone, and one trained on
all data together.
"""

import sys
import time
from pathlib import Path

from sslmed_dist import config, installation
from sslmed_dist.data.phantom import PHANTOMS
from sslmed_dist.drivers import choice
from sslmed_dist.report import write_report
from sslmed_dist.training.stopping import finish
from sslmed_dist.verbs import federate
from sslmed_dist.verbs.evaluate import evaluate_run
from sslmed_dist.verbs.report_pictures import make_for_report


def say(text: str) -> None:
    """A heading between the stages."""
    print(f"\n== {text}", file=sys.stderr, flush=True)


def run(out: Path, quick: bool = False) -> Path:
    """Run all stages under ``out`` and return the path of the page. A stage that was interrupted goes on where it
    stopped.

    ``quick``: a tenth of the steps, one process instead of Ray workers, and the federation in one process.
    """
    started = time.monotonic()
    folder, out = installation.root() / "configs" / "smoke", out.resolve()
    data = out / "phantom" / ("quick" if quick else "shapes")
    say("1/4 phantom images: textured shapes from three simulated scanners")
    sizes = {"train": 480, "val": 60, "test": 180} if quick else {}
    PHANTOMS["shapes"](data, channels=1, **sizes)
    # Overrides of both recipes; ``short`` and ``fast`` below are those of the quick demo.
    shared = [f"run.dir={out}", f"data.root={data / 'shapes.npz'}", "run.device=cpu"]

    say("2/4 pretraining " + ("in this process" if quick else "by two Ray workers"))
    name = "demo-quick" if quick else "demo-ray"
    short = ["driver=local", "plan.epochs=2", "plan.batch_size=48", f"run.name={name}"] if quick else []
    first = config.load(folder / "demo_ray.yaml", shared + short)
    finish(choice.train(first) is not None)
    evaluate_run(first.folder)

    say("3/4 three sites go on with this encoder through Flower; no image leaves a site")
    fast = ["federated.runtime=in_process", "plan.steps_per_epoch=3", "plan.batch_size=32", "federated.rounds=2"]
    fast += ["run.name=demo-quick-federated", "evaluate.protocols=[{name: knn, k: 20}]"]
    second = config.load(
        folder / "demo_federated.yaml", [*shared, f"run.start_from={first.folder}", *(fast if quick else [])]
    )
    federate.run(second)

    say("4/4 the report")
    make_for_report([second.folder, first.folder])
    page, _ = write_report([second.folder, first.folder], out / "demo.html", pictures=True, force=True)
    say(f"done in {(time.monotonic() - started) / 60:.1f} min; open this page:")
    return page
