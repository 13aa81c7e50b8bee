"""What may stand on the command line. Standard library only: ``sslmed --help`` answers at once."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sslmed_dist.cli_arguments import (
    WHICH,
    Parser,
    Verbs,
    checkpoint,
    configuration,
    forcing,
    output,
    overriding,
    path,
    place,
    recipe,
    resuming,
)
from sslmed_dist.cli_completion import answer
from sslmed_dist.cli_hospitals import federation_server, flower_app, hospital_site
from sslmed_dist.cli_patients import diagnosing, segmenting

ANALYSES = ("hessian", "landscape", "temperature", "similarity", "gradcam")  # of verbs/analyse/tool.py


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The parsed arguments. Overrides may also stand after an option; argparse does not recognise them there, so they
    are added here."""
    top = parser()
    answer(top)
    arguments, unrecognised = top.parse_known_args(argv)
    for text in unrecognised:
        if text.startswith("-") or "=" not in text or not hasattr(arguments, "overrides"):
            top.error(f"unrecognized argument {text!r}")
        arguments.overrides = [*arguments.overrides, text]
    if hasattr(arguments, "out_word"):
        place(top, arguments)
    return arguments


def parser() -> argparse.ArgumentParser:
    """The command line. Every verb's function is in ``cli.VERBS``."""
    top = Parser(
        prog="sslmed",
        description="Self-supervised image encoders: train, federate, evaluate. Research use, not a medical device.",
    )
    top.add_argument("--traceback", action="store_true", help="show where an error came from, not only its line")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    beginning(verbs)
    training(verbs)
    measuring(verbs)
    giving_away(verbs)
    segmenting(verbs)
    diagnosing(verbs)
    handling_data(verbs)
    demo = verbs.add_parser("demo", help="the whole story on phantom data: Ray, Flower, report")
    demo.add_argument("--out", type=path, default=Path("runs"), help="where runs and phantom data go")
    demo.add_argument("--quick", action="store_true", help="fewer steps, no Ray cluster and no Flower runtime")
    older = verbs.add_parser("recipes", help="older name of `list recipes`")
    older.add_argument("names", nargs="*", metavar="NAME", help="of a recipe, as after `list recipes`")
    catalogue = verbs.add_parser("list", help="every loss, view, method, encoder, dataset, strategy, recipe and table")
    catalogue.add_argument("family", nargs="?", metavar="FAMILY", help="losses, views, ...; without one: the families")
    catalogue.add_argument("entry", nargs="?", metavar="NAME", help="this entry whole: arguments, equation, recipes")
    numbered = verbs.add_parser("where", help="file and line of an equation, algorithm or table of the thesis")
    numbered.add_argument("number", nargs="+", metavar="NUMBER", help="5.21, or with its kind: Eq. 5.21, table-5.2")
    doctor = verbs.add_parser("doctor", help="what this machine has, or every node of a cluster, what will not work")
    doctor.add_argument("--cluster", action="store_true", help="every node of the Ray cluster that a run would join")
    doctor.add_argument("config", type=recipe, nargs="?", metavar="CONFIG", help="the recipe that is to run there")
    overriding(doctor, "keys of the recipe, such as run.dir=/shared/runs")
    hospital_site(verbs)
    federation_server(verbs)
    flower_app(verbs)
    return top


def beginning(verbs: Verbs) -> None:
    """``init`` and ``verdict``."""
    init = verbs.add_parser("init", help="look at your data and write a commented recipe that trains on it as it is")
    init.add_argument("path", type=path, metavar="FOLDER", help="images, scans, examinations or an .npz, any layout")
    init.add_argument("--out", type=path, metavar="FILE", help="the recipe, .yaml; default: the data's name, here")
    init.add_argument("--minutes", type=float, default=20.0, help="how long it is to train on this machine (20)")
    init.add_argument("--medical", action="store_true", help="colour images are medical: their colours stay")
    init.add_argument("--federated", type=int, default=0, metavar="N", help="as N simulated sites that share no image")
    init.add_argument("--ray", action="store_true", help="by Ray's workers, one for each core or GPU of this machine")
    forcing(init, "a recipe that init wrote")

    verdict = verbs.add_parser("verdict", help="is a run learning? without labels, in words, with one picture")
    verdict.add_argument("run", type=path, metavar="RUN", help="run folder; the answer goes into it")
    overriding(verdict, "other places: of data, run.device and run.threads")
    verdict.add_argument("--which", default="last", help=WHICH)


