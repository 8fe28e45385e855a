import pickle

import pytest
import torch
from transformers import Qwen3VLVideoProcessor

from mllm4d.models.patches import PIXELS, Patches, identity, join, moved, patchify


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_rows_by_hand():
    # Two frames of 4x4 pixels, patches of one pixel, merged 2x2, two frames a step: channels stand before frames.
    frames = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 4, 3)
    rows = patchify(frames, patch=1, merge=2, step=2)
    assert rows.shape == (16, 6)

    def row(y, x):
        return [int(frames[t, y, x, c]) for c in range(3) for t in range(2)]

    # The four patches of a token come together: (0, 0), (0, 1), (1, 0), (1, 1), then those of the token to the right.
    assert rows[:5].tolist() == [row(0, 0), row(0, 1), row(1, 0), row(1, 1), row(0, 2)]
    assert rows[8].tolist() == row(2, 0)


@pytest.mark.parametrize("patch", [8, 14, 16])
@pytest.mark.parametrize(("count", "step"), [(4, 2), (5, 2), (1, 2), (16, 8)])
def test_rows_are_the_processors(patch, count, step):
    frames = noise(count, 4 * patch, 6 * patch, 3)
    processor = Qwen3VLVideoProcessor(
        patch_size=patch, temporal_patch_size=step, size={"shortest_edge": 1, "longest_edge": 10**9}
    )
    # Its own cut of the same frames, here of bytes; not contiguous in memory, as frames after scaling are.
    expected = processor.patchify(frames.permute(0, 3, 1, 2)[None].contiguous(), patch, 2, step)[0][0]
    assert torch.equal(patchify(frames, patch, 2, step), expected)
    assert torch.equal(patchify(frames.transpose(1, 2).contiguous().transpose(1, 2), patch, 2, step), expected)


def clips(*lengths):
    mean, std = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 8.0])
    return [
        Patches((noise(n, 6, seed=n),), (0,), {"video_grid_thw": torch.tensor([[1, 1, n]])}, mean, std) for n in lengths
    ]


def floats(rows):
    """By hand: two values of each of three channels."""
    mean, std = torch.tensor([1.0, 1, 2, 2, 3, 3]), torch.tensor([2.0, 2, 4, 4, 8, 8])
    return (rows.float() - mean) / std


def test_a_clip_reads_as_what_the_model_takes():
    (clip,) = clips(5)
    assert list(clip) == [PIXELS, "video_grid_thw"]
    assert len(clip) == 2
    assert PIXELS in clip
    assert "second_per_grid_ts" not in clip
    assert torch.equal(clip[PIXELS], floats(clip.clips[0]))
    assert torch.equal(dict(clip)["video_grid_thw"], torch.tensor([[1, 1, 5]]))
    assert clip.get("second_per_grid_ts") is None
    assert clip != clips(5)[0]


def test_a_clip_that_comes_several_times_is_kept_once():
    first, second = clips(3, 4)
    batch = join([first, second, first, first])
    assert len(batch.clips) == 2
    assert batch.order == (0, 1, 0, 0)
    assert batch["video_grid_thw"][:, 2].tolist() == [3, 4, 3, 3]
    expected = torch.cat([floats(first.clips[0]), floats(second.clips[0]), *[floats(first.clips[0])] * 2])
    assert torch.equal(batch[PIXELS], expected)
    assert torch.equal(join([batch, second])[PIXELS], torch.cat([expected, floats(second.clips[0])]))


def test_with_plain_tensors_among_them_all_become_floats():
    first, second = clips(3, 4)
    expected = torch.cat([floats(first.clips[0]), floats(second.clips[0])])
    for visions in ([first, dict(second)], [dict(first), second], [dict(first), dict(second)]):
        batch = join(visions)
        assert type(batch) is dict
        assert torch.equal(batch[PIXELS], expected)


def test_bytes_travel():
    (clip,) = clips(1000)
    assert len(pickle.dumps(clip)) < 1000 * 6 + 2500  # floats would be 24,000
    assert torch.equal(pickle.loads(pickle.dumps(clip))[PIXELS], clip[PIXELS])
    away = moved(clip, "meta")
    assert {tensor.device.type for tensor in away.values()} == {"meta"}
    assert away.clips[0].dtype == torch.uint8
    assert moved(dict(clip), "meta")[PIXELS].device.type == "meta"


def test_identity_is_that_of_the_clip():
    first, second = clips(3, 3)
    assert identity(first) != identity(second)
    assert identity(first) == identity(join([first, first]))
    assert identity(dict(first)) != identity(dict(first))
