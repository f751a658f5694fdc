"""Every engine against the dense Hessian in float64, and the model as each of them leaves it."""

import copy
from functools import cache
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, dense_hessian
from torch import nn

from analyze import Subject
from analyze.hessian import HessianOperator, engines
from data_cache import InputError
from models.randomness import fixed_randomness

EXACT = [
    "auto", "auto/3", "recomputed", "recomputed/2", "forward-over-reverse", "forward-over-reverse/3", "pyhessian",
]  # fmt: skip
CASE = {case.name: case for case in CASES}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_exact = pytest.mark.parametrize("engine", EXACT)
every_engine = pytest.mark.parametrize("engine", [*EXACT, "finite-differences"])


def vectors(operator, count=5):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(count, operator.size, generator=generator, dtype=torch.float64).to(operator.dtype)


def relative_error(found, exact):
    return (torch.linalg.vector_norm(found.double() - exact) / torch.linalg.vector_norm(exact)).item()


def used_case(case, engine):
    if (case.name, engine) == ("unused_parameters", "pyhessian"):
        pytest.skip("PyHessian can't; it has its own test")
    if case.name == "mlp_mse" and engine.startswith("forward"):
        pytest.skip("torch has no forward mode for mse_loss with fixed targets; it has its own test")


@cache
def dense_of(case, mode, weight_decay):
    """In float64, computed once."""
    return dense_hessian(case.build(mode=mode, weight_decay=weight_decay))


def rows_of(operator, names):
    """Positions of these parameters' entries in the flat vector."""
    offsets = dict(zip(operator.names, torch.arange(operator.size).split(operator.sizes), strict=True))
    return torch.cat([offsets[name] for name in names])


@every_case
@every_exact
@pytest.mark.parametrize("mode, weight_decay", [("eval", 0.0), ("train", 0.05)])
def test_products_and_blocks_equal_the_dense_hessian(case, engine, mode, weight_decay):
    used_case(case, engine)
    subject = case.build(mode=mode, weight_decay=weight_decay)
    dense = dense_of(case, mode, weight_decay)
    operator = HessianOperator(subject, engine=engine)
    v = vectors(operator)
    # float64 sums of at most some hundred terms: 1e-12 is 5000 roundings
    assert relative_error(operator.matvec(v[0]), dense @ v[0]) <= 1e-12
    assert relative_error(operator.matmat(v), v @ dense) <= 1e-12
    names = operator.names[::-2]
    block, rows = operator.block(names), rows_of(operator, names)
    assert (block.size, block.names) == (len(rows), names)
    part, exact = v[:, rows], dense[rows][:, rows]
    # small blocks of a large Hessian are rounded like the large one
    bound = 1e-12 * dense.norm() * part.norm()
    assert (block.matvec(part[0]) - exact @ part[0]).norm() <= bound
    assert (block.matmat(part) - part @ exact).norm() <= bound


@every_case
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_finite_differences_equal_the_dense_hessian_to_eps_two_thirds(case, mode):
    subject = case.build(mode=mode, weight_decay=0.05)
    dense = dense_of(case, mode, 0.05)
    operator = HessianOperator(subject, engine="finite-differences")
    v = vectors(operator, 2)
    # truncation and rounding are both of order eps^(2/3) = 4e-11, times ratios of derivatives of smooth networks
    assert relative_error(operator.matmat(v), v @ dense) <= 1e-7
    assert torch.equal(operator.matvec(v[1]), operator.matmat(v)[1])
    rows = rows_of(operator, operator.names[:1])
    found = operator.block(operator.names[:1]).matvec(v[0][rows])
    assert (found - dense[rows][:, rows] @ v[0][rows]).norm() <= 1e-7 * dense.norm() * v[0].norm()
    assert not operator.matvec(torch.zeros_like(v[0])).any()


@every_case
@every_exact
def test_float32_products_are_good_to_float32(case, engine):
    used_case(case, engine)
    dense = dense_of(case, "train", 0.05)
    operator = HessianOperator(case.build(torch.float32, mode="train", weight_decay=0.05), engine=engine)
    v = vectors(operator, 4)
    assert operator.matmat(v).dtype == torch.float32
    # 1000 roundings of 6e-8: BatchNorm over a few values and three layers amplify them
    assert relative_error(operator.matmat(v), v.double() @ dense) <= 6e-5


