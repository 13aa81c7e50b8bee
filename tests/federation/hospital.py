"""A site of two processes, small enough for a test: its file, its data side, and requests as a server sends them."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sslmed_dist import __version__
from sslmed_dist.config import Config
from sslmed_dist.federation import messages, payload, site_file, site_key, site_template
from sslmed_dist.federation.door import Door
from sslmed_dist.federation.local_round import initial_arrays
from sslmed_dist.federation.payload import Message
from sslmed_dist.federation.policy import Request, opened, request
from sslmed_dist.federation.site_file import SiteFile
from sslmed_dist.federation.site_work import perform

ALONE = threading.Lock()  # data sides in threads of one process share its generator; real ones are processes
SMALL = {  # what the strict rules forbid to a run of two steps on random images
    "    steps: 5 ": "    steps: 2 ",
    "{from: 5, to: 10000}": "{from: 1, to: 10000}",
    "examinations: 50": "examinations: 20",
    "statistics: 200": "statistics: 20",
    "separation: enforced": "separation: processes",
    "    clip: 1.0 ": "    clip: null ",
    "noise_multiplier: 10.0 ": "noise_multiplier: 0 ",
}


def site(folder: Path, data: Path, changes: Mapping[str, str] | None = None, name: str = "north") -> SiteFile:
    """The site ``name`` with everything of it below ``folder``; ``changes`` are made to the text of its file."""
    text = site_template.filled(name, str(data), str(folder))
    for old, new in {**SMALL, **(changes or {})}.items():
        assert text.count(old) >= 1, old
        text = text.replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "site.yaml").write_text(text)
    read = site_file.read(folder / "site.yaml")
    if not (Path(read.state) / "key").exists():
        site_key.make(Path(read.state) / "key")
    return read


def asked(own: SiteFile, chosen: Config) -> Request:
    """A run as the site's rules read it."""
    return request(opened(messages.encode(chosen)), own.policy)


def accept(own: SiteFile, chosen: Config) -> str:
    """What ``sslmed site accept`` does; returns the digest."""
    from sslmed_dist.federation.ledger import Ledger

    digest = asked(own, chosen).digest
    Ledger(own.ledger).append("accepted", configuration=digest)
    return digest


def here(own: SiteFile, configuration: str, data: bytes) -> tuple[int, bytes]:
    """The work behind the door in this process."""
    message = payload.unpack(data)
    settings = request(opened(message.fields["config"]), own.policy).settings
    with ALONE:
        return perform(own, settings, configuration, message)


def door(own: SiteFile) -> Door:
    """A door whose work is done in this process."""
    return Door(own, here)


def common(chosen: Config) -> dict[str, Any]:
    """The fields of every request."""
    return {"protocol": payload.PROTOCOL, "version": __version__, "config": messages.encode(chosen)}


def hello(chosen: Config) -> bytes:
    """A request "hello"."""
    return payload.pack("hello", common(chosen))


def train(chosen: Config, number: int = 0, arrays: Mapping[str, torch.Tensor] | None = None) -> bytes:
    """A request "train"; the model is that of the seed unless ``arrays`` are given."""
    model = initial_arrays(chosen) if arrays is None else arrays
    return payload.pack("train", {**common(chosen), "round": number}, model)


def said(answer: bytes | None) -> Message:
    """The message of a sealed answer, its signature verified with the key it names or none."""
    assert answer is not None
    message = payload.unpack(memoryview(answer)[48:-64])
    return message


def reason(answer: bytes | None) -> str:
    """The line of a refusal."""
    message = said(answer)
    assert message.kind == "refusal", message.kind
    return str(message.fields["reason"])
