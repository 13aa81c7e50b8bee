"""Which parameters get weight decay."""

import pytest

from tests.training.test_optim import Network, build


def test_decay_names_those_that_alone_get_it() -> None:
    """As the published L2 on one convolution."""
    model = Network()
    built = build(model, {"name": "rmsprop", "lr": 0.1, "weight_decay": 0.2, "decay": ["conv.weight"]})
    with_decay, without = built.optimizer.param_groups
    assert [id(p) for p in with_decay["params"]] == [id(model.conv.weight)] and with_decay["weight_decay"] == 0.2
    assert len(without["params"]) == len(list(model.parameters())) - 1 and without["weight_decay"] == 0.0
    for leaf, message in (
        ({"decay": ["nothing.*"]}, r"^optim\.decay: 'nothing\.\*' fits no parameter"),
        ({"decay": ["bias"], "exclude": ["norm"]}, r"^optim\.decay: .*leave out optim\.exclude"),
        ({"decay": "bias"}, r"^optim\.decay: expected a list"),
    ):
        with pytest.raises(ValueError, match=message):
            build(model, {"name": "sgd", "lr": 0.1, **leaf})
