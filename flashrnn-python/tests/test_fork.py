"""Processes that are forked after the parent has used the package.

They run PyTorch with one thread, as DataLoader sees to, because OpenMP does not survive a fork.
Threads of our own do: see `test_package.py`.
"""

import torch
from torch.utils.data import DataLoader, Dataset

import reference
from flashrnn_rs import rnn


def forward_and_backward():
    arrays = reference.inputs("lstm", batch=16, time=20, heads=4, dim=16)
    given = [torch.tensor(array, dtype=torch.float32, requires_grad=True) for array in arrays]
    h, _ = rnn(*given)
    return [h.detach(), *torch.autograd.grad(h.square().sum(), given)]


class Data(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, _):
        return forward_and_backward()


def test_workers_of_a_data_loader():
    want = forward_and_backward()
    workers = {"num_workers": 2, "multiprocessing_context": "fork", "timeout": 60}
    for _ in range(20):
        for got in DataLoader(Data(), batch_size=None, **workers):
            for one, other in zip(got, want, strict=True):
                torch.testing.assert_close(one, other)
    for one, other in zip(forward_and_backward(), want, strict=True):
        assert torch.equal(one, other)
