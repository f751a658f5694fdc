"""Memory: graphs are freed at once, nothing grows, and running out of it is one sentence."""

import gc
import weakref

import pytest
import torch
from cases import CASES

from analyze import Subject
from analyze.hessian import HessianOperator
from data_cache import InputError


def probes(operator, count=3):
    generator = torch.Generator().manual_seed(8)
    return torch.randn(count, operator.size, generator=generator, dtype=torch.float64).to(operator.dtype)


class Token:
    """Something a graph holds on to."""


class Watched(torch.nn.Module):
    """Leaves a token in each graph that is built through it, and notes how many there are already."""

    def __init__(self):
        super().__init__()
        self.alive = weakref.WeakSet()
        self.most = 0

    def forward(self, x):
        if x.grad_fn is not None:
            self.most = max(self.most, len(self.alive))
            token = Token()
            self.alive.add(token)
            x.register_hook(lambda gradient, token=token: gradient)
        return x


@pytest.fixture
def no_garbage_collection():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def watched_subject(dtype=torch.float64):
    torch.manual_seed(0)
    watched = Watched()
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), watched, torch.nn.Tanh(), torch.nn.Linear(5, 3)).to(dtype)
    return Subject(model, [(torch.randn(n, 6).to(dtype), torch.randint(0, 3, (n,))) for n in (4, 4, 3)]), watched


@pytest.mark.parametrize("engine", ["auto", "auto/2", "recomputed", "finite-differences", "pyhessian"])
@pytest.mark.parametrize("graph_memory", [0, 1])
def test_graphs_are_freed_without_garbage_collection(no_garbage_collection, engine, graph_memory):
    subject, watched = watched_subject()
    for _ in range(20):
        operator = HessianOperator(subject, engine=engine, graph_memory=graph_memory)
        v = probes(operator)
        operator.matmat(v)
        operator.block(operator.names[:2]).matvec(v[0, :35])
        operator.loss_and_gradient()
        keeps = graph_memory and engine not in ("recomputed", "finite-differences")
        assert len(watched.alive) == (3 if keeps else 0)
        if not keeps:
            assert watched.most == 0  # never a second graph beside the first
        del operator
        assert len(watched.alive) == 0


@pytest.mark.parametrize("engine", ["auto", "recomputed", "forward-over-reverse", "finite-differences", "pyhessian"])
def test_no_tensor_is_left_by_products_and_operators(no_garbage_collection, engine):
    def tensors():
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    subject = next(case for case in CASES if case.name == "conv_bn_dropout").build(torch.float32, mode="train")
    operator = HessianOperator(subject, engine=engine)
    v = probes(operator, 1)[0]
    operator.matvec(v)
    before = tensors()
    for _ in range(50):
        operator.matvec(v)
    assert tensors() == before
    for _ in range(20):
        HessianOperator(subject, engine=engine).matvec(v)
    assert tensors() == before


@pytest.mark.parametrize("engine", ["auto", "auto/2", "recomputed", "forward-over-reverse", "finite-differences",
                                    "pyhessian", "measured"])  # fmt: skip
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_exhausted_memory_is_one_sentence(engine, where, error):
    class Greedy(torch.nn.Module):
        def forward(self, x):
            def fail(gradient):
                raise error

            if where == "forward":
                raise error
            if x.requires_grad:
                x.register_hook(fail)
            return x

    subject, _ = watched_subject()
    subject.model[1] = Greedy()
    with pytest.raises(InputError, match="memory ran out") as caught:
        HessianOperator(subject, engine=engine).matmat(torch.ones(2, 53, dtype=torch.float64))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="memory ran out"):
        HessianOperator(subject).loss_and_gradient()


def test_a_product_after_a_failed_one_is_right():
    subject, watched = watched_subject()
    operator = HessianOperator(subject)
    v = probes(operator)
    calls = 0

    def fail_in_the_second_batch(module, arguments):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("a passing fault")

    hook = watched.register_forward_pre_hook(fail_in_the_second_batch)
    with pytest.raises(InputError, match="passing fault"):
        operator.matmat(v)
    hook.remove()
    assert torch.equal(operator.matmat(v), HessianOperator(subject).matmat(v))
