"""An ensemble's output is the logarithm of the exact mean probability."""

import math

import pytest
import torch
from torch import nn

from data_cache import InputError
from models import Ensemble, mean_log_probability


class Constant(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def test_softmax_of_the_output_is_the_mean_of_the_members_probabilities():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    output = Ensemble([Constant(member.tolist()) for member in logits])(torch.zeros(2, 1))
    mean = logits.softmax(-1).mean(0).expand(2, -1)
    # A handful of float64 roundings of numbers near 1; the output itself is already normalised.
    torch.testing.assert_close(output.exp(), mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(output.softmax(-1), mean, rtol=1e-14, atol=0)


def test_log_probabilities_stay_exact_where_softmax_underflows():
    first, second = [1000.0, -1000.0, 0.0], [-1000.0, -1000.0, 900.0]
    output = Ensemble([Constant(first), Constant(second)])(torch.zeros(1, 1))[0]
    assert torch.softmax(torch.tensor(first, dtype=torch.float64), 0)[1] == 0
    # Class 1 has probabilities e^-2000 and e^-1900 (to 1 part in e^100), class 0 has 1 and e^-1900.
    expected = [-math.log(2), -1900 - math.log(2), -math.log(2)]
    torch.testing.assert_close(output, torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0)


def test_one_member_is_its_own_log_softmax():
    logits = torch.tensor([[1.0, -2.0, 1000.0]])
    torch.testing.assert_close(mean_log_probability([logits.log_softmax(-1)]), logits.log_softmax(-1), rtol=0, atol=0)


def test_gradients_reach_every_member():
    ensemble = Ensemble([Constant([1.0, 2.0]), Constant([0.0, -1.0])])
    ensemble(torch.zeros(1, 1))[0, 0].backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in ensemble.parameters())


def test_keys_number_the_members():
    ensemble = Ensemble([nn.Linear(2, 2), nn.Linear(2, 2)])
    expected = [f"models.{i}.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")]
    assert list(ensemble.state_dict()) == expected


def test_the_name_comes_from_the_first_member_unless_given():
    member = nn.Linear(1, 1)
    assert Ensemble([member]).name == "model_ensemble"
    member.name = "resnet_dnn_18"
    assert Ensemble([member]).name == "resnet_dnn_18_ensemble"
    assert Ensemble([member], name="mine").name == "mine"


class Wrapped(nn.Module):
    """A network that gives more than its logits."""

    def __init__(self, model, wrap):
        super().__init__()
        self.model, self.wrap = model, wrap

    def forward(self, x):
        return self.wrap(self.model(x))


@pytest.mark.parametrize("wrap", [lambda z: (z, -z), lambda z: {"features": -z, "logits": z}])
def test_members_may_give_several_outputs(wrap):
    plain = [Constant([1.0, 2.0]), Constant([0.0, -1.0])]
    wrapped = Ensemble([Wrapped(member, wrap) for member in plain])
    assert torch.equal(wrapped(torch.zeros(3, 1)), Ensemble(plain)(torch.zeros(3, 1)))


def test_members_that_give_no_tensor_are_one_sentence():
    with pytest.raises(InputError, match="gives a str, not a tensor"):
        Ensemble([Wrapped(Constant([1.0]), str)])(torch.zeros(1, 1))


def test_no_members_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])
