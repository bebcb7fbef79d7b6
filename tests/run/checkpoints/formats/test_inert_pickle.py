"""Pickles of PyTorch's modules, read as records: the same tensors, and nothing that is executed."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from score_diffusion.run.checkpoints.formats import inert_pickle
from score_diffusion.run.errors import UserError


def network() -> nn.Module:
    torch.manual_seed(0)
    parts = nn.ModuleDict({"conv": nn.Conv2d(2, 3, 3, bias=False), "norm": nn.BatchNorm1d(3)})
    parts["conv"].weight.data = parts["conv"].weight.data.transpose(2, 3)  # strides that are not contiguous
    return nn.Sequential(nn.Linear(2, 3), parts, nn.Identity())


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_tensors_of_a_module_are_read(protocol: int, dtype: torch.dtype, tmp_path: Path):
    net = network().to(dtype)
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"net": net}, protocol))
    module = inert_pickle.as_dict(inert_pickle.load(tmp_path / "net.pkl"))["net"]
    tensors = inert_pickle.module_tensors(module)
    assert tensors.keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype
    assert inert_pickle.class_name(module) == "Sequential"


class Calls:
    """Something that a pickle makes by a call, with state and items of its own."""

    def __init__(self, *reduced: object) -> None:
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def test_calls_states_and_items_are_recorded(tmp_path: Path):
    witness = tmp_path / "executed"
    made = Calls(os.mkdir, (str(witness),), {"a": 1}, iter([5, 6]), iter([("key", "value")]))
    content = [made, OrderedDict(b=2), {1, 2}, Calls(print, ("shown",)), os.system]
    (tmp_path / "file").write_bytes(pickle.dumps(content))
    record, ordered, numbers, call, name = inert_pickle.load(tmp_path / "file")
    assert record.path.endswith(".mkdir") and record.args == (str(witness),)
    assert inert_pickle.attributes(record) == {"a": 1} and inert_pickle.as_dict(record) == {"key": "value"}
    assert inert_pickle.as_dict(ordered) == {"b": 2} and numbers == {1, 2}
    assert call.args == ("shown",) and issubclass(name, inert_pickle.Inert)
    assert not witness.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"\x80\x04.",
        b"\x80\x05\x96" + (2**60).to_bytes(8, "little"),  # a bytearray of 2⁶⁰ bytes
        b"r\xff\xff\xff\x7f.",  # a memo of 2³¹ places
        b"Pelsewhere\n.",  # an object outside of the file
        b"\x82\x01.",  # a class by its registered number
        b"(" * 10 + b"t" * 11 + b".",
        b"]00000.",
        b"I" + b"9" * 10**5 + b"\n.",
    ],
)
def test_what_is_no_pickle_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match="is damaged or not a pickle"):
        inert_pickle.load(tmp_path / "file")


@pytest.mark.parametrize(
    ("size", "stride", "offset", "match"),
    [
        ((2**20, 2**20), (1, 1), 0, r"tensor of shape \(1048576, 1048576\) with 6 numbers"),
        ((2**20,), (0,), 0, r"tensor of shape \(1048576,\) with 6 numbers"),
        ((3,), (4,), 0, "tensor of shape"),
        ((3,), (1,), 4, "tensor of shape"),
        ((-3,), (1,), 0, "impossible sizes"),
        ((3.0,), (1,), 0, "impossible sizes"),
        ("3", (1,), 0, "impossible sizes"),
        ((3,), (1,), -1, "impossible sizes"),
    ],
)
def test_tensors_must_lie_within_their_numbers(size, stride, offset, match: str, tmp_path: Path):
    net = nn.Linear(2, 3, bias=False)
    function, (storage, _, _, _, *rest) = net.weight.data.__reduce_ex__(2)
    net._parameters["weight"] = Calls(function, (storage, offset, size, stride, *rest))
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(net))
    with pytest.raises(ValueError, match=match):
        inert_pickle.module_tensors(inert_pickle.load(tmp_path / "net.pkl"))


@pytest.mark.parametrize("value", [1, "weight", [1.0], Calls(os.getcwd, ()), Calls(complex, (1, 2))])
def test_anything_but_a_tensor_in_its_place_is_refused(value: object, tmp_path: Path):
    net = nn.Linear(2, 3, bias=False)
    net._parameters["weight"] = value
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(net))
    with pytest.raises(ValueError, match="where a tensor belongs"):
        inert_pickle.module_tensors(inert_pickle.load(tmp_path / "net.pkl"))


def test_a_module_that_contains_itself_is_refused(tmp_path: Path):
    net = nn.Sequential(nn.Linear(1, 1))
    net._modules["loop"] = net
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(net))
    with pytest.raises((ValueError, RecursionError)):
        inert_pickle.module_tensors(inert_pickle.load(tmp_path / "net.pkl"))
