"""Replicated and sharded networks in a group of one process; test_processes.py has groups of several."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from score_diffusion.models import UNet
from score_diffusion.run.distributed.model import full_tensor, is_sharded, replicate, set_full, shard


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.new_group()
    dist.destroy_process_group()


def network() -> UNet:
    torch.manual_seed(0)
    net = UNet(1, 8, (1,), 1, ())
    for weights in net.parameters():  # at first the output is 0
        nn.init.normal_(weights, std=0.1)
    return net


def test_a_replicated_network_computes_the_same(group: dist.ProcessGroup):
    x, noise = torch.randn(2, 1, 8, 8), torch.randn(2)
    one, other = network(), network()
    replica = replicate(other, group)
    assert torch.equal(replica(x, noise), one(x, noise))
    replica(x, noise).sum().backward()
    one(x, noise).sum().backward()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_a_sharded_network_computes_the_same_from_shards(group: dist.ProcessGroup):
    x, noise = torch.randn(2, 1, 8, 8), torch.randn(2)
    one, other = network(), network()
    shard(other, group)
    with torch.no_grad():
        torch.testing.assert_close(other(x, noise), one(x, noise))
    assert all(map(is_sharded, other.parameters())) and not any(map(is_sharded, one.parameters()))
    assert other.state_dict().keys() == one.state_dict().keys()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(full_tensor(b), a) and full_tensor(a) is a


def test_part_of_a_sharded_tensor_is_set(group: dist.ProcessGroup):
    layer = nn.Linear(3, 4)
    shard(layer, group)
    before, where = full_tensor(layer.weight).clone(), torch.tensor([True, False, False, True])[:, None]
    with torch.no_grad():
        set_full(layer.weight, where, torch.full((4, 3), 7.0))
    assert is_sharded(layer.weight)
    torch.testing.assert_close(full_tensor(layer.weight), torch.where(where, torch.tensor(7.0), before))
