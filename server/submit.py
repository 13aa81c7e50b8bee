"""Sends the app to a SuperLink, starts a run, and lasts as long as it does: ``flwr run --stream`` with a token.

``python -m server.submit APP --superlink HOST:PORT [--root-certificates FILE] --token FILE --run-config FILE``. SIGTERM
stops the run. Flower's private clients are used here and in ``server.superlink`` only (checked with 1.41).
"""

import argparse
import hashlib
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from flwr.cli.build import build_fab_from_disk
from flwr.cli.log import start_stream
from flwr.common.config import parse_config_args
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest, StopRunRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.utils import simulation_config_from_json


class Bearer:
    """Adds the token to every request."""

    def __init__(self, token: str) -> None:
        self.token = token

    def intercept(self, context: Any, call_next: Any) -> Any:
        """One request."""
        context.request.headers["authorization"] = f"Bearer {self.token}"
        return call_next(context)


def connect(address: str, root: Path | None, token: Path) -> Any:
    """A client of the part of the API that starts runs."""
    return ControlHttpClient.from_server_address(
        server_address=address,
        insecure=root is None,
        root_certificates=None if root is None else root.read_bytes(),
        interceptors=[Bearer(token.read_text().strip()), RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )


def start(client: Any, app: Path, run_config: Path, sizes: str | None) -> int:
    """Start the run; returns its number."""
    content = build_fab_from_disk(app)
    given = parse_config_args([sizes]) if sizes else {}
    simulation = {key.replace("-", "_"): value for key, value in given.items()}
    answer = client.StartRun(
        StartRunRequest(
            fab=fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {})),
            override_config=user_config_to_proto(parse_config_args([str(run_config)])),
            federation="",
            override_federation_config=simulation_config_from_json(simulation) if simulation else None,
        )
    )
    if not answer.HasField("run_id"):
        raise SystemExit("the SuperLink did not start the run; see its log")
    return int(answer.run_id)


def main() -> int:
    """The command line. Exit code 1 where the SuperLink refuses or is gone."""
    parser = argparse.ArgumentParser(prog="server.submit")
    parser.add_argument("app", type=Path)
    parser.add_argument("--superlink", required=True)
    parser.add_argument("--root-certificates", type=Path)
    parser.add_argument("--token", type=Path, required=True)
    parser.add_argument("--run-config", type=Path, required=True)
    parser.add_argument("--federation-config")
    own = parser.parse_args()
    client = connect(own.superlink, own.root_certificates, own.token)
    try:
        run = start(client, own.app, own.run_config, own.federation_config)

        def stop(number: int, frame: FrameType | None) -> None:
            connect(own.superlink, own.root_certificates, own.token).StopRun(StopRunRequest(run_id=run))
            sys.exit(0)

        signal.signal(signal.SIGTERM, stop)
        print(f"run {run}", flush=True)
        start_stream(run, client)
    except Exception as error:  # of the network, or of Flower's command line
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"the SuperLink at {own.superlink}: {reason}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