@every_case
@every_engine
def test_one_vector_at_once_has_the_bits_of_a_product(case, engine):
    used_case(case, engine)
    operator = HessianOperator(case.build(torch.float32, mode="train"), engine=engine)
    v = vectors(operator, 1)
    assert torch.equal(operator.matmat(v)[0], operator.matvec(v[0]))


@every_case
def test_kept_and_recomputed_graphs_give_the_same_bits(case):
    subject = case.build(torch.float32, mode="train", weight_decay=0.05)
    kept = HessianOperator(subject)
    some = HessianOperator(subject, graph_memory=0)
    kept.matvec(vectors(kept)[0])
    assert "3 of 3" in kept.engine or "2 of 2" in kept.engine
    some._budget = 1.5 * kept._kept_bytes / len(kept._kept)  # room for one of the graphs
    v, names = vectors(kept), kept.names[::-2]
    part = v[:, rows_of(kept, names)]
    others = [some, HessianOperator(subject, engine="recomputed"), HessianOperator(subject, graph_memory=0)]
    for operator in others:
        for _ in range(2):
            assert torch.equal(operator.matmat(v), kept.matmat(v))
            assert torch.equal(operator.block(names).matmat(part), kept.block(names).matmat(part))
    assert len(some._kept) == 1
    for engine in ("auto/2", "recomputed/2"):
        assert torch.equal(
            HessianOperator(subject, engine=engine).matmat(v), HessianOperator(subject, engine="auto/2").matmat(v)
        )


@every_engine
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_found(engine, mode, fails):
    subject = CASE["conv_bn_dropout"].build(torch.float32, mode=mode, weight_decay=0.1)
    model = subject.model
    model.train()
    model[5].eval()
    model[0].weight.grad = torch.randn_like(model[0].weight)
    model[8].bias.requires_grad_(False)
    calls = 0

    def loss(output, y):
        nonlocal calls
        calls += 1
        if fails and calls > 2:
            raise KeyError("a fault of the user's loss")
        return F.cross_entropy(output, y)

    subject.loss = loss
    before = state_of(model)
    operator = HessianOperator(subject, engine=engine, graph_memory=0)
    try:
        for row in vectors(operator, 2):
            operator.matvec(row)
            operator.block(operator.names[1:3]).matmat(vectors(operator.block(operator.names[1:3]), 2))
    except KeyError:
        assert fails
    assert calls > 2
    after = state_of(model)
    for key, value in before.items():
        same = all(map(torch.equal, value, after[key])) if key in ("tensors", "generator") else value == after[key]
        assert same, key


def state_of(model):
    backends = torch.backends
    return {
        "tensors": [t.clone() for t in model.state_dict().values()] + [model[0].weight.grad.clone()],
        "generator": [torch.get_rng_state()],
        "identity": [id(p) for p in model.parameters()] + [id(b) for b in model.buffers()],
        "grads": [p.grad is None for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "tracking": [getattr(m, "track_running_stats", None) for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()],
        "flags": (backends.cudnn.deterministic, backends.cudnn.benchmark, backends.cudnn.allow_tf32,
                  backends.cuda.flash_sdp_enabled(), torch.is_grad_enabled()),
    }  # fmt: skip


@pytest.mark.parametrize("tracks", [True, False])
def test_train_mode_gives_the_bits_of_the_model_in_train_mode(tracks):
    subject = CASE["conv_bn_dropout"].build(torch.float32, mode="train", seed=6)
    subject.model[1].track_running_stats = tracks
    x, y = next(iter(subject.data))
    twin = copy.deepcopy(subject.model).train()
    with fixed_randomness("cpu", 6, 2, 0):
        expected = F.cross_entropy(twin(x), y)
    gradients = torch.autograd.grad(expected, list(twin.parameters()))
    value = subject.batch_loss(subject.parameters, (x, y), 0, 2)
    assert torch.equal(value, expected)
    assert all(map(torch.equal, torch.autograd.grad(value, list(subject.parameters.values())), gradients))
    assert subject.model[1].track_running_stats is tracks
    assert not torch.equal(twin[1].running_mean, subject.model[1].running_mean) or not tracks


def test_batch_norm_kept_in_eval_by_its_model_uses_its_running_statistics():
    class Frozen(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(False)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), Frozen(5), nn.Tanh(), nn.Linear(5, 3)).double().train()
    model[1].running_mean.normal_()
    x, y = torch.randn(4, 6).double(), torch.randint(0, 3, (4,))
    subject = Subject(model, [(x, y)], mode="train")
    assert torch.equal(subject.batch_loss(subject.parameters, (x, y), 0), F.cross_entropy(model(x), y))


