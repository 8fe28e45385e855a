import torch
from torch.utils.data import DataLoader, IterableDataset

from mllm4d.data.transport import SMALL, pack, unpack


class Packed(IterableDataset):
    def __iter__(self):
        shared = torch.arange(SMALL, dtype=torch.float32)
        small = torch.arange(5)
        half = torch.ones(SMALL, dtype=torch.bfloat16)
        tiny = torch.tensor([1.5], dtype=torch.bfloat16)
        yield pack([{"shared": shared, "small": small, "n": n, "half": half, "tiny": tiny} for n in range(3)])


def test_what_comes_from_another_process_is_the_same_and_lies_in_this_one():
    (packed,) = DataLoader(Packed(), batch_size=None, num_workers=1, collate_fn=lambda x: x)
    rows = unpack(packed)
    assert len(packed[1]) == 2  # sent once for all rows
    for n, row in enumerate(rows):
        assert row["n"] == n
        assert torch.equal(row["shared"], torch.arange(SMALL, dtype=torch.float32))
        assert torch.equal(row["small"], torch.arange(5))
        assert row["shared"] is rows[0]["shared"]
        assert row["tiny"].dtype == row["half"].dtype == torch.bfloat16
        assert float(row["tiny"]) == 1.5
        assert not any(value.is_shared() for key, value in row.items() if key in ("shared", "small", "half"))