def training(verbs: Verbs) -> None:
    """``train``, ``watch`` and ``federate``."""
    train = verbs.add_parser("train", help="pretrain an encoder (driver=local or driver=ray)")
    configuration(train)
    train.add_argument("--check", action="store_true", help="validate everything, print plan, memory and time, stop")
    resuming(train)

    watch = verbs.add_parser("watch", help="how a run is getting on, from its folder alone; also of a dead one")
    watch.add_argument("run", type=path, metavar="RUN", help="run folder; nothing is written there")
    watch.add_argument("--once", action="store_true", help="say it once and end: exit code 1 if it failed or is silent")
    watch.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="how often to look (5)")

    federate = verbs.add_parser("federate", help="pretrain at sites that never share an image, and compare")
    configuration(federate)
    federate.add_argument("--check", action="store_true", help="validate, print the sites, stop")
    resuming(federate)


def measuring(verbs: Verbs) -> None:
    """``evaluate``, ``probe``, ``analyse``, ``reproduce`` and ``report``."""
    evaluate = verbs.add_parser("evaluate", help="measure a run's encoder on frozen features")
    evaluate.add_argument("run", type=path, metavar="RUN", help="run folder; the results go into its evaluate/")
    overriding(evaluate, "measure otherwise, or other data: of data, evaluate, run.device and run.threads")
    checkpoint(evaluate)
    evaluate.add_argument("--histogram", action="store_true", help="also similarities of two training views")

    probe = verbs.add_parser("probe", help="what an encoder gives away: an image's site, what it was trained on")
    probe.add_argument("run", type=path, metavar="RUN", help="run folder; the results go into its evaluate/")
    overriding(probe, "other places: of data, run.device and run.threads")
    probe.add_argument("--what", choices=("sites", "membership"), help="one of both; default: what the run allows")
    probe.add_argument("--which", default="last", help=WHICH)

    analyse = verbs.add_parser("analyse", help="why a run is as it is: curvature, landscape, temperature, similarity")
    analyse.add_argument("run", type=path, metavar="RUN", help="run folder; the results go into its analysis/")
    analyse.add_argument("action", choices=ANALYSES, metavar="WHAT", help=", ".join(ANALYSES))
    overriding(analyse, "of the analysis: which=all, samples=512, ...; data.root=PATH", "KEY=VALUE")
    analyse.add_argument("--beside", type=path, nargs="+", action="extend", metavar="RUN", help="further runs")

    reproduce = verbs.add_parser("reproduce", help="run what is missing of a published table, print ours beside it")
    reproduce.add_argument("table", metavar="TABLE", help="table-5.2, figure-6.8 or the path of a table's .yaml")
    overriding(reproduce, "keys of every cell's recipe")
    reproduce.add_argument("--rows", nargs="+", action="extend", metavar="ROW", help="only these rows")
    reproduce.add_argument("--columns", nargs="+", action="extend", metavar="COLUMN", help="only these columns")
    reproduce.add_argument("--seeds", type=int, default=1, help="seeds a cell (3 before a difference is called one)")
    reproduce.add_argument(
        "--folds", nargs="+", action="extend", metavar="K", help="only these folds of a cross-validation"
    )
    reproduce.add_argument("--root", action="append", default=[], metavar="DATASET=PATH", help="where a dataset is")
    reproduce.add_argument("--dry-run", action="store_true", help="print the cells and what is there, run nothing")

    sweep = verbs.add_parser("sweep", help="train a recipe with several values of some keys, print what each is worth")
    sweep.add_argument("config", type=recipe, metavar="CONFIG", help="a recipe that `sslmed train` trains")
    overriding(sweep, "keys with several values, optim.lr=0.03,0.06; with one value: of every trial", "KEY=A,B,C")
    sweep.add_argument("--trials", type=int, metavar="N", help="so many of the grid, drawn at random; default: all")
    sweep.add_argument("--metric", help="EVALUATOR/MEASURE such as knn/accuracy, or a scalar of the training: loss")
    sweep.add_argument("--lower", action="store_true", help="the lowest comes first, whatever is known of the metric")
    sweep.add_argument("--ray", action="store_true", help="trials by Ray Tune, on the cluster of ray.address or here")
    sweep.add_argument("--workers", type=int, metavar="N", help="trials at a time (1; with --ray: what has room)")
    sweep.add_argument("--minutes", type=float, metavar="M", help="no trial begins later")
    sweep.add_argument("--dry-run", action="store_true", help="state the budget and the trials, run nothing")

    report = verbs.add_parser("report", help="one HTML page and Markdown from one or several runs (seeds)")
    report.add_argument("runs", type=path, nargs="*", metavar="RUN", help="run folders; seeds of one run become a mean")
    report.add_argument("--all", type=path, metavar="FOLDER", help="one page over all runs below this folder")
    report.add_argument(
        "--out", type=path, help="the page (.html) or its folder; default: in the run, or beside several"
    )
    report.add_argument(
        "--pictures", action="store_true", help="draw each run's pictures and embed them: the page holds pixels"
    )
    report.add_argument(
        "--layer", help="with --pictures: the submodule of the method that Grad-CAM asks, such as encoder.layer3"
    )
    forcing(report, "a report that --out names")
    report.add_argument("--tensorboard", type=path, help="also write the curves as TensorBoard events to this folder")


