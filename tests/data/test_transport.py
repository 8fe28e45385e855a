import pickle

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mllm4d.data.transport import PER_READER, SLOT, SMALL, Parcel, Slots, pack, unpack


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


class Many(IterableDataset):
    def __init__(self, slots, count):
        self.slots, self.count = slots, count

    def __iter__(self):
        reader = get_worker_info().id
        for n in range(self.count):
            value = {"n": n, "a": torch.full((SMALL + n,), n, dtype=torch.uint8), "b": torch.full((3, SMALL), float(n))}
            yield pack(value, self.slots, reader)


@pytest.mark.parametrize("readers", [1, 2])
def test_shared_memory_is_used_again_and_again(readers):
    slots, count = Slots(readers), 5 * PER_READER
    kept, used = [], set()
    for packed in DataLoader(Many(slots, count), batch_size=None, num_workers=readers, collate_fn=lambda x: x):
        assert isinstance(packed[1], Parcel)
        used.add(packed[1].slot)
        kept.append(unpack(packed, slots))
    assert len(kept) == readers * count
    assert used <= set(range(readers * PER_READER))
    # What was unpacked earlier stays as it was.
    for row in kept:
        assert torch.equal(row["a"], torch.full((SMALL + row["n"],), row["n"], dtype=torch.uint8))
        assert torch.equal(row["b"], torch.full((3, SMALL), float(row["n"])))


def test_what_finds_no_slot_goes_the_other_way():
    slots, large = Slots(1), torch.arange(SMALL, dtype=torch.float32)
    packed = [pack(large + n, slots) for n in range(PER_READER + 1)]
    assert [isinstance(content, Parcel) for _, content in packed] == [True] * PER_READER + [False]
    for n, one in enumerate(packed):
        assert torch.equal(unpack(one, slots), large + n)
    assert isinstance(pack(large, slots)[1], Parcel)  # they are free again
    for small in (torch.arange(5), torch.zeros(SLOT + 1, dtype=torch.uint8)):
        assert not isinstance(pack(small, slots)[1], Parcel)
    # Where processes are not forked, there is no such memory.
    elsewhere = pickle.loads(pickle.dumps(slots))
    assert torch.equal(unpack(pack(large, elsewhere), slots), large)
