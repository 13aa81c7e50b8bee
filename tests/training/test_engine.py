"""``fit``: counting, stopping, resuming, precision, and the guard against what is not finite."""

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from sslmed_dist import distributed
from sslmed_dist.models.normalization import synchronise
from sslmed_dist.training.precision import NonFinite
from tests.gloo import GlooPool
from tests.training.engine_toy import Bench, bench, same, tensors


def test_fit_counts_steps_samples_and_epochs() -> None:
    made = bench().fit()
    assert (made.state.step, made.state.samples, made.state.epoch, made.state.stopped) == (9, 36, 3, False)
    assert [step for step, _ in made.steps] == list(range(1, 10))
    assert made.saved == made.epochs == [3, 6, 9]
    assert made.method.progress == [step / 9 for step in range(1, 10)]
    assert made.method.calls.count("before_update") == 9
    rates = [values["lr"] for _, values in made.steps]
    assert rates == [made.state.optimisation.learning_rate(step) for step in range(9)] and rates[0] == 0.1
    assert set(made.steps[0][1]) == {"loss", "distance", "spread", "lr", "gradient_norm"}
    assert made.method.training


def test_training_lowers_the_loss() -> None:
    losses = bench(epochs=20, lr=0.02).fit().losses()
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_until_ends_earlier_and_the_rest_follows() -> None:
    whole, parts = bench().fit(), bench()
    for until in (0, 1, 3):
        parts.fit(until=until)
        assert parts.state.step == 3 * until
    assert same(tensors(whole), tensors(parts))


def test_only_every_nth_step_is_logged_and_the_last_of_an_epoch() -> None:
    made = bench(log_every=2).fit()
    assert [step for step, _ in made.steps] == [2, 3, 4, 6, 8, 9]
    assert made.method.calls.count("measures") == 6, "measures cost more than a step should"


def test_checkpoints_come_every_nth_step() -> None:
    assert bench(checkpoint_every=2).fit().saved == [2, 4, 6, 8]


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 8])
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(cut: int) -> None:
    """Dropout, momentum, batch-norm statistics, schedule and the order of samples, from the middle of an epoch."""
    whole = bench().fit()
    first = bench(checkpoint_every=1)
    first.fit(stop=lambda: first.state.step == cut - 1)
    assert first.state.step == cut and first.state.stopped
    second = bench()
    second.method.load_state_dict(first.method.state_dict())
    second.state.load_state_dict(first.state.state_dict())
    torch.manual_seed(cut)  # the global generator's state is not part of a checkpoint
    second.fit()
    assert second.state.samples == whole.state.samples
    assert same(tensors(whole), tensors(second))
    assert first.steps + second.steps == whole.steps


def test_a_stop_acts_at_the_boundary_of_a_step() -> None:
    asked: list[int] = []
    made = bench(checkpoint_every=100, log_every=100)

    def stop() -> bool:
        asked.append(made.state.step)
        return made.state.step == 4

    made.fit(stop=stop)
    assert asked == [0, 1, 2, 3, 4] and made.state.step == 5
    assert made.state.stopped and made.saved == [5] and made.epochs == [3]
    assert [step for step, _ in made.steps] == [3, 5], "the last step before the stop is logged"


def stop_on_one_rank(rank: int) -> tuple[int, bool, list[int]]:
    """Rank ``rank`` alone is asked to stop."""
    made = bench(rank=distributed.rank(), world=2)
    made.fit(average=distributed.average_gradients, stop=lambda: distributed.rank() == rank and made.state.step == 3)
    return made.state.step, made.state.stopped, made.saved


def test_a_stop_on_any_rank_stops_all(gloo: GlooPool) -> None:
    assert gloo.run(stop_on_one_rank, 2, 1) == [(4, True, [3, 4])] * 2


