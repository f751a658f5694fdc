"""`python -m models.evaluate`: the table of README."""

import json
import sys

import pytest
import torch
from commands import metadata

from data_cache import load
from ext import status
from models import get_model, load_checkpoint, save_checkpoint
from models.evaluate import main
from models.metrics import evaluate


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "mc.safetensors"
    save_checkpoint(path, get_model("resnet_mcdo_18", 10, width=2), metadata("resnet_mcdo_18", width=2))
    return path


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr()


def test_numbers_are_those_of_evaluate_on_the_test_split(monkeypatch, capsys, checkpoint):
    status, printed = run(
        monkeypatch, capsys, "--ckpt", checkpoint, "--limit", 50, "--passes", 1, 3, "--quiet", "--json"
    )
    rows = json.loads(printed.out)[str(checkpoint)]
    assert status == 0 and list(rows) == ["1 pass", "3 passes"]
    data = load("fashion_mnist", "test").limit(50).with_normalization([0.286] * 3, [0.353] * 3)
    expected = evaluate(load_checkpoint(checkpoint).model, data.batches(125), passes=3)
    assert rows["3 passes"]["nll"] == pytest.approx(expected.mean_nll, rel=1e-4)  # channels_last rounds otherwise
    assert rows["3 passes"]["images"] == 50


def test_path_of_the_smoothing_operator_is_told_once(monkeypatch, capsys, checkpoint, tmp_path):
    """Whatever the network is called; beside the JSON, not in it."""
    smooth, options = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"], {"num_sblocks": [1, 0, 0, 0]}
    for path in smooth:
        model = get_model("resnet_dnn_18", 10, width=2, **options)
        save_checkpoint(path, model, metadata("resnet_dnn_18", width=2, **options))
    few = ["--limit", 4, "--passes", 1, "--quiet"]
    _, printed = run(monkeypatch, capsys, "--ckpt", *smooth, *few)
    assert [line for line in printed.out.splitlines() if "smoothing operator" in line] == [status()]
    _, printed = run(monkeypatch, capsys, "--ckpt", *smooth, *few, "--json")
    assert set(json.loads(printed.out)) == set(map(str, smooth)) and printed.err == status() + "\n"
    _, printed = run(monkeypatch, capsys, "--ckpt", checkpoint, *few)
    assert "smoothing operator" not in printed.out + printed.err


def test_bad_input_is_one_sentence(monkeypatch, capsys, checkpoint, tmp_path):
    for arguments in (["--ckpt", tmp_path / "none.pt"], ["--ckpt", checkpoint, "--passes", 0]):
        status, printed = run(monkeypatch, capsys, *arguments)
        assert status == 2 and printed.err.startswith("error: ") and printed.err.count("\n") == 1
