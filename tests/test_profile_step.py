"""`make gpu-profile` must not be found broken on a GPU: here ours, of the smallest step, on the CPU."""

import pytest
import torch

from toco_kernels.common import benchmarks

pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')
pytest.importorskip("timm", reason='needs pip install "toco-kernels[train]"')


@pytest.mark.skipif(torch.cuda.is_available(), reason="what it counts on a GPU is not counted here")
def test_a_step_is_profiled(tmp_path, one_thread):
    benchmarks.make_importable()
    import profile_step

    profile_step.write_folder(tmp_path)
    trainer = profile_step.trainer_of(tmp_path, "deit_tiny_patch16_224", 112, 1)
    text = profile_step.profiled(trainer, "toco_kernels", 1)
    assert "times that the host waits in forward and backward, were there a GPU: 0\n" in text
    assert "kernels launched: none, on a CPU" in text
    assert "aten::mm" in text
    assert "toco::" in text
