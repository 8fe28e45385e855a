"""Pure functions on tensors: cameras, poses, stereo, point clouds and the seven relations."""
