import pytest

from mllm4d.curate.splits import assign_splits


@pytest.mark.parametrize(
    ("count", "sizes"), [(10, (8, 1, 1)), (4, (2, 1, 1)), (3, (1, 1, 1)), (2, (1, 1, 0)), (1, (1, 0, 0))]
)
def test_split_sizes(count, sizes):
    keys = [f"k{n}" for n in range(count)]
    splits = assign_splits(keys, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=0)
    assert tuple(len(splits.get(name, ())) for name in ("train", "val", "test")) == sizes
    assert sorted(key for members in splits.values() for key in members) == sorted(keys)
