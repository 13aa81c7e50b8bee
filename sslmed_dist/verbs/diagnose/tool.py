"""What ``sslmed diagnose`` was asked for: a run, its check, or new exams."""

import argparse

from sslmed_dist import config
from sslmed_dist.verbs.diagnose import predict, run


def diagnose(arguments: argparse.Namespace) -> list[object]:
    """Do it, and return what is to be printed. ``ValueError`` for options that do not go together."""
    if arguments.predict is None:
        if arguments.config is None or arguments.model or arguments.out:
            raise ValueError("sslmed diagnose: expected CONFIG, or --predict FOLDER --model RUN --out DIR")
        settings = config.load(arguments.config, arguments.overrides)
        if arguments.check:
            return list(run.check(settings))
        return [run.run(settings, arguments.resume)]
    if arguments.config is not None or arguments.overrides or arguments.model is None or arguments.out is None:
        raise ValueError("sslmed diagnose: --predict FOLDER goes with --model RUN and --out DIR, and without CONFIG")
    asked = {"anonymous": arguments.names == "anonymous", "force": arguments.force}
    return list(predict.predict(arguments.predict, arguments.model, arguments.out, arguments.device, **asked))
