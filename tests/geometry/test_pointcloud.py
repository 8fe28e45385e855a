import sys

import pytest
import torch
from scipy.spatial import cKDTree

from mllm4d.geometry.pointcloud import load_open3d, one_thread, remove_outliers, voxel_downsample


def test_load_open3d_gives_a_module_that_works():
    cloud = load_open3d().geometry.PointCloud()
    assert len(cloud.points) == 0


def test_load_open3d_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)  # what Python itself stores for a module that is not there
    with pytest.raises(ImportError, match=r'pip install "mllm4d\[curate\]"'):
        load_open3d()


def test_one_thread_is_undone():
    utility = load_open3d().utility
    before = utility.get_max_threads()
    with one_thread() as open3d:
        assert open3d.utility.get_max_threads() == 1
    assert utility.get_max_threads() == before


def test_remove_outliers_agrees_with_scipy():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    points[:5] *= 6
    # Open3D: neighbours include the point itself; the deviation is the sample's (M - 1).
    mean = torch.from_numpy(cKDTree(points.numpy()).query(points.numpy(), k=10)[0]).mean(1)
    expected = mean < mean.mean() + 1.5 * mean.std()
    keep = remove_outliers(points, neighbours=10, std_ratio=1.5)
    assert torch.equal(keep, expected)
    assert 0 < int((~keep).sum()) < 60


def test_remove_outliers_keeps_a_tiny_cloud_whole():
    points = torch.tensor([[0.0, 0, 0], [0, 0, 0.1], [0, 0, 50]])
    assert remove_outliers(points, neighbours=20).tolist() == [True] * 3
    assert remove_outliers(points[:0]).shape == (0,)


def test_voxel_downsample_gives_the_means_of_the_cubes():
    points = torch.tensor([[0.0, 0, 0], [0.2, 0, 0], [5.0, 1, 1], [5.2, 1.2, 1.2], [9, 9, 9]])
    thinned = voxel_downsample(points, 1.0)
    assert thinned.dtype == torch.float32
    torch.testing.assert_close(thinned, torch.tensor([[0.1, 0, 0], [5.1, 1.1, 1.1], [9.0, 9, 9]]))
    assert voxel_downsample(points[:0], 1.0).shape == (0, 3)


@pytest.mark.parametrize("points", [torch.zeros(4), torch.zeros(4, 2), torch.zeros(1, 4, 3)])
def test_wrong_shapes_are_named(points):
    with pytest.raises(ValueError, match=r"\[M, 3\]"):
        remove_outliers(points)
    with pytest.raises(ValueError, match=r"\[M, 3\]"):
        voxel_downsample(points, 1.0)


def test_voxel_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        voxel_downsample(torch.zeros(1, 3), 0.0)
