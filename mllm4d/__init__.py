"""mllm4d: spatial-temporal intelligence for multimodal LLMs, from stereo video to a trained and scored model.

Conventions, stated once and used everywhere:

- Camera axes are OpenCV's: +X right, +Y down, +Z forward. Pixel centres are at integer coordinates.
- Extrinsics are world-to-camera 4x4 matrices: ``X_camera = R X_world + t``; the camera centre is ``-R^T t``.
- The world is any rigid metric frame; curation uses the camera axes of the clip's first stored frame.
- Units are metres, seconds and pixels. Depth is z-depth, 0 where unknown.
"""

__version__ = "0.1.0"
