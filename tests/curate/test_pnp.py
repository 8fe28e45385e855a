import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from mllm4d.curate.pnp import Matches, fit_weighted, reprojection_error, solve_step

K = np.array([[300.0, 0, 160], [0, 300, 96], [0, 0, 1]])


def step(vector):
    """[4, 4] from a rotation vector (radians) and a translation (metres)."""
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = Rotation.from_rotvec(vector[:3]).as_matrix(), vector[3:]
    return transform


TRUTH = step([0.01, -0.03, 0.005, 0.1, -0.05, -0.3])


def project(points, transform):
    image = (points @ transform[:3, :3].T + transform[:3, 3]) @ K.T
    return image[:, :2] / image[:, 2:]


def world(seed, count=200, pixel=0.0, depth=0.0):
    """Matches whose points err along their rays by ``depth`` Z^2 (metres) and whose pixels by ``pixel``."""
    random = np.random.default_rng(seed)
    z = random.uniform(4, 25, count)
    rays = np.column_stack([random.uniform(-0.5, 0.5, count), random.uniform(-0.3, 0.3, count), np.ones(count)])
    sigma = depth * z**2
    pixels = project(rays * z[:, None], TRUTH) + pixel * random.standard_normal((count, 2))
    return Matches(rays * (z + sigma * random.standard_normal(count))[:, None], sigma, pixels)


def center(transform):
    return -transform[:3, :3].T @ transform[:3, 3]


def test_exact_matches_give_the_exact_step():
    fit = solve_step(world(0), K, 1.0, 0.25, 20)
    np.testing.assert_allclose(fit.transform, TRUTH, atol=1e-6)
    assert len(fit.inliers) == 200
    assert fit.share == 1.0
    assert reprojection_error(fit.transform, fit.inliers, K) < 1e-4


def test_the_weighted_fit_is_scipys_least_squares():
    # One covariance per match, taken at the solution, Cauchy's weights: minimise sum 2 log(1 + r^T S^-1 r / 4).
    matches = world(1, pixel=0.3, depth=0.002)
    found, _ = fit_weighted(matches, K, TRUTH, 0.3)
    rays = matches.points / matches.points[:, 2:]
    ahead = project(matches.points + 1e-5 * rays, found) - project(matches.points - 1e-5 * rays, found)
    along = ahead / 2e-5 * matches.depth_sigma[:, None]
    whiten = np.linalg.cholesky(np.linalg.inv(0.09 * np.eye(2) + along[:, :, None] * along[:, None, :]))

    def residuals(vector):
        residual = np.einsum("nji,nj->ni", whiten, project(matches.points, step(vector)) - matches.pixels)
        size = (residual**2).sum(1)
        return np.sqrt(4 * np.log1p(size / 4))

    start = np.concatenate([Rotation.from_matrix(TRUTH[:3, :3]).as_rotvec(), TRUTH[:3, 3]])
    oracle = step(least_squares(residuals, start, xtol=1e-14, ftol=1e-14, gtol=1e-14).x)
    # The covariance moves with the step in the one and stays in the other, so that they agree to second order only.
    np.testing.assert_allclose(found, oracle, atol=3e-4)
    assert np.abs(center(found) - center(TRUTH)).max() > 1e-3


@pytest.mark.parametrize(("pixel", "depth"), [(0.3, 0.0), (0.2, 0.003)])
def test_the_covariance_is_that_of_the_errors(pixel, depth):
    centers, turns, claimed = [], [], []
    for seed in range(150):
        found, covariance = fit_weighted(world(seed, pixel=pixel, depth=depth), K, TRUTH, pixel)
        centers.append(TRUTH[:3, :3] @ (center(found) - center(TRUTH)))
        turns.append(Rotation.from_matrix(found[:3, :3] @ TRUTH[:3, :3].T).as_rotvec())
        claimed.append(np.diag(covariance))
    sigma = np.sqrt(np.mean(claimed, axis=0))
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(centers), axis=0)) / sigma[:3], 1, atol=0.3)
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(turns), axis=0)) / sigma[3:], 1, atol=0.3)


def test_a_depth_error_that_is_known_does_little():
    # Every other point is a tenth too far; the sigma says so, or does not.
    def errors(told):
        for seed in range(20):
            exact = world(seed, pixel=0.05)
            odd = np.arange(200) % 2 == 1
            points = np.where(odd[:, None], 1.1 * exact.points, exact.points)
            sigma = np.where(odd & told, 0.1 * points[:, 2], 0.0)
            found, _ = fit_weighted(Matches(points, sigma, exact.pixels), K, TRUTH, 0.1)
            yield np.linalg.norm(center(found) - center(TRUTH))

    assert np.mean(list(errors(True))) < 0.5 * np.mean(list(errors(False)))


def test_wrong_matches_are_outvoted():
    matches = world(2, pixel=0.2)
    pixels = matches.pixels.copy()
    pixels[:60] += 15
    fit = solve_step(Matches(matches.points, matches.depth_sigma, pixels), K, 1.0, 0.25, 20)
    np.testing.assert_allclose(fit.transform, TRUTH, atol=5e-3)
    assert fit.share == pytest.approx(0.7, abs=0.03)


def test_too_few_that_agree_are_counted():
    matches = world(3)
    nonsense = np.random.default_rng(0).uniform(0, 300, matches.pixels.shape)
    assert solve_step(matches[np.arange(10)], K, 1.0, 0.25, 20) == 10
    lost = solve_step(Matches(matches.points, matches.depth_sigma, nonsense), K, 1.0, 0.25, 20)
    assert isinstance(lost, int)
    assert lost < 20
