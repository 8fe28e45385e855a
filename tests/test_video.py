import io

import av
import pytest
import torch

from mllm4d.video import decode, encode


def clip(count=6, height=48, width=64):
    ramp = torch.linspace(0, 200, width)[None, None, :, None].expand(count, height, width, 3)
    return (ramp + 8 * torch.arange(count)[:, None, None, None]).to(torch.uint8)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63)])
def test_frames_and_uneven_times_come_back(height, width):
    times = torch.tensor([0.0, 0.1, 0.15, 0.9, 1.0, 2.5], dtype=torch.float64)
    frames, decoded = decode(encode(clip(6, height, width), times))
    assert frames.shape == (6, height, width, 3)
    assert (frames.float() - clip(6, height, width).float()).abs().mean() < 3
    assert torch.allclose(decoded, times, atol=1 / 90_000, rtol=0)


def test_same_bytes_twice():
    times = torch.arange(6, dtype=torch.float64) / 8
    assert encode(clip(), times) == encode(clip(), times)


def test_from_a_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(encode(clip(), torch.arange(6, dtype=torch.float64)))
    assert decode(path)[1].tolist() == [0, 1, 2, 3, 4, 5]


def test_bad_videos_name_themselves(tmp_path):
    good = encode(clip(), torch.arange(6, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"a\.mp4: cannot be decoded"):
        decode(b"not a video", name="a.mp4")
    with pytest.raises(ValueError, match=r"b\.mp4: "):
        decode(good[: len(good) // 2], name="b.mp4")


def test_times_must_increase():
    with pytest.raises(ValueError, match="must increase"):
        encode(clip(2), torch.tensor([1.0, 1.0]))


def test_only_the_wanted_frames_and_all_times():
    times = torch.tensor([0.0, 0.1, 0.15, 0.9, 1.0, 2.5], dtype=torch.float64)
    video = encode(clip(), times)
    frames, decoded = decode(video)
    some, same = decode(video, only=[5, 0, 3])
    assert torch.equal(some, frames[[0, 3, 5]])
    assert torch.equal(same, decoded)
    assert len(decode(video, only=[9])[0]) == 0


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63), (90, 50)])
def test_pixels_are_those_of_the_librarys_own_conversion(height, width):
    video = encode(clip(4, height, width), torch.arange(4, dtype=torch.float64))
    with av.open(io.BytesIO(video)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert decode(video)[0].tolist() == [image.tolist() for image in expected]
