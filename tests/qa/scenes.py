"""Random scenes with exact truth, for tests of questions."""

import math

import torch

from mllm4d.geometry.pose import invert, rebase
from mllm4d.schema import Camera, Scene, Track

INTRINSICS = torch.tensor([[60.0, 0, 31.5], [0, 60, 31.5], [0, 0, 1]], dtype=torch.float64)


def random_scene(seed, frames=8, objects=3, sigma=0.0):
    """A camera and objects on straight ground paths with random headings and log-uniform lengths; some stand still."""
    g = torch.Generator().manual_seed(seed)

    def uniform(low, high):
        return low + (high - low) * float(torch.rand((), generator=g, dtype=torch.float64))

    def path(start):
        length = 0.0 if uniform(0, 1) < 0.3 else math.exp(uniform(math.log(0.2), math.log(6)))
        heading = uniform(-math.pi, math.pi)
        step = torch.tensor([math.cos(heading), 0, math.sin(heading)], dtype=torch.float64) * length / (frames - 1)
        return torch.tensor(start, dtype=torch.float64) + torch.arange(frames)[:, None] * step

    camera_to_world = torch.eye(4, dtype=torch.float64).repeat(frames, 1, 1)
    camera_to_world[:, :3, 3] = path([0, 0, 0])
    turn = uniform(-0.3, 0.3)
    for t in range(frames):
        a = turn * t / (frames - 1)
        camera_to_world[t, 0, 0] = camera_to_world[t, 2, 2] = math.cos(a)
        camera_to_world[t, 0, 2], camera_to_world[t, 2, 0] = math.sin(a), -math.sin(a)
    tracks = []
    for k, name in enumerate(["red cube", "blue ball", "green cone"][:objects]):
        centers = path([uniform(-4, 4), 0.5, uniform(4, 14)])
        surface = 0.4 * torch.nn.functional.normalize(torch.randn(50, 3, generator=g, dtype=torch.float64), dim=-1)
        points = tuple(center + surface for center in centers)
        sigmas = torch.full((frames,), sigma, dtype=torch.float64)
        tracks.append(
            Track(k + 1, name, centers, sigmas, sigmas, sigmas, points, bool((centers[0] != centers[-1]).any()))
        )
    poses = rebase(invert(camera_to_world))
    zeros = torch.zeros(frames, dtype=torch.float64)
    camera = Camera(INTRINSICS, poses, zeros, zeros)
    times = torch.arange(frames, dtype=torch.float64) / 4
    return Scene(4.0, times, camera, tuple(tracks), {}, {})
