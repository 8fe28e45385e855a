"""Textured balls before a textured wall, whose depth is known in closed form, filmed by a stereo camera."""

import numpy as np
import torch

from mllm4d.curate.depth import Depth
from mllm4d.schema import Camera, Clip, Mask

HEIGHT, WIDTH, FX, BASELINE = 150, 200, 220.0, 0.25
INTRINSICS = torch.tensor([[FX, 0, 99.5], [0, FX, 74.5], [0, 0, 1]], dtype=torch.float64)
WALL, RADIUS = 9.0, 0.6


def waves(points, seed, lengths):
    """A texture in space: values of points [..., 3], mostly within -1 to 1."""
    rng = np.random.default_rng(seed)
    value = np.zeros(points.shape[:-1])
    for _ in range(40):
        direction = rng.normal(size=3)
        direction *= 2 * np.pi / np.linalg.norm(direction) / np.exp(rng.uniform(*np.log(lengths)))
        value += np.sin(points @ direction + rng.uniform(0, 2 * np.pi))
    return value / 8


def view(pose, ball, turn, offset=0.0):
    """Image [H, W, 3], z-depth [H, W] and the ball's region of a camera that stands ``offset`` to the right."""
    row, column = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([column, row, np.ones_like(row)], -1) @ np.linalg.inv(INTRINSICS.numpy()).T
    to_world = np.linalg.inv(pose)
    origin = to_world[:3, :3] @ [offset, 0, 0] + to_world[:3, 3]
    rays = rays @ to_world[:3, :3].T
    depth = (WALL - origin[2]) / rays[..., 2]
    image = 120 + 60 * waves(origin + depth[..., None] * rays, 0, (0.25, 1.0))
    image = np.repeat(image[..., None], 3, axis=-1)
    away = ball - origin
    a, b, c = (rays**2).sum(-1), rays @ away, away @ away - RADIUS**2
    root = b**2 - a * c
    hit = root > 0
    near = (b - np.sqrt(np.maximum(root, 0))) / a
    cosine, sine = np.cos(turn), np.sin(turn)
    body = (origin + near[..., None] * rays - ball) @ np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]]).T
    light = 1 + 0.7 * waves(body, 1, (0.12, 0.5))
    image[hit] = (light[..., None] * [150, 30, 30])[hit]
    return image.round().clip(0, 255).astype(np.uint8), np.where(hit, near, depth), hit


def film(balls, poses=None, turns=None, right=True):
    """A clip of a red ball with centres [T, 3] (world, metres), its exact depth, the camera and the ball's mask."""
    count = len(balls)
    poses = np.tile(np.eye(4), (count, 1, 1)) if poses is None else np.asarray(poses)
    turns = np.zeros(count) if turns is None else turns
    lefts = [view(*arguments) for arguments in zip(poses, np.asarray(balls), turns, strict=True)]
    rights = [view(*arguments, BASELINE)[0] for arguments in zip(poses, np.asarray(balls), turns, strict=True)]
    mask = Mask(7, "red ball", torch.from_numpy(np.stack([region for _, _, region in lefts])))
    clip = Clip(
        key="ball-0000",
        video="ball",
        frames=torch.from_numpy(np.stack([image for image, _, _ in lefts])),
        times=torch.arange(count, dtype=torch.float64) / 10,
        fps=10.0,
        intrinsics=INTRINSICS,
        right=torch.from_numpy(np.stack(rights)) if right else None,
        baseline=BASELINE if right else None,
        masks=(mask,),
    )
    z = torch.from_numpy(np.stack([depth for _, depth, _ in lefts])).float()
    depth = Depth(z, z.square() * 0.3 / (FX * BASELINE))
    zeros = torch.zeros(count, dtype=torch.float64)
    return clip, depth, Camera(INTRINSICS, torch.from_numpy(poses), zeros, zeros), mask


def sideways(count, step):
    """Poses [T, 4, 4] of a camera that moves to the right by so many metres a frame."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, 0, 3] = -step * np.arange(count)
    return poses
