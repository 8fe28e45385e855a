import math

import torch
from scipy.spatial.transform import Rotation

from mllm4d.curate.filters.continuity import angle, find_jumps, find_spikes, travel_of_headings, travel_of_places


def places(*along):
    return torch.tensor([[x, 0.0, 0.0] for x in along], dtype=torch.float64)


def yaws(*degrees):
    return torch.from_numpy(Rotation.from_euler("y", [[angle] for angle in degrees], degrees=True).as_matrix())


def test_travel_by_hand():
    # 3 m ahead, 4 m to the side, 5 m back to the start
    travel = travel_of_places(torch.tensor([[0, 0, 0], [0, 0, 3], [4, 0, 3], [0, 0, 0]], dtype=torch.float64))
    assert travel.steps.tolist() == [3, 4, 5]
    assert travel.detours.tolist() == [3 + 4 - 5, 4 + 5 - 3]
    # differences of the steps: (4, 0, -3) and (-8, 0, -3)
    torch.testing.assert_close(travel.bends, torch.tensor([5.0, math.sqrt(73)], dtype=torch.float64))


def test_turning_by_hand():
    travel = travel_of_headings(yaws(0, 10, 30, 25))
    torch.testing.assert_close(travel.steps.rad2deg(), torch.tensor([10.0, 20, 5], dtype=torch.float64))
    torch.testing.assert_close(travel.detours.rad2deg(), torch.tensor([0.0, 10], dtype=torch.float64))
    torch.testing.assert_close(travel.bends.rad2deg(), torch.tensor([10.0, 25], dtype=torch.float64))


def test_angles_small_and_large():
    vectors = Rotation.random(50, random_state=0).as_rotvec()
    vectors[:10] *= 1e-7
    expected = torch.from_numpy(vectors).norm(dim=-1)
    torch.testing.assert_close(angle(torch.from_numpy(Rotation.from_rotvec(vectors).as_matrix())), expected)


def test_spikes_and_jumps():
    zero = torch.tensor(0.0)
    assert find_spikes(travel_of_places(places(0, 1, 2, 3)), zero) == []
    assert find_spikes(travel_of_places(places(0, 1, 9, 3, 4)), zero) == [2, 3]
    assert find_spikes(travel_of_places(places(0, 1, 2, 1.9)), torch.tensor(0.25)) == []
    # starting, stopping and steady motion
    assert find_jumps(travel_of_places(places(0, 0, 0, 1, 2, 3)), 3.0, zero) == []
    assert find_jumps(travel_of_places(places(0, 1, 2, 2, 2)), 3.0, zero) == []
    # one step of 4 between steps of 1
    assert find_jumps(travel_of_places(places(0, 1, 5, 6)), 3.0, zero) == [1]
    assert find_jumps(travel_of_places(places(0, 1, 5, 6)), 3.0, torch.tensor(1.5)) == []
    assert find_jumps(travel_of_places(places(0, 5)), 3.0, zero) == []