def test_clipping() -> None:
    free, clipped = bench(epochs=1).fit(), bench(epochs=1, clip=0.01).fit()
    start = dict(bench().method.named_parameters())
    norms = [values["gradient_norm"] for _, values in free.steps]
    assert clipped.steps[0][1]["gradient_norm"] == norms[0] > 0.01, "the norm that is logged is that before clipping"
    one = bench(epochs=1, clip=0.01).fit(stop=lambda: True)
    moved = torch.cat([(p - start[name]).detach().flatten() for name, p in one.method.named_parameters()])
    assert float(moved.norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_a_penalty_is_minimised_and_logged() -> None:
    def size(method: nn.Module) -> Tensor:
        return 0.5 * torch.stack([p.square().sum() for p in method.parameters()]).sum()

    made, free = bench(), bench().fit()
    expected = float(size(made.method).detach())
    made.fit(penalty=size)
    first, plain = made.steps[0][1], free.steps[0][1]
    assert first["penalty"] == pytest.approx(expected) and first["loss"] == pytest.approx(plain["loss"] + expected)
    assert float(size(made.method).detach()) < float(size(free.method).detach())


def test_half_precision_is_for_the_encoder_not_for_the_loss() -> None:
    made = bench(precision="bf16").fit()
    assert made.method.encoder_dtypes == {torch.bfloat16} and made.method.dtypes == {torch.float32}
    assert all(torch.isfinite(torch.tensor(made.losses()))) and made.state.scaler is None
    assert {p.dtype for p in made.method.parameters()} == {torch.float32}
    exact = bench().fit()
    assert made.losses()[0] == pytest.approx(exact.losses()[0], rel=0.02) and made.losses() != exact.losses()


def test_float64() -> None:
    made = bench(precision="float64").fit()
    assert made.method.dtypes == made.method.encoder_dtypes == {torch.float64}
    assert made.losses()[0] == pytest.approx(bench().fit().losses()[0], rel=1e-5)


def test_channels_last_computes_the_same() -> None:
    made, plain = bench(channels_last=True, epochs=1).fit(), bench(epochs=1).fit()
    assert made.losses() == pytest.approx(plain.losses(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_encoder_computes_the_same_and_is_searched_for_what_is_not_finite() -> None:
    made, plain = bench(epochs=1), bench(epochs=1)
    for one in (made, plain):
        one.method.encoder.dropout.p = 0.0  # compiled dropout draws its numbers in another order
    plain.fit()
    made.method.encoder.compile()
    made.fit()
    assert made.losses() == pytest.approx(plain.losses(), rel=1e-4)
    assert made.method.state_dict().keys() == plain.method.state_dict().keys()
    with torch.no_grad():
        made.method.encoder.bn.weight[1] = torch.inf
    made.state.step = 0
    with pytest.raises(NonFinite, match="first non-finite module: encoder.bn;"):
        made.fit()


def test_deterministic_kernels_while_training_only() -> None:
    seen: list[bool] = []
    for deterministic in (True, False):
        made = bench(deterministic=deterministic, epochs=1)
        made.fit(stop=lambda: seen.append(torch.are_deterministic_algorithms_enabled()) is not None)
    assert seen == [True] * 3 + [False] * 3 and not torch.are_deterministic_algorithms_enabled()


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(ValueError) as caught:
        bench(precision="fp16")
    assert str(caught.value) == "plan.precision: fp16 needs a CUDA device, this is cpu; allowed here: float32, bf16"


def overflow_on_one_rank() -> list[bool]:
    """fp16's scaler meets an infinite gradient on rank 1 alone: which parameters are as before?"""
    made = bench(rank=distributed.rank(), world=2, epochs=1)
    made.state.scaler = GradScaler("cpu")
    made.method.large = 1e35 if distributed.rank() == 1 else 1.0
    before = {name: p.clone() for name, p in made.method.named_parameters()}
    made.fit(average=distributed.average_gradients, stop=lambda: True)
    assert made.state.scaler.get_scale() == 2.0**15, "halved on every rank"
    return [torch.equal(p, before[name]) for name, p in made.method.named_parameters()]


def test_an_overflow_on_one_rank_skips_the_step_on_all(gloo: GlooPool) -> None:
    assert gloo.run(overflow_on_one_rank, 2) == [[True] * 6] * 2


def refused(made: Bench, **arguments: Any) -> str:
    """The line of ``NonFinite``; parameters and momentum are as before."""
    before = {name: p.clone() for name, p in made.method.named_parameters()}
    momentum = {name: value for name, value in tensors(made).items() if name.startswith("momentum")}
    step = made.state.step
    with pytest.raises(NonFinite) as caught:
        made.fit(**arguments)
    assert made.state.step == step
    assert all(torch.equal(p, before[name]) for name, p in made.method.named_parameters())
    assert all(torch.equal(tensors(made)[name], value) for name, value in momentum.items())
    assert not any(module._forward_hooks for module in made.method.modules()), "the search cleans up after itself"
    return str(caught.value)


@pytest.mark.parametrize("name", ["encoder.conv", "encoder.bn", "head"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_guard_names_the_first_module_with_a_bad_weight(name: str, value: float) -> None:
    made = bench().fit(until=1)
    made.method.get_submodule(name).weight.data.flatten()[0] = value  # type: ignore[union-attr, operator]
    before = [torch.nan_to_num(p) for p in made.method.parameters()]
    with pytest.raises(NonFinite) as caught:
        made.fit()
    assert all(torch.equal(torch.nan_to_num(p), b) for p, b in zip(made.method.parameters(), before, strict=True))
    assert str(caught.value).startswith("step 3: not finite: loss=nan, distance=")
    assert f"first non-finite module: {name}; parameters were left as before this step" in str(caught.value)


def test_the_guard_names_a_module_whose_output_turns_bad() -> None:
    """``relu`` comes before ``pool``, whatever their place in the list of modules; the container comes last."""
    made = bench().fit(until=1)
    handle = made.method.encoder.pool.register_forward_hook(lambda _, __, output: output / 0.0)
    with pytest.raises(NonFinite, match="first non-finite module: encoder.pool;"):
        made.fit()
    handle.remove()
    made.fit()
    assert made.state.step == 9


def test_the_guard_names_the_input() -> None:
    assert "first non-finite module: input views_0;" in refused(bench(broken=True))


def test_the_guard_says_when_it_is_the_objective_or_the_gradient() -> None:
    made = bench().fit(until=1)
    made.method.large = float("inf")
    line = refused(made)
    assert line.startswith("step 3: not finite: loss=inf, distance=")
    assert "first non-finite module: none, the embeddings are finite;" in line
    assert "\n" not in line
    made = bench().fit(until=1)
    line = refused(made, penalty=lambda m: torch.sqrt(m.head.weight[0, 0] * 0.0))
    assert "loss=nan" not in line and "penalty=0, gradient norm=nan; first non-finite module: none" in line


def meet_a_bad_image(broken: int) -> str:
    """Rank ``broken`` alone gets NaN pixels, under synchronised norms."""
    made = bench(rank=distributed.rank(), world=2, broken=distributed.rank() == broken)
    synchronise(made.method, torch.device("cpu"))
    try:
        made.fit(average=distributed.average_gradients)
    except NonFinite as error:
        return str(error)
    return "trained"


def test_a_bad_image_on_one_rank_ends_all_ranks_at_the_same_step(gloo: GlooPool) -> None:
    """The search for the module must not leave the other ranks waiting in a collective call."""
    lines = gloo.run(meet_a_bad_image, 2, 1)
    assert all(line.startswith("step 0: not finite: loss=nan, distance=nan") for line in lines)
    assert "module: encoder.bn;" in lines[0] and "module: input views_0;" in lines[1]
