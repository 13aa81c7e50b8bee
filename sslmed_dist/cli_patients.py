"""What may stand on the command line of ``sslmed segment`` and ``diagnose``. Standard library only."""

from sslmed_dist.cli_arguments import WHICH, Verbs, forcing, overriding, path, recipe, resuming


def segmenting(verbs: Verbs) -> None:
    """``segment``."""
    segment = verbs.add_parser("segment", help="one annotated scan in, masks for others out (research use only)")
    segment.add_argument("--model", type=path, required=True, metavar="RUN", help="run folder or checkpoint")
    segment.add_argument(
        "--support", type=path, required=True, metavar="IMG", help="annotated scan: NIfTI or DICOM folder"
    )
    segment.add_argument("--support-mask", type=path, required=True, metavar="MASK", help="its mask, any label ids")
    segment.add_argument("--query", type=path, required=True, metavar="PATH", help="NIfTI or DICOM, one or a folder")
    segment.add_argument("--out", type=path, required=True, metavar="DIR", help="must not hold the outputs yet")
    segment.add_argument("--which", default="last", help=WHICH)
    segment.add_argument(
        "--labels", type=int, nargs="+", action="extend", default=[], metavar="N", help="default: all ids in the mask"
    )
    segment.add_argument(
        "--head", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="over the run's head with window 2"
    )
    segment.add_argument(
        "--pixel-mm", type=float, metavar="MM", help="pixel size of the training slices, if not recorded"
    )
    segment.add_argument(
        "--intensity", choices=("auto", "clip", "keep"), default="auto", help="clip above 99.5 percentile"
    )
    segment.add_argument(
        "--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="clip CT to these Hounsfield units"
    )
    segment.add_argument("--quadrants", action="store_true", help="only in quadrants that the support's organ occupies")
    segment.add_argument(
        "--supports",
        type=path,
        nargs=2,
        action="append",
        default=[],
        metavar=("IMG", "MASK"),
        help="one more annotated scan; may be repeated",
    )
    segment.add_argument(
        "--range",
        type=int,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="first and last slice of the organs in every query, from 0, inferior to superior; default: estimated",
    )
    segment.add_argument("--no-tidy", action="store_true", help="no mean over slices, no place, no single piece")
    counts = "auto: the support's mask, copied, counts where it explains a query better than what is found"
    segment.add_argument("--copying", choices=("auto", "off"), default="auto", help=counts)
    rule = "which series of a study, where there are several: a regular expression that fits its line alone"
    segment.add_argument("--series", default="", metavar="RULE", help=f"of the queries, {rule}")
    segment.add_argument("--support-series", default="", metavar="RULE", help="of the support, likewise")
    segment.add_argument("--dicom-seg", action="store_true", help="also write DICOM-SEG (needs the extra dicom)")
    segment.add_argument(
        "--names", choices=("file", "anonymous"), default="file", help="anonymous: no name that was read is written"
    )
    segment.add_argument("--no-probabilities", action="store_true", help="leave out the large file of probabilities")
    forcing(segment, "masks of an earlier run that nobody changed since")
    segment.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if any")


def diagnosing(verbs: Verbs) -> None:
    """``diagnose``."""
    diagnose = verbs.add_parser("diagnose", help="train and measure a diagnosis, or examine one (research use only)")
    diagnose.add_argument("config", type=recipe, nargs="?", metavar="CONFIG", help="not with --predict")
    overriding(diagnose, "of the recipe; not with --predict")
    diagnose.add_argument("--check", action="store_true", help="validate everything, try two steps of each part, stop")
    resuming(diagnose)
    diagnose.add_argument("--predict", type=path, metavar="FOLDER", help="examine the exams of this folder")
    diagnose.add_argument("--model", type=path, metavar="RUN", help="with --predict: the run folder of a diagnosis")
    diagnose.add_argument("--out", type=path, metavar="DIR", help="with --predict: must not hold the outputs yet")
    diagnose.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="with --predict")
    diagnose.add_argument(
        "--names",
        choices=("file", "anonymous"),
        default="file",
        help="with --predict: exams are called by their folders or files in what is written (default), or numbered",
    )
    forcing(diagnose, "the outputs of an earlier --predict")
