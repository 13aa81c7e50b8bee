"""How a site's door answers "evaluate": the figures of encoders on its own held-out part, under its own rules."""

from sslmed_dist.atomic_files import write_atomically
from sslmed_dist.config import Config
from sslmed_dist.federation import figures, payload, policy, site_figures
from sslmed_dist.federation.doorway import Doorway, Turn
from sslmed_dist.federation.policy import Refusal, Spent
from sslmed_dist.federation.shared import model_digest


def evaluate(door: Doorway, turn: Turn) -> bytes:
    """The answer to "evaluate". The same encoder asked for again gets its stored bytes; any other one counts as an
    evaluation of the data set's life."""
    settings, message = turn.asked.settings, turn.message
    number, model = message.fields["round"], model_digest(message.tensors)
    if settings.federated is None or not settings.federated.evaluate:
        raise Refusal("the run that this site accepted asks for no evaluation (federated.evaluate)")
    if number < 1:
        raise Refusal("there is nothing to evaluate before the first round")
    stored = turn.folder / f"figures_{model}.bin"
    if stored.exists():
        return stored.read_bytes()
    door.require_model(turn.folder, message)
    policy.require_evaluations(door.site, Spent.of(door.ledger.entries, door.site.data_set))
    door.reserve(turn)
    with door.working(turn):
        _, data = door.work(door.site, turn.asked.digest, turn.data)
        done = payload.unpack(data)
        require_asked(done, settings)
        scalars = {name: value for name, value in done.fields["scalars"].items() if name in door.site.policy.scalars}
        kept = sorted(done.fields["scalars"].keys() - scalars.keys())
        fields = {"run": turn.run, "round": number, "sequence": door.sequence(turn.run), "site": door.site.site}
        fields |= {"figures": done.fields["figures"], "scalars": scalars, "model": model}
        sealed = door.recorded("figures", fields, turn.asked.digest, kept=kept)
        write_atomically(stored, sealed)
        return sealed


def require_asked(done: payload.Message, settings: Config) -> None:
    """``ValueError`` where the work gave anything but figures of the arms and protocols that were asked for."""
    if done.kind != "figures":
        raise ValueError("the work gave no figures")
    arms = site_figures.arms_at(settings)
    for figure in figures.read(done.fields["figures"]):
        if figure.arm not in arms or figure.protocol >= len(settings.evaluate.protocols):
            raise ValueError("the work gave figures that nobody asked for")
