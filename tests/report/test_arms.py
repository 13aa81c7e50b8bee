"""Every arm that a run can have is called by a name and drawn in a colour of its own, the same on the whole page."""

import typing

import pytest

from sslmed_dist.downstream import FLOORS
from sslmed_dist.downstream.site_probe import LABELS
from sslmed_dist.federation.figures import BEST, FEDERATED
from sslmed_dist.report.plots import ARM_COLOURS, DARK, LIGHT
from sslmed_dist.report.style import STYLE, arm_class
from sslmed_dist.report.wording import ARM_NAMES
from sslmed_dist.training.pretrained import Part
from sslmed_dist.verbs.federate import BASELINES

ARMS = [*FLOORS, *BASELINES, FEDERATED, BEST, LABELS, *typing.get_args(Part)]


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_has_a_name_and_a_colour(arm: str) -> None:
    assert arm in ARM_NAMES and arm in ARM_COLOURS and arm_class(arm) != "arm-other"
    light, dark = STYLE.split("@media (prefers-color-scheme: dark)")[-2:]
    for part, theme in ((light, LIGHT), (dark, DARK)):
        assert f".{arm_class(arm)} {{ --tone: {theme.colour(ARM_COLOURS[arm])}; }}" in part


def test_no_arm_is_named_that_none_can_have() -> None:
    assert set(ARM_NAMES) == set(ARM_COLOURS) == set(ARMS)
    assert arm_class("<script>") == "arm-other"
