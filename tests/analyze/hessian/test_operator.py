"""Products and the whole analysis against the dense Hessian in float64."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, dense_hessian, mlp

from analyze import Subject, hessian
from analyze.hessian import HessianOperator
from data_cache import InputError

SETTINGS = [("eval", 0.0), ("eval", 0.05), ("train", 0.05)]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_setting = pytest.mark.parametrize("mode, weight_decay", SETTINGS)


@every_case
@every_setting
def test_extremes_equal_dense_eigenvalues_in_float64(case, mode, weight_decay):
    subject = case.build(mode=mode, weight_decay=weight_decay)
    exact = torch.linalg.eigvalsh(dense_hessian(subject)).numpy()
    config = hessian.Config(parts=("extremes",), largest=4, smallest=2, tolerance=1e-7)
    found = hessian.compute(subject, config).extremes
    assert found.converged
    # the error of an eigenvalue is of second order in its residual, here 1e-7
    assert np.abs(found.largest - exact[::-1][:4]).max() <= 1e-8 * np.abs(exact).max()
    assert np.abs(found.smallest - exact[:2]).max() <= 1e-8 * np.abs(exact).max()


@every_case
@every_setting
def test_extremes_equal_dense_eigenvalues_in_float32(case, mode, weight_decay):
    subject = case.build(dtype=torch.float32, mode=mode, weight_decay=weight_decay)
    exact = torch.linalg.eigvalsh(dense_hessian(case.build(mode=mode, weight_decay=weight_decay))).numpy()
    config = hessian.Config(parts=("extremes",), largest=3, smallest=1, tolerance=1e-4)
    found = hessian.compute(subject, config).extremes
    assert np.abs(found.largest - exact[::-1][:3]).max() <= 1e-4 * np.abs(exact).max()
    assert np.abs(found.smallest - exact[:1]).max() <= 1e-4 * np.abs(exact).max()


@every_case
def test_density_moments_agree_with_trace_and_frobenius_norm(case):
    subject = case.build(mode="train", weight_decay=0.05)
    dense = dense_hessian(subject).numpy()
    n = len(dense)
    config = hessian.Config(parts=("density", "trace"), probes=40, steps=8, trace_samples=40, deflate=False)
    result = hessian.compute(subject, config)
    density, trace = result.density, result.trace
    for power, exact in ((1, np.trace(dense) / n), (2, (dense**2).sum() / n)):
        moments = (density.weight * density.node**power).sum(axis=1)
        stderr = moments.std(ddof=1) / np.sqrt(len(moments))
        # 4 standard errors, and rounding for Hessians whose moments do not vary
        assert abs(moments.mean() - exact) <= 4 * stderr + 1e-10 * np.abs(dense).max() ** power
    assert abs(trace.estimate - np.trace(dense)) <= 4 * trace.stderr + 1e-10 * np.abs(dense).max() * n
    assert trace.stderr == pytest.approx(trace.samples.std(ddof=1) / np.sqrt(40))
    assert np.trapezoid(density.density, density.x) == pytest.approx(1, abs=1e-6)
    assert density.weight.sum(axis=1) == pytest.approx(np.ones(40), abs=1e-12)


def test_gradient_and_loss_equal_plain_autograd():
    case = next(case for case in CASES if case.name == "mlp")
    subject = case.build(weight_decay=0.3)
    loss, gradient = HessianOperator(subject).loss_and_gradient()
    model = subject.model
    x, y = (torch.cat(tensors) for tensors in zip(*subject.data, strict=True))
    weights = torch.cat([p.reshape(-1) for p in model.parameters()])
    plain = F.cross_entropy(model(x), y)
    expected = torch.autograd.grad(plain + 0.15 * weights @ weights, list(model.parameters()))
    assert loss == pytest.approx(plain.item(), rel=1e-14)
    assert torch.allclose(gradient, torch.cat([g.reshape(-1) for g in expected]), rtol=1e-12, atol=1e-15)


def test_last_short_batch_weighs_by_its_size():
    torch.manual_seed(1)
    model, x, y = mlp().double(), torch.randn(11, 6).double(), torch.randint(0, 3, (11,))
    whole = HessianOperator(Subject(model, [(x, y)]))
    parts = HessianOperator(Subject(model, [(x[:8], y[:8]), (x[8:], y[8:])]))
    v = torch.randn(whole.size).double()
    assert torch.allclose(whole.matvec(v), parts.matvec(v), rtol=1e-12, atol=1e-14)


def test_noise_floor_is_rounding_for_a_deterministic_subject_and_large_for_a_random_one():
    case = next(case for case in CASES if case.name == "conv_bn_dropout")
    assert HessianOperator(case.build(mode="train")).noise_floor() < 1e-13
    assert HessianOperator(case.build(torch.float32, mode="train")).noise_floor() < 1e-4
    stray = torch.Generator().manual_seed(0)

    class Stray(torch.nn.Module):
        def forward(self, x):
            return x * torch.randn(x.shape, generator=stray, dtype=x.dtype)

    subject = case.build()
    subject.model.insert(0, Stray())
    for graph_memory in (0, 1):
        assert HessianOperator(subject, graph_memory=graph_memory).noise_floor() > 0.05


def test_noise_floor_sees_an_operator_that_is_not_symmetric():
    class ScalesItsGradient(torch.nn.Module):
        """A hook multiplies the gradient by a function of the input, so what is differentiated is no gradient."""

        def forward(self, x):
            if x.requires_grad:
                x.register_hook(lambda gradient: gradient * x.sum())
            return x

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), ScalesItsGradient(), torch.nn.Linear(8, 3)).double()
    subject = Subject(model, [(torch.randn(9, 6).double(), torch.randint(0, 3, (9,)))])
    assert HessianOperator(subject).noise_floor() > 1e-3


def case_of(name):
    return next(case for case in CASES if case.name == name)


def probes(operator, count=3):
    generator = torch.Generator().manual_seed(8)
    return torch.randn(count, operator.size, generator=generator, dtype=torch.float64).to(operator.dtype)


@pytest.mark.parametrize("engine", ["auto", "forward-over-reverse", "pyhessian"])
def test_chosen_parameters_alone_are_variables(engine):
    subject = case_of("conv_bn_dropout").build(mode="train", weight_decay=0.05)
    chosen = HessianOperator(subject, engine=engine, parameters=("8.*", "0.w?ight"))
    assert chosen.names == ["0.weight", "8.weight", "8.bias"]
    assert chosen.sizes == [54, 6, 3] and chosen.size == 63
    whole = HessianOperator(subject)
    rows = torch.cat([part for name, part in positions(whole).items() if name in chosen.names])
    exact = dense_hessian(subject)[rows][:, rows]
    v = probes(chosen)
    # float64 sums of a few dozen terms
    assert (chosen.matmat(v) - v @ exact).norm() <= 1e-12 * (v @ exact).norm()
    loss, gradient = chosen.loss_and_gradient()
    loss_of_whole, gradient_of_whole = whole.loss_and_gradient()
    assert loss == loss_of_whole
    assert torch.allclose(gradient, gradient_of_whole[rows], rtol=1e-12, atol=1e-15)
    assert torch.equal(chosen.weights(), whole.weights()[rows])


def positions(operator):
    return dict(zip(operator.names, torch.arange(operator.size).split(operator.sizes), strict=True))


def test_globs_are_case_sensitive_and_one_that_matches_nothing_names_a_close_match():
    subject = case_of("attention").build()
    with pytest.raises(InputError, match=r"'heed\.weight'.*'head\.weight'") as caught:
        HessianOperator(subject, parameters=("qkv.*", "heed.weight"))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="QKV"):
        HessianOperator(subject, parameters=("QKV.*",))


@pytest.mark.parametrize("names", [["head.weigth"], [], ["head.bias", "head.bias"]])
def test_blocks_of_no_parameters_are_one_sentence(names):
    with pytest.raises(InputError) as caught:
        HessianOperator(case_of("attention").build()).block(names)
    assert "\n" not in str(caught.value)


def test_a_block_of_weights_the_loss_does_not_use_is_the_weight_decay():
    subject = case_of("unused_parameters").build(weight_decay=0.25)
    for graph_memory in (0, 1):
        block = HessianOperator(subject, graph_memory=graph_memory).block(["unused.weight"])
        v = probes(block)
        assert torch.equal(block.matmat(v), 0.25 * v)


def test_the_loss_that_depends_on_none_of_the_chosen_weights_is_one_sentence():
    operator = HessianOperator(case_of("unused_parameters").build(), parameters=("unused.*",))
    for call in (operator.loss_and_gradient, lambda: operator.matvec(probes(operator)[0])):
        with pytest.raises(InputError, match="does not depend"):
            call()


def test_vectors_of_the_wrong_length_are_refused():
    operator = HessianOperator(CASES[0].build())
    with pytest.raises(ValueError, match="columns"):
        operator.matvec(torch.ones(operator.size + 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="columns"):
        operator.block(operator.names[:1]).matmat(probes(operator))


@every_case
def test_loss_elsewhere_is_the_loss_of_a_model_with_these_weights(case):
    subject = case.build(mode="train")
    operator = HessianOperator(subject)
    assert operator.loss_at(operator.weights()) == operator.loss_and_gradient()[0]
    moved = operator.weights() + 0.1 * probes(operator, 1)[0]
    found = operator.loss_at(moved)
    parts = dict(zip(operator.names, moved.split(operator.sizes), strict=True))
    with torch.no_grad():
        for name, parameter in subject.parameters.items():
            parameter.copy_(parts[name].view_as(parameter))
        expected = sum(
            share * subject.batch_loss(subject.parameters, batch, index).item()
            for index, share, batch in subject.weighted_batches()
        )
    assert found == pytest.approx(expected, rel=1e-14)


def test_the_weights_are_a_copy():
    operator = HessianOperator(CASES[0].build())
    operator.weights().zero_()
    assert operator.weights().abs().min() > 0


class Rank:
    """One of several processes; it only writes down what it would sum over all."""

    def __init__(self, rank, size):
        self.rank, self.size, self.sent = rank, size, []

    def sum_(self, tensor):
        assert tensor.dtype == torch.float64
        self.sent.append(tensor.clone())

    def broadcast(self, value):
        return value


@pytest.mark.parametrize("engine", ["auto", "auto/2", "forward-over-reverse", "pyhessian"])
@pytest.mark.parametrize("size", [2, 5])  # 3 batches: uneven, and two processes without any
def test_shares_of_the_processes_sum_to_the_whole_with_one_sum_a_call(engine, size):
    subject = case_of("conv_bn_dropout").build(mode="train", weight_decay=0.05)
    alone = HessianOperator(subject)
    v, names = probes(alone), alone.names[1:3]
    part = v[:, torch.cat([positions(alone)[name] for name in names])]
    calls = [
        lambda operator: operator.matvec(v[0]) - 0.05 * v[0],
        lambda operator: operator.matvec(v[0]) - 0.05 * v[0],  # on kept graphs
        lambda operator: operator.matmat(v) - 0.05 * v,
        lambda operator: operator.block(names).matmat(part) - 0.05 * part,
        lambda operator: torch.full((1,), operator.loss_at(operator.weights() + v[0]), dtype=torch.float64),
        lambda operator: operator.loss_and_gradient()[1] - 0.05 * operator.weights(),
    ]
    worlds = [Rank(rank, size) for rank in range(size)]
    operators = [HessianOperator(subject, engine=engine, world=world) for world in worlds]
    for count, call in enumerate(calls, start=1):
        for operator in operators:
            call(operator)
        assert [len(world.sent) for world in worlds] == [count] * size
        total = sum(world.sent[-1] for world in worlds)
        exact = call(alone)
        if count == len(calls):
            assert total[0].item() == pytest.approx(alone.loss_and_gradient()[0], rel=1e-14)
            total = total[1:]
        # float64 sums of a few dozen terms
        assert (total - exact).norm() <= 1e-12 * exact.norm()


def test_processes_take_the_choice_of_the_first():
    class Second(Rank):
        def broadcast(self, value):
            assert value is None
            return SimpleNamespace(name="forward-over-reverse", group=2, gradients=1.5)

    operator = HessianOperator(CASES[0].build(), engine="measured", world=Second(1, 2))
    assert operator.choice == "forward-over-reverse/2" and operator.group == operator.block(operator.names).group == 2
    assert operator.engine == "measured: forward-over-reverse, groups of 2, 1.5 gradients a product"


def test_tolerance_below_the_noise_floor_is_refused():
    subject = CASES[0].build(torch.float32)
    with pytest.raises(InputError, match="noise floor"):
        hessian.compute(subject, hessian.Config(tolerance=1e-12))


def test_non_finite_loss_is_one_sentence():
    subject = CASES[0].build()
    with torch.no_grad():
        subject.model[1].weight.fill_(float("inf"))
    with pytest.raises(InputError, match="the loss is"):
        hessian.compute(subject)


def test_more_eigenvalues_than_parameters_are_refused():
    with pytest.raises(InputError, match="parameters"):
        hessian.compute(CASES[0].build(), hessian.Config(largest=10_000, max_products=20_000))


def test_not_converged_says_so():
    subject = CASES[2].build()
    config = hessian.Config(parts=("extremes",), largest=3, smallest=2, tolerance=1e-9, max_products=6)
    result = hessian.compute(subject, config)
    assert not result.extremes.converged
    assert any("NOT CONVERGED" in row.remark for row in result.rows())


def test_resume_by_part_sample_and_probe_gives_the_same_bits():
    subject = CASES[2].build(torch.float32)
    config = hessian.Config(largest=2, trace_samples=5, probes=3, steps=4)
    saved = []
    whole = hessian.compute(subject, config, save=saved.append)
    for partial in saved[:: max(1, len(saved) // 5)]:
        resumed = hessian.compute(subject, config, previous=partial)
        for part in ("extremes", "trace", "density"):
            for f in dataclasses.fields(getattr(whole, part)):
                a, b = (getattr(getattr(r, part), f.name) for r in (whole, resumed))
                assert np.array_equal(a, b), (part, f.name)


def test_same_seed_gives_the_same_bits_whatever_the_global_state():
    config = hessian.Config(largest=2, trace_samples=3, probes=2, steps=4)
    first = hessian.compute(CASES[2].build(torch.float32), config)
    torch.manual_seed(99)
    second = hessian.compute(CASES[2].build(torch.float32), config)
    assert np.array_equal(first.density.node, second.density.node)
    assert np.array_equal(first.extremes.largest, second.extremes.largest)
    other = hessian.compute(CASES[2].build(torch.float32, seed=5), config)
    assert not np.array_equal(first.trace.samples, other.trace.samples)


def test_pyhessian_finds_the_same_largest_magnitude():
    pyhessian = pytest.importorskip("pyhessian")
    torch.manual_seed(0)
    model = mlp().eval()
    x, y = torch.randn(40, 6), torch.randint(0, 3, (40,))
    exact = hessian.compute(
        Subject(model, [(x, y)]), hessian.Config(parts=("extremes",), largest=1, smallest=1, tolerance=1e-4)
    ).extremes
    peer = pyhessian.hessian(model, torch.nn.CrossEntropyLoss(), data=(x, y), cuda=False)
    (value,), _ = peer.eigenvalues(maxIter=1000, tol=1e-6, top_n=1)
    assert exact.largest[0] > -exact.smallest[0]
    assert value == pytest.approx(exact.largest[0], rel=1e-3)


def test_curvlinops_gives_the_same_products():
    curvlinops = pytest.importorskip("curvlinops")
    torch.manual_seed(0)
    model = mlp().double()
    data = [(torch.randn(n, 6).double(), torch.randint(0, 3, (n,))) for n in (7, 4)]
    peer = curvlinops.HessianLinearOperator(model, torch.nn.CrossEntropyLoss(), list(model.parameters()), data)
    ours = HessianOperator(Subject(model, data))
    v = torch.randn(ours.size).double()
    assert torch.allclose(ours.matvec(v), peer @ v, rtol=1e-10, atol=1e-13)
