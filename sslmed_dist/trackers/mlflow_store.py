"""A run in MLflow: a store beside the runs by default, or the server that the recipe names."""

import importlib.util
import logging
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from sslmed_dist.curve_events import place
from sslmed_dist.trackers.tracker import Row, Tracked, Tracker, setting

MOST = 500  # scalars of one message; MLflow takes 1,000
MOST_PARAMETERS = 100  # of one message
LONGEST = 500  # letters of a parameter


class Mlflow(Tracker):
    """``{name: mlflow, uri: ..., experiment: ...}``. ``uri`` null: ``mlflow.db`` in ``run.dir``, which ``mlflow ui
    --backend-store-uri sqlite:///runs/mlflow.db`` shows; nothing leaves the machine then.

    A resumed run goes on under the same id. A scalar that is there already (of one name and step) is not written again,
    so what a killed start wrote after its last checkpoint stays, once. The tensors, files and pictures of a run are not
    handed over. ``ValueError``: MLflow is not installed, or the address holds a password.
    """

    name = "mlflow"

    def __init__(self, uri: str | None = None, experiment: str = "sslmed-dist", *, run: Tracked) -> None:
        super().__init__(run)
        if importlib.util.find_spec("mlflow") is None:
            raise ValueError("run.track: mlflow needs mlflow: pip install 'sslmed-dist[mlflow]'")
        if uri is not None and "@" in urlsplit(uri).netloc:
            raise ValueError(
                "run.track: mlflow.uri: holds a user or password; set MLFLOW_TRACKING_USERNAME and _PASSWORD instead"
            )
        self.uri, self.experiment = uri, experiment
        self.client: Any = None
        self.identity = ""
        self.there: set[tuple[str, int]] = set()

    def open(self) -> None:
        """Find the run by the id in ``tracking.json``, or make one."""
        setting("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a server that is away must not hold up a training
        setting("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        setting("MLFLOW_DISABLE_TELEMETRY", "true")
        setting("DO_NOT_TRACK", "true")
        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        above = self.run.folder.parent
        self.client = MlflowClient(tracking_uri=self.uri or f"sqlite:///{above / 'mlflow.db'}")
        known = self.run.known_as(self.name)
        found = None if known is None else self.find(known)
        self.identity = self.make() if found is None else found.info.run_id
        self.there = set()
        for tag in () if found is None else found.data.metrics:
            self.there |= {(tag, metric.step) for metric in self.client.get_metric_history(self.identity, tag)}
        self.client.update_run(self.identity, status="RUNNING")

    def find(self, identity: str) -> Any:
        """The run of an id; None where the store does not have it: it may be another store."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_run(identity)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return found if found.info.lifecycle_stage == "active" else None

    def make(self) -> str:
        """A new run with the configuration as its parameters; its id."""
        from mlflow.entities import Param

        folder = None if self.uri else (self.run.folder.parent / "mlflow-artifacts").as_uri()
        known = self.client.get_experiment_by_name(self.experiment)
        experiment = self.client.create_experiment(self.experiment, folder) if known is None else known.experiment_id
        made = self.client.create_run(experiment, run_name=self.run.settings.run.name)
        identity = str(made.info.run_id)
        parameters = [Param(key, value[:LONGEST]) for key, value in self.run.parameters().items()]
        for start in range(0, len(parameters), MOST_PARAMETERS):
            self.client.log_batch(identity, params=parameters[start : start + MOST_PARAMETERS])
        self.run.remember(self.name, identity)
        return identity

    def add(self, rows: Iterable[Row]) -> None:
        """Send what is not there yet, at most ``MOST`` scalars a message."""
        new = self.new(rows)
        while batch := list(islice(new, MOST)):
            self.client.log_batch(self.identity, metrics=batch)

    def new(self, rows: Iterable[Row]) -> Iterator[Any]:
        """The rows as MLflow's scalars, without those of a name and step that are there."""
        from mlflow.entities import Metric

        for row in rows:
            tag, step = place(row)
            if (tag, step) not in self.there:
                self.there.add((tag, step))
                yield Metric(tag, float(row["value"]), int((row.get("time") or time.time()) * 1000), step)

    def end(self) -> None:
        """The process ended in order; whether all epochs are done, the scalars say."""
        self.client.set_terminated(self.identity, status="FINISHED")