def test_pyhessian_and_weights_the_loss_does_not_use_are_one_sentence():
    subject = CASE["unused_parameters"].build()
    operator = HessianOperator(subject, engine="pyhessian")
    with pytest.raises(InputError, match=r"PyHessian.*unused.weight, unused.bias") as caught:
        operator.matvec(torch.ones(operator.size, dtype=torch.float64))
    assert "\n" not in str(caught.value)
    left = HessianOperator(subject, engine="pyhessian", parameters=["used.*"])
    v = vectors(left)
    exact = HessianOperator(subject, parameters=["used.*"])
    assert relative_error(left.matmat(v), exact.matmat(v)) <= 1e-14


class Unbatchable(nn.Module):
    """Looks at a number of each gradient that passes, which a batch of gradients does not have."""

    def forward(self, x):
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient * (1.0 if gradient.abs().max().item() >= 0 else 0.0))
        return x


class Doubled(torch.autograd.Function):
    """Has derivatives of any order, but no forward mode."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class NoForwardMode(nn.Module):
    def forward(self, x):
        return Doubled.apply(x)


def with_layer(layer, dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), layer, nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    return Subject(model, [(torch.randn(n, 6).to(dtype), torch.randint(0, 3, (n,))) for n in (4, 3)])


@pytest.mark.parametrize("graph_memory", [0, 1])
def test_vectors_go_one_by_one_where_an_operation_can_not_be_batched(graph_memory):
    subject = with_layer(Unbatchable())
    grouped = HessianOperator(subject, engine="auto/3", graph_memory=graph_memory)
    v = vectors(grouped)
    for _ in range(2):
        assert torch.equal(grouped.matmat(v), HessianOperator(subject).matmat(v))
    assert relative_error(grouped.matmat(v), v @ dense_hessian(subject)) <= 1e-12


@pytest.mark.parametrize("build", [lambda: with_layer(NoForwardMode()), CASE["mlp_mse"].build])
def test_model_without_forward_mode_is_one_sentence_and_measured_passes_over_it(build):
    subject = build()
    operator = HessianOperator(subject, engine="forward-over-reverse")
    v = vectors(operator)
    with pytest.raises(InputError) as caught:
        operator.matvec(v[0])
    assert "\n" not in str(caught.value)
    measured = HessianOperator(subject, engine="measured")
    assert "forward" not in measured.choice
    assert relative_error(measured.matmat(v), v @ dense_hessian(subject)) <= 1e-12


@every_case
@pytest.mark.parametrize("graph_memory", [0, 1])
def test_choice_recreates_a_measured_operator_bit_for_bit(case, graph_memory):
    subject = case.build(torch.float32, mode="train", weight_decay=0.05)
    measured = HessianOperator(subject, engine="measured", graph_memory=graph_memory)
    again = HessianOperator(subject, engine=measured.choice, graph_memory=graph_memory)
    assert (again.choice, again.group) == (measured.choice, measured.group)
    v = vectors(measured)
    assert torch.equal(again.matmat(v), measured.matmat(v))
    assert measured.engine.startswith("measured: ") and measured.engine.endswith("gradients a product")


@pytest.mark.parametrize(
    "prices, graph_memory, choice",
    [
        # (seconds of a group of k on a graph, by forward mode); building the graph takes one
        ((lambda k: 1, lambda k: 5), 1, "auto/4"),
        ((lambda k: k**2, lambda k: 50), 1, "auto"),
        ((lambda k: k + (k == 2), lambda k: 0.5 * k**2), 1, "forward-over-reverse"),
        ((lambda k: k, lambda k: 0.4 + k / 2), 1, "forward-over-reverse/4"),
        ((lambda k: k**1.1, lambda k: 3), 1, "auto"),  # cheapest in groups of 4 only, and most products are single
        ((lambda k: 1, lambda k: 2.5), 0, "recomputed"),
        ((lambda k: 1, lambda k: 1.5), 0, "forward-over-reverse"),
    ],
)
def test_measured_picks_the_cheapest_for_each_vector(monkeypatch, prices, graph_memory, choice):
    now = 0.0
    for price, engine in zip(prices, (engines.DoubleBackward, engines.ForwardOverReverse), strict=True):

        def products(self, vectors, names, keep, price=price, plain=engine.products):
            nonlocal now
            now += price(len(vectors))
            return plain(self, vectors, names, keep)

        monkeypatch.setattr(engine, "products", products)

    build = engines.DoubleBackward.__init__

    def building(*arguments):
        nonlocal now
        now += 1
        build(*arguments)

    def clock():
        nonlocal now
        now += 1e-6
        return now

    monkeypatch.setattr(engines.DoubleBackward, "__init__", building)
    monkeypatch.setattr(engines, "time", SimpleNamespace(perf_counter=clock))
    operator = HessianOperator(CASE["mlp"].build(), engine="measured", graph_memory=graph_memory)
    assert operator.choice == choice


def test_measured_leaves_out_an_engine_that_is_wrong(monkeypatch):
    plain = engines.ForwardOverReverse.products
    now = 0.0

    def clock():
        nonlocal now
        now += 1.0
        return now

    def wrong(self, vectors, names, keep):
        nonlocal now
        now -= 0.9  # and faster than all others
        return plain(self, vectors, names, keep) * (1 + 1e-9)

    monkeypatch.setattr(engines, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(engines.ForwardOverReverse, "products", wrong)
    assert "forward" not in HessianOperator(CASE["mlp"].build(), engine="measured").choice


@pytest.mark.parametrize(
    "engine, words",
    [
        ("fastest", "no engine 'fastest'"),
        ("auto/", "number"),
        ("auto/0", "number"),
        ("auto/two", "number"),
        ("pyhessian/2", "one vector at a time"),
        ("finite-differences/2", "one vector at a time"),
        ("measured/2", "one vector at a time"),
    ],
)
def test_engines_that_do_not_exist_are_one_sentence(engine, words):
    with pytest.raises(InputError, match=words) as caught:
        HessianOperator(CASE["mlp"].build(), engine=engine)
    assert "\n" not in str(caught.value)


def test_noise_floor_tells_how_far_an_engine_is_from_double_backward(monkeypatch):
    subject = CASE["mlp"].build()
    assert HessianOperator(subject, engine="forward-over-reverse").noise_floor() < 1e-14
    assert 1e-13 < HessianOperator(subject, engine="finite-differences").noise_floor() < 1e-7
    plain = engines.ForwardOverReverse.products
    monkeypatch.setattr(engines.ForwardOverReverse, "products", lambda *a: plain(*a) * 1.01)
    # symmetric and repeatable, but wrong by 1 %
    assert HessianOperator(subject, engine="forward-over-reverse").noise_floor() == pytest.approx(0.01, rel=0.02)


class Once(torch.autograd.Function):
    """tanh that can be differentiated only once."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return gradient * (1 - y * y)


class OnceTanh(nn.Module):
    def forward(self, x):
        return Once.apply(x)


def test_finite_differences_serve_a_model_that_can_be_differentiated_only_once():
    subject, twin = with_layer(OnceTanh()), with_layer(nn.Tanh())
    operator = HessianOperator(subject, engine="finite-differences")
    v = vectors(operator)
    assert relative_error(operator.matmat(v), v @ dense_hessian(twin)) <= 1e-7
    assert operator.noise_floor() < 1e-7
    for engine in ("auto", "measured", "pyhessian"):
        with pytest.raises(InputError) as caught:
            HessianOperator(subject, engine=engine).matvec(v[0])
        assert "\n" not in str(caught.value)