def giving_away(verbs: Verbs) -> None:
    """``export``, ``embed`` and ``bundle``."""
    export = verbs.add_parser("export", help="write the encoder for other programs, with a model card")
    export.add_argument("run", type=path, metavar="RUN", help="run folder or checkpoint")
    output(export, "the files' name without its suffix, or the folder that is made")
    checkpoint(export)
    kinds = "safetensors (default), torchvision, timm, huggingface, onnx, or monai for segment"
    export.add_argument("--format", default="safetensors", help=kinds)
    export.add_argument("--licence", metavar="TEXT", help="of the weights, for the card: cc-by-nc-4.0, say")
    export.add_argument("--data-licence", metavar="TEXT", help="of the training data, for the card")
    forcing(export, "an export")

    embed = verbs.add_parser("embed", help="features of a folder of images")
    embed.add_argument("run", type=path, metavar="RUN", help="run folder, checkpoint, or an export's weights")
    embed.add_argument("images", type=path, metavar="IMAGES", help="folder of images, in any layout")
    embed.add_argument("--out", type=path, default=Path("features.npz"), help="default: features.npz")
    checkpoint(embed)
    embed.add_argument(
        "--names", choices=("file", "anonymous"), default="anonymous", help="file: paths beside the rows"
    )
    embed.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be read, and count them")
    forcing(embed, "features")
    bundle = verbs.add_parser("bundle", help="wheels, encoder, docs and hashes for a machine without a network")
    output(bundle, "the folder that is made")
    bundle.add_argument("--model", type=path, metavar="RUN", help="run folder or checkpoint whose encoder goes with it")
    bundle.add_argument("--which", default="last", help=WHICH)
    extras = "of pyproject.toml, as they are installed here; default: report. torch is never in it"
    bundle.add_argument("--extras", nargs="*", default=["report"], metavar="EXTRA", help=extras)


def handling_data(verbs: Verbs) -> None:
    """``data`` and its actions."""
    data = verbs.add_parser("data", help="look at data, make phantoms, pack image files, prepare exams")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    look = actions.add_parser("check", help="what a file or folder holds and what is wrong with it")
    look.add_argument("path", type=path, metavar="PATH", help="image, scan, archive, or a folder of them")
    rules = "for examinations: series.SLOT=RULE, the rules of a recipe to try out"
    overriding(look, rules, "KEY=VALUE")
    drawn = actions.add_parser("show", help="draw images as stored and as a recipe's views make them, a puzzle solved")
    configuration(drawn)
    drawn.add_argument("--out", type=path, default=Path("views.png"), metavar="FILE", help="a PNG, not there yet")
    drawn.add_argument("--count", type=int, default=4, help="images, at most 6")
    together = actions.add_parser("labels", help="how the labels of a multi-label set stand together")
    together.add_argument("name", metavar="NAME", help="of the dataset: mrnet, exams, ...")
    together.add_argument("root", metavar="ROOT", help="where the dataset is")
    overriding(together, "the dataset's other arguments", "KEY=VALUE")
    together.add_argument("--plot", type=path, help="write the concurrence plot into this image file")
    phantom = actions.add_parser("phantom", help="write phantom data (shapes, knee, abdomen, stl10, mura, ...)")
    phantom.add_argument("kind", metavar="KIND", help="shapes, stl10, knee, abdomen, ...; a wrong one lists all")
    output(phantom, "the folder, or the file, that is written")
    overriding(phantom, "sizes, seed, ...", "KEY=VALUE")
    pack = actions.add_parser("pack", help="write image files as shards read by memory map, or exams as one .npz")
    pack.add_argument("name", metavar="NAME", help="of the dataset: imagenet, image_folder, episodes, ...")
    pack.add_argument("root", metavar="ROOT", help="where the dataset is")
    output(pack, "the folder of shards, or the .npz, that is written")
    overriding(pack, "the dataset's other arguments", "KEY=VALUE")
    pack.add_argument("--format", choices=("jpeg", "raw"), default="jpeg", help="raw: larger, faster, without loss")
    pack.add_argument("--short", type=int, default=256, help="short side in pixels")
    pack.add_argument("--quality", type=int, default=90, help="of the JPEG")
    pack.add_argument("--rows", type=int, default=8192, help="images a shard")
    pack.add_argument("--workers", type=int, default=2, help="processes")
    forcing(pack, "another pack, or one whose images have changed")
    pack.add_argument(
        "--verify", action="store_true", help="compare all bytes of a pack that is there, and of its images"
    )
    ready = actions.add_parser("prepare", help="turn a published set as downloaded into NIfTI exams for training")
    ready.add_argument("kind", choices=("chaos", "abdomen-ct"), help="the published set")
    ready.add_argument("source", type=path, metavar="SRC", help="the set as downloaded")
    output(ready, "the folder that is written")
