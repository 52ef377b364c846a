"""Files and errors of a step that failed."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from headstart.training.interruption import capture, is_out_of_memory


def test_a_batch_is_written_as_it_was(tmp_path):
    rows, batch = np.array([9, 2, 5])[::2], np.arange(12.0).reshape(2, 6)[:, ::2]
    state = {"w": torch.arange(6.0).reshape(2, 3).T}
    path = capture(tmp_path / "new" / "folder", state, rows, batch)
    tensors = load_file(path)
    assert tensors["rows"].tolist() == [9, 5]
    assert np.array_equal(tensors["inputs"].numpy(), batch)
    assert torch.equal(tensors["weights.w"], state["w"])


def test_without_a_folder_it_is_among_the_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = capture(None, {}, np.array([1]), np.zeros((1, 2)))
    assert path.is_relative_to(tmp_path)
    assert path.is_file()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_out_of_memory_is_recognised(error, expected):
    assert is_out_of_memory(error) is expected
