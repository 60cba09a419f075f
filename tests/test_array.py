"""Array processing against NumPy loops, numbers computed by hand, the Cramér-Rao bound and spectra with known peaks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from fastmine import array

DEGREE = math.pi / 180
C128 = torch.complex128


def random_complex(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=C128)


def random_covariance(*batch: int, sensors: int = 5) -> Tensor:
    f = random_complex(*batch, sensors, sensors)
    return f @ f.mH + 0.5 * torch.eye(sensors)


# --- steering ---------------------------------------------------------------------------------------------------------


def steering_by_hand(positions: Any, azimuth: float, elevation: float, distance: float | None) -> Any:
    u = [math.sin(azimuth) * math.cos(elevation), math.sin(elevation), math.cos(azimuth) * math.cos(elevation)]
    found = []
    for p in positions:
        if distance is None:
            path = sum(a * b for a, b in zip(p, u, strict=True))
        else:
            path = distance - math.dist(p, [distance * a for a in u])
        found.append(complex(math.cos(2 * math.pi * path), math.sin(2 * math.pi * path)))
    return np.array(found)


@pytest.mark.parametrize("positions", [array.uniform_linear(5), array.uniform_rectangular(3, 2, 0.4)])
@pytest.mark.parametrize("distance", [None, 4.0])
def test_steering_is_the_phase_of_the_wave_at_each_sensor(positions: Tensor, distance: float | None) -> None:
    azimuth, elevation = (
        torch.tensor([[0.3, -1.0], [0.0, 0.9]]).double(),
        torch.tensor([[0.1, 0.5], [-0.7, 0.0]]).double(),
    )
    ranges = None if distance is None else torch.full_like(azimuth, distance)
    found = array.steering(positions, azimuth, elevation, ranges)
    assert found.shape == (2, len(positions), 2)
    for b, k in itertools.product(range(2), range(2)):
        expected = steering_by_hand(positions.tolist(), float(azimuth[b, k]), float(elevation[b, k]), distance)
        assert np.abs(found[b, :, k].numpy() - expected).max() < 1e-6


def test_broadside_and_endfire_by_hand() -> None:
    """Half a wavelength apart: all in phase from the front, every second one reversed from the side."""
    p = array.uniform_linear(4)
    assert torch.allclose(array.steering(p, torch.zeros(1)), torch.ones(4, 1, dtype=torch.complex64))
    side = array.steering(p, torch.tensor([math.pi / 2]))
    assert torch.allclose(side[1:] / side[:-1], torch.full((3, 1), -1.0 + 0j), atol=1e-5)


def test_the_near_field_becomes_the_far_field() -> None:
    p, azimuth = array.uniform_rectangular(4, 4), torch.tensor([0.4, -0.8])
    far = array.steering(p, azimuth)
    errors = [
        float((array.steering(p, azimuth, distance=torch.full((2,), r)) - far).abs().max())
        for r in (3.0, 1e2, 1e4, 1e8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < 1e-6  # at a distance where r - |p - r u| has no digit left in float32


def test_steering_says_what_does_not_fit() -> None:
    p = array.uniform_linear(4)
    with pytest.raises(ValueError, match=r"positions must have shape \[M, 3\]"):
        array.steering(p[:, 0], torch.zeros(2))
    with pytest.raises(ValueError, match="elevation must have the shape of azimuth"):
        array.steering(p, torch.zeros(2), torch.zeros(3))
    with pytest.raises(TypeError, match="azimuth must be a tensor of type float32, float64"):
        array.steering(p, torch.zeros(2, dtype=torch.int64))


# --- spectra ----------------------------------------------------------------------------------------------------------


SCENE = (-20.0, 15.0)
GRID = torch.linspace(-90, 90, 361, dtype=torch.float64) * DEGREE


def known_scene(*, rho: float = 0.0, noise: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """Steering vectors of the grid and of two sources of power 1, and their covariance."""
    p = array.uniform_linear(8, dtype=torch.float64)
    A = array.steering(p, torch.tensor(SCENE, dtype=torch.float64) * DEGREE)
    S = torch.tensor([[1, rho], [rho, 1]], dtype=C128)
    return array.steering(p, GRID), A, A @ S @ A.mH + noise * torch.eye(8)


def test_spectra_are_those_of_numpy() -> None:
    grid, _, R = known_scene()
    a, r = grid.numpy(), R.numpy()
    values, vectors = np.linalg.eigh(r)
    noise = vectors[:, :6]
    expected = {
        "bartlett": [(v.conj() @ r @ v).real / 64 for v in a.T],
        "mvdr": [1 / (v.conj() @ np.linalg.inv(r) @ v).real for v in a.T],
        "music": [8 / np.linalg.norm(noise.conj().T @ v) ** 2 for v in a.T],
    }
    for method, values in expected.items():
        found = array.spectrum(R, grid, torch.tensor(2), method=method)  # type: ignore[arg-type]
        assert np.allclose(1 / found.numpy(), 1 / np.array(values), rtol=1e-6, atol=1e-12), method


@pytest.mark.parametrize(("method", "within"), [("bartlett", 0.5), ("mvdr", 0.02), ("music", 1e-3)])
def test_peaks_are_where_the_sources_are(method: Any, within: float) -> None:
    grid, _, R = known_scene()
    angles, found = array.peaks(array.spectrum(R, grid, torch.tensor(2), method=method), GRID, 2)
    assert found.all()
    assert np.allclose(sorted((angles / DEGREE).tolist()), SCENE, atol=within)


def test_powers_are_calibrated() -> None:
    """Bartlett and MVDR read the power of a lone source, plus the noise over M."""
    p = array.uniform_linear(8, dtype=torch.float64)
    a = array.steering(p, torch.tensor([0.2], dtype=torch.float64))
    R = 3 * a @ a.mH + 0.4 * torch.eye(8)
    for method in (array.bartlett, array.mvdr):
        assert float(method(R, a)) == pytest.approx(3 + 0.4 / 8)


def test_resolution_is_in_the_known_order() -> None:
    """8 degrees apart, less than the beam width of 12.8: Bartlett sees one source, MVDR and MUSIC two."""
    p = array.uniform_linear(8, dtype=torch.float64)
    A = array.steering(p, torch.tensor([-4.0, 4.0], dtype=torch.float64) * DEGREE)
    R = A @ A.mH + 0.01 * torch.eye(8)
    grid = array.steering(p, GRID)
    near = {}
    for method in array.spectra.SPECTRA:
        angles, found = array.peaks(array.spectrum(R, grid, torch.tensor(2), method=method), GRID, 2)  # type: ignore[arg-type]
        near[method] = int(((angles / DEGREE).abs() < 8)[found].sum())
    assert near == {"bartlett": 1, "mvdr": 2, "music": 2}


def test_music_is_blind_to_coherent_sources() -> None:
    grid, _, R = known_scene(rho=1.0)
    angles, _ = array.peaks(array.music(R, grid, torch.tensor(2)), GRID, 2)
    assert not np.allclose(sorted((angles / DEGREE).tolist()), SCENE, atol=1.0)


def test_a_spectrum_may_have_fewer_peaks_than_asked_for() -> None:
    x = torch.tensor([[1.0, 2, 1, 1, 1, 1], [1, 2, 1, 1, 3, 1], [3, 2, 1, 1, 2, 3]])
    angles, found = array.peaks(x, torch.arange(6.0), 2)
    assert found.tolist() == [[True, False], [True, True], [False, False]]
    assert torch.allclose(angles, torch.tensor([[1.0, 0], [4, 1], [0, 0]]))


def test_a_singular_covariance_is_an_error_for_mvdr_and_none_for_the_others() -> None:
    grid, A, _ = known_scene()
    R = torch.zeros(8, 8, dtype=C128)
    with pytest.raises(torch.linalg.LinAlgError):
        array.mvdr(R, grid)
    rank_two = A @ A.mH
    for method in ("bartlett", "music"):
        assert array.spectrum(rank_two, grid, torch.tensor(2), method=method).isfinite().all()


def test_music_asks_for_the_number_of_sources() -> None:
    grid, _, R = known_scene()
    with pytest.raises(ValueError, match="MUSIC needs the number of sources"):
        array.spectrum(R, grid, method="music")
    with pytest.raises(ValueError, match="method must be one of 'bartlett', 'mvdr', 'music'"):
        array.spectrum(R, grid, method="esprit")  # type: ignore[arg-type]


# --- the Cramér-Rao bound ---------------------------------------------------------------------------------------------


def test_the_bound_is_the_inverse_of_the_fisher_information() -> None:
    """Slepian and Bangs: F_ij = N tr(R^-1 dR_i R^-1 dR_j), over angles, source covariance and noise, by differences."""
    p, N, noise = array.uniform_linear(6, dtype=torch.float64), 50, 0.3
    theta = [-0.3, 0.25]
    S = [2.0, 1.0, 0.4, -0.2]  # two powers, and the real and imaginary part of what they share

    def model(x: Any) -> Any:
        A = array.steering(p, torch.tensor(x[:2])).numpy()
        shared = complex(x[4], x[5])
        return A @ np.array([[x[2], shared], [np.conj(shared), x[3]]]) @ A.conj().T + x[6] * np.eye(6)

    x = np.array([*theta, *S, noise])
    inverse = np.linalg.inv(model(x))
    slopes = [(model(x + h) - model(x - h)) / 2e-6 for h in np.eye(7) * 1e-6]
    fisher = [[N * np.trace(inverse @ a @ inverse @ b).real for b in slopes] for a in slopes]
    expected = np.diag(np.linalg.inv(np.array(fisher)))[:2]
    sources = torch.tensor([[2.0, 0.4 - 0.2j], [0.4 + 0.2j, 1.0]], dtype=C128)
    found = array.cramer_rao(p, torch.tensor(theta, dtype=torch.float64), sources, noise, N)
    assert np.allclose(found.numpy(), expected, rtol=1e-5)


def test_music_reaches_the_bound_and_does_not_pass_it() -> None:
    """Two sources, 10 dB, 100 snapshots: the root mean square error of 2,000 trials."""
    torch.manual_seed(0)
    p = array.uniform_linear(8, dtype=torch.float64)
    truth = torch.tensor(SCENE, dtype=torch.float64) * DEGREE
    waves = torch.randn(2000, 2, 100, dtype=C128)
    heard = array.steering(p, truth) @ waves + math.sqrt(0.1) * torch.randn(2000, 8, 100, dtype=C128)
    spectrum = array.music(array.sample_covariance(heard), array.steering(p, GRID), torch.full((2000,), 2))
    angles, found = array.peaks(spectrum, GRID, 2)
    assert found.all()
    rms = (angles.sort(dim=-1).values - truth).square().mean(dim=0).sqrt()
    bound = array.cramer_rao(p, truth, torch.eye(2), 0.1, 100).sqrt()
    assert ((rms / bound > 0.95) & (rms / bound < 1.1)).all()


# --- components, by NumPy ---------------------------------------------------------------------------------------------


def test_the_error_of_a_covariance_is_that_of_numpy() -> None:
    R, T = random_covariance(4), random_covariance(4)
    for b in range(4):
        r, t = R[b].numpy(), T[b].numpy()
        normed = np.linalg.norm(r / np.trace(r) - t / np.trace(t)) ** 2 / np.linalg.norm(t / np.trace(t)) ** 2
        c = np.vdot(r, t).real / np.linalg.norm(r) ** 2
        expected = {
            "none": np.linalg.norm(r - t) ** 2 / np.linalg.norm(t) ** 2,
            "trace": normed,
            "optimal_scale": np.linalg.norm(c * r - t) ** 2 / np.linalg.norm(t) ** 2,
        }
        for normalize, value in expected.items():
            found = array.covariance_nmse(R, T, normalize=normalize)[b]  # type: ignore[arg-type]
            assert float(found) == pytest.approx(value, rel=1e-9)
        around = [np.linalg.norm(s * c * r - t) ** 2 / np.linalg.norm(t) ** 2 for s in (0.99, 1.01)]
        assert expected["optimal_scale"] < min(around)


def test_a_perfect_prediction_scores_zero_at_any_scale() -> None:
    """Scaled on one side only, it scored 0.996 once."""
    T = random_covariance(3)
    for normalize in ("trace", "optimal_scale"):
        assert array.covariance_nmse(7 * T, T, normalize=normalize).max() < 1e-12  # type: ignore[arg-type]
        assert array.covariance_nmse(T, 1e4 * T, normalize=normalize).max() < 1e-12  # type: ignore[arg-type]
    assert torch.allclose(array.covariance_nmse(2 * T, T, normalize="none"), torch.ones(3, dtype=torch.float64))


def test_the_opposite_of_the_target_is_worst() -> None:
    T = random_covariance(1)
    scores = [float(array.covariance_nmse(s * T, T, normalize="optimal_scale")) for s in (1, -1)]
    assert scores == pytest.approx([0, 2], abs=1e-12)


def test_orthogonality_by_hand() -> None:
    f = torch.tensor([[1.0, 1], [0, 1]], dtype=C128)  # Gram matrix [[1, 1], [1, 2]]: 2 of 7
    assert float(array.orthogonality(f)) == pytest.approx(2 / 7)
    q, _ = torch.linalg.qr(random_complex(3, 6, 4))
    scaled = q * torch.tensor([1.0, 5, 0.1, 0])
    assert array.orthogonality(scaled).max() < 1e-25


def test_source_count_by_hand() -> None:
    z, n = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]]), torch.tensor([1, 2])
    plain = array.source_count(z, n, missed=0, false_alarm=0)
    assert torch.allclose(plain, torch.nn.functional.cross_entropy(z, n, reduction="none"))
    expected = math.log(math.exp(0 + 6) + math.exp(0 + 3) + math.exp(0))  # 2 and 1 missed, at 3 each
    assert float(array.source_count(z, n, missed=3, false_alarm=7)[1]) == pytest.approx(expected)
    expected = math.log(math.exp(1 + 3) + math.exp(2) + math.exp(0.5 + 7)) - 2
    assert float(array.source_count(z, n, missed=3, false_alarm=7)[0]) == pytest.approx(expected)


def test_a_confident_mistake_in_the_count_keeps_its_gradient() -> None:
    z = torch.tensor([[0.0, 60.0, 0.0]], requires_grad=True)
    array.source_count(z, torch.tensor([2])).sum().backward()
    assert z.grad is not None
    assert torch.allclose(z.grad, torch.tensor([[0.0, 1.0, -1.0]]))


def best_assignment(points: Any, truth: Any, present: Any, period: float, power: float) -> float:
    rows = [k for k in range(len(present)) if present[k]]
    totals = []
    for order in itertools.permutations(rows):
        total = 0.0
        for k, i in zip(rows, order, strict=True):
            wrapped = [math.remainder(a - b, period) for a, b in zip(points[i], truth[k], strict=True)]
            total += math.hypot(*wrapped) ** power
        totals.append(total)
    return min(totals)


@pytest.mark.parametrize("K", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_angles_meet_their_best_assignment(K: int, power: float) -> None:
    generator = torch.Generator().manual_seed(K)
    points, truth = (8 * torch.rand(20, K, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    present = torch.rand(20, K, generator=generator) < 0.7
    found = array.matched_error(points, truth, present, power=power)
    assert (found[~present] == 0).all()
    for b in range(20):
        expected = best_assignment(points[b].tolist(), truth[b].tolist(), present[b].tolist(), 2 * math.pi, power)
        assert float(found[b].sum()) == pytest.approx(expected, abs=1e-9)


def test_angles_wrap() -> None:
    one = torch.ones(1, 1, dtype=torch.bool)
    a, b = torch.tensor([[[math.pi - 0.1]]]), torch.tensor([[[-math.pi + 0.1]]])
    assert float(array.matched_error(a, b, one)) == pytest.approx(0.2, abs=1e-5)
    assert float(array.matched_error(a, b, one, period=None)) == pytest.approx(2 * math.pi - 0.2, abs=1e-5)
    assert float(array.matched_error(a, b, one, period=[math.pi])) == pytest.approx(0.2, abs=1e-5)


def test_more_than_six_sources_go_to_chamfer() -> None:
    x, there = torch.zeros(1, 7, 1), torch.ones(1, 7, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"at most 6 sources.*chamfer_error"):
        array.matched_error(x, x, there)
    assert float(array.chamfer_error(x, x, there)) == 0


def test_chamfer_by_hand() -> None:
    points = torch.tensor([[[0.0], [1.0], [9.0]]])
    truth = torch.tensor([[[0.5], [3.0]]])
    here, there = torch.tensor([[True, True, False]]), torch.tensor([[True, True]])
    # predictions: .5 and .5 away; sources: .5 and 2 away
    assert float(array.chamfer_error(points, truth, there, here)) == pytest.approx((0.5 + 1.25) / 2)
    assert float(array.chamfer_error(points, truth, there & False, here)) == 0


def test_leakage_by_numpy() -> None:
    A, f = random_complex(6, 3), random_complex(6, 2)
    present = torch.tensor([True, False, True])
    R = (f @ f.mH).numpy()
    a = A.numpy()[:, [0, 2]]
    outside = np.eye(6) - a @ np.linalg.inv(a.conj().T @ a) @ a.conj().T
    expected = np.linalg.norm(outside @ R) ** 2 / np.linalg.norm(R) ** 2
    assert float(array.subspace_leakage(f @ f.mH, A, present)) == pytest.approx(expected)
    mixed = A[:, [0, 2]] @ random_complex(2, 2)
    assert float(array.subspace_leakage(mixed @ mixed.mH, A, present)) < 1e-24


@pytest.mark.parametrize("method", array.spectra.SPECTRA)
def test_peak_contrast_is_the_share_of_the_spectrum(method: Any) -> None:
    R = known_scene()[2]
    p = array.uniform_linear(8, dtype=torch.float64)
    # Beside the sources: at them, the spectrum of MUSIC is one over what rounding has left.
    sources = torch.tensor(SCENE, dtype=torch.float64) * DEGREE
    grid, A = (array.steering(p, azimuth + 0.1 * DEGREE) for azimuth in (GRID, sources))
    present = torch.tensor([True, True])
    background = array.spectrum(R, grid, torch.tensor(2), method=method).sum()
    own = array.spectrum(R, A, torch.tensor(2), method=method)
    found = array.peak_nll(R, grid, A, present, method=method)
    assert torch.allclose(found, -(own / (own + background)).log(), atol=1e-6)


def test_peak_contrast_of_a_flat_spectrum_and_of_a_needle() -> None:
    grid, A, _ = known_scene()
    here = torch.tensor([True, True])
    flat = array.peak_nll(torch.eye(8, dtype=C128), grid, A, here)
    assert torch.allclose(flat, torch.full((2,), math.log(362.0), dtype=torch.float64))
    _, _, sharp = known_scene(noise=1e-9)
    between = array.steering(array.uniform_linear(8, dtype=torch.float64), GRID + 0.25 * DEGREE)
    assert array.peak_nll(sharp, between, A, here).max() < 1e-3


def test_eigengap_by_hand() -> None:
    R = torch.diag(torch.tensor([1.0, 8.0, 2.0, 1.0])).to(C128)
    gaps = array.eigengap(R.expand(5, 4, 4), torch.tensor([0, 1, 2, 3, 4]))
    assert torch.allclose(gaps, torch.tensor([0, math.log(4), math.log(2), 0, 0], dtype=torch.float64), atol=1e-12)
    assert float(array.eigengap_error(3 * R, R, torch.tensor(2))) == pytest.approx(0, abs=1e-12)


# --- gradients --------------------------------------------------------------------------------------------------------


def hermitian(x: Tensor) -> Tensor:
    return (x + x.mH) / 2


B, M, K = 2, 4, 2
PRESENT = torch.tensor([[True, True], [True, False]])
STEERING = array.steering(
    array.uniform_linear(M, dtype=torch.float64), torch.tensor([[0.2, -0.5], [0.4, 0.0]]).double()
)
OTHERS = array.steering(array.uniform_linear(M, dtype=torch.float64), GRID[::30])
DIFFERENTIABLE: dict[str, tuple[Callable[..., Tensor], Callable[[], Tensor]]] = {
    **{
        f"covariance_nmse {normalize}": (
            lambda x, n=normalize: array.covariance_nmse(x, TARGET, normalize=n),
            lambda: random_covariance(B, sensors=M),
        )
        for normalize in ("none", "trace", "optimal_scale")
    },
    "covariance_nmse negative": (
        lambda x: array.covariance_nmse(-x, TARGET, normalize="optimal_scale"), lambda: random_covariance(B, sensors=M)
    ),
    "orthogonality": (array.orthogonality, lambda: random_complex(B, M, K)),
    "source_count": (
        lambda x: array.source_count(x, torch.tensor([1, 2]), missed=2.0), lambda: torch.randn(B, 3).double()
    ),
    **{
        f"matched_error {power}": (
            lambda x, p=power: array.matched_error(x, POINTS, PRESENT, power=p), lambda: torch.randn(B, K, 2).double()
        )
        for power in (1.0, 2.0)
    },
    "chamfer_error": (lambda x: array.chamfer_error(x, POINTS, PRESENT), lambda: torch.randn(B, 3, 2).double()),
    "subspace_leakage": (
        lambda x: array.subspace_leakage(x @ x.mH, STEERING, PRESENT), lambda: random_complex(B, M, K)
    ),
    **{
        f"peak_nll {method}": (
            lambda x, m=method: array.peak_nll(hermitian(x), OTHERS, STEERING, PRESENT, method=m),
            lambda: random_covariance(B, sensors=M),
        )
        for method in array.spectra.SPECTRA
    },
    "eigengap": (lambda x: array.eigengap(hermitian(x), torch.tensor([1, 2])), lambda: random_covariance(B, sensors=M)),
    "steering": (lambda x: array.steering(array.uniform_rectangular(2, 2), x, 0.3 * x, x.square() + 2),
                 lambda: torch.randn(B, K).double()),
    "low_rank": (lambda x: array.low_rank(x, torch.ones(B)), lambda: random_complex(B, M, K)),
}  # fmt: skip
torch.manual_seed(1)
TARGET = random_covariance(B, sensors=M)
POINTS = torch.randn(B, K, 2).double()


@pytest.mark.gradcheck
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients(name: str) -> None:
    torch.manual_seed(2)
    function, make = DIFFERENTIABLE[name]
    assert gradcheck(function, make().requires_grad_())


def test_equal_noise_eigenvalues_do_no_harm_to_the_gradient_of_music() -> None:
    """eigh would divide by their differences: NaN, where F F^H + noise I has M - K equal eigenvalues."""
    f = random_complex(8, 2).requires_grad_()
    grid, A, _ = known_scene()
    R = array.low_rank(f, torch.tensor(0.1, dtype=torch.float64))
    array.peak_nll(R, grid, A, torch.tensor([True, True]), method="music").sum().backward()
    assert f.grad is not None
    assert f.grad.isfinite().all()
    assert (f.grad != 0).any()


def test_a_second_derivative_of_music_is_refused() -> None:
    x = random_covariance().requires_grad_()
    grid = array.steering(array.uniform_linear(5, dtype=torch.float64), GRID[::30])
    (first,) = torch.autograd.grad(array.music(x, grid, torch.tensor(2)).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.abs().sum().backward()


# --- invariances ------------------------------------------------------------------------------------------------------


def test_the_order_of_sources_does_not_matter() -> None:
    points, truth = torch.randn(5, 4, 1), torch.randn(5, 4, 1)
    there = torch.ones(5, 4, dtype=torch.bool)
    for order in itertools.permutations(range(4)):
        for function in (array.matched_error, array.chamfer_error):
            moved = function(points[:, list(order)], truth, there)
            assert torch.allclose(moved.reshape(5, -1).sum(-1), function(points, truth, there).reshape(5, -1).sum(-1))


def test_phases_of_the_factors_do_not_matter() -> None:
    f = random_complex(3, 6, 2)
    turned = f * torch.polar(torch.ones(2).double(), torch.tensor([0.7, -2.0]).double())
    assert torch.allclose(array.low_rank(f), array.low_rank(turned))
    assert torch.allclose(array.orthogonality(f), array.orthogonality(turned))


def test_whole_turns_of_the_angles_do_not_matter() -> None:
    points, truth = torch.randn(5, 3, 2).double(), torch.randn(5, 3, 2).double()
    there = torch.ones(5, 3, dtype=torch.bool)
    turned = points + 2 * math.pi * torch.randint(-3, 4, points.shape)
    assert torch.allclose(array.matched_error(points, truth, there), array.matched_error(turned, truth, there))


def test_a_common_scale_does_not_matter() -> None:
    R, T = random_covariance(3), random_covariance(3)
    n = torch.tensor([1, 2, 3])
    for s in (1e-6, 1e6):
        for normalize in ("trace", "none", "optimal_scale"):
            assert torch.allclose(
                array.covariance_nmse(s * R, s * T, normalize=normalize),  # type: ignore[arg-type]
                array.covariance_nmse(R, T, normalize=normalize),  # type: ignore[arg-type]
            )
        assert torch.allclose(array.eigengap(s * R, n), array.eigengap(R, n))


@pytest.mark.parametrize("name", ["covariance_nmse", "orthogonality"])
def test_pairs_of_reals_are_complex_numbers(name: str) -> None:
    R, T = random_covariance(3), random_covariance(3)
    as_real = torch.view_as_real(R)
    if name == "orthogonality":
        assert torch.equal(array.orthogonality(as_real), array.orthogonality(R))
    else:
        assert torch.equal(array.covariance_nmse(as_real, T), array.covariance_nmse(R, T))
        half = array.covariance_nmse(as_real.half(), T.to(torch.complex64))
        assert half.dtype == torch.float32
        assert torch.allclose(half.double(), array.covariance_nmse(R, T), atol=1e-2)


def test_real_matrices_are_refused() -> None:
    with pytest.raises(
        TypeError, match="must be complex, or real with real and imaginary part in a last dimension of 2"
    ):
        array.covariance_nmse(torch.eye(3), torch.eye(3))
    with pytest.raises(ValueError, match=r"square matrices \[..., M, M\]"):
        array.covariance_nmse(random_complex(2, 3), random_complex(2, 3))
    with pytest.raises(ValueError, match="nothing is broadcast here"):
        array.covariance_nmse(random_complex(2, 3, 3), random_complex(3, 3))


def test_masks_are_boolean_and_of_every_source() -> None:
    x = torch.zeros(2, 3, 1)
    with pytest.raises(TypeError, match=r"present must be a tensor of type bool; got a torch\.float32 tensor; make it"):
        array.matched_error(x, x, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"present must have shape \[2, 3\]; got \[3\]"):
        array.chamfer_error(x, x, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"valid must have shape \[2\]; got \[1\]"):
        array.orthogonality(random_complex(2, 3, 2), torch.ones(1, dtype=torch.bool))
    with pytest.raises(ValueError, match="as many places for sources"):
        array.matched_error(x[:, :2], x, torch.ones(2, 3, dtype=torch.bool))


def test_a_covariance_that_is_not_finite_has_no_eigenvalues() -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        array.eigengap(spoiled(random_covariance(2), 0), torch.tensor([1, 1]))


# --- nothing to learn from, and what is not finite --------------------------------------------------------------------


def spoiled(x: Tensor, row: int) -> Tensor:
    x = x.clone()
    x[row] = torch.nan
    return x.requires_grad_()


CASES: dict[str, tuple[Callable[..., Tensor], Callable[[], Tensor]]] = {
    "covariance_nmse": (lambda x, v: array.covariance_nmse(x, TARGET, v), lambda: random_covariance(B, sensors=M)),
    "orthogonality": (array.orthogonality, lambda: random_complex(B, M, K)),
    "source_count": (lambda x, v: array.source_count(x, torch.tensor([1, 0]), v), lambda: torch.randn(B, 3)),
    "matched_error": (lambda x, v: array.matched_error(x, POINTS, v[:, None].expand(B, K)).sum(-1),
                      lambda: torch.randn(B, K, 2).double()),
    "chamfer_error": (lambda x, v: array.chamfer_error(x, POINTS, v[:, None].expand(B, K), v[:, None].expand(B, K)),
                      lambda: torch.randn(B, K, 2).double()),
    "subspace_leakage": (lambda x, v: array.subspace_leakage(x, STEERING, v[:, None].expand(B, K)),
                         lambda: random_covariance(B, sensors=M)),
    "peak_nll": (lambda x, v: array.peak_nll(x, OTHERS, STEERING, v[:, None].expand(B, K)).sum(-1),
                 lambda: random_covariance(B, sensors=M)),
    "eigengap_error": (lambda x, v: array.eigengap_error(x, TARGET, torch.tensor([1, 2]), v),
                       lambda: random_covariance(B, sensors=M)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_invalid_changes_nothing_even_if_it_is_nan(name: str) -> None:
    torch.manual_seed(3)
    function, make = CASES[name]
    x, valid = make(), torch.tensor([True, False])
    expected = function(x, torch.tensor([True, True]))
    broken = spoiled(x, 1)
    found = function(broken, valid)
    assert torch.allclose(found[0], expected[0])
    assert float(found[1].detach()) == 0
    found.sum().backward()
    assert broken.grad is not None
    assert broken.grad.isfinite().all()
    assert (broken.grad[1] == 0).all()
    assert (broken.grad[0] != 0).any()


@pytest.mark.parametrize("name", [name for name in CASES if name != "eigengap_error"])
def test_what_is_valid_and_nan_gives_nan(name: str) -> None:
    function, make = CASES[name]
    found = function(spoiled(make(), 1), torch.tensor([True, True]))
    assert found[1].isnan()
    assert found[0].isfinite()


@pytest.mark.parametrize("name", CASES)
def test_nothing_valid_is_a_connected_zero(name: str) -> None:
    function, make = CASES[name]
    x, nothing = spoiled(make(), 0), torch.tensor([False, False])
    loss, evidence = array.mean_of_valid(function(x, nothing), nothing)
    assert (float(loss.detach()), evidence.valid, evidence.items, evidence.nonfinite) == (0, 0, 2, 0)
    loss.backward()
    assert x.grad is not None
    assert (x.grad == 0).all()


def test_a_target_without_power_is_not_silent() -> None:
    loss, evidence = array.mean_of_valid(array.covariance_nmse(TARGET, 0 * TARGET))
    assert not loss.isfinite()
    assert evidence.nonfinite == 2


def test_mean_of_valid_and_quantiles_by_hand() -> None:
    values, valid = torch.tensor([1.0, 100.0, 3.0, 8.0]), torch.tensor([True, False, True, True])
    loss, evidence = array.mean_of_valid(values, valid)
    assert (float(loss), evidence.as_dict()) == (4.0, {"items": 4, "valid": 3, "nonfinite": 0, "largest": 8})
    errors = array.error_quantiles(values.square(), valid, power=2.0)
    expected = {"sources": 3, "nonfinite": 0, "error_mean": 4, "error_median": 3, "error_max": 8}
    assert errors.as_dict() == pytest.approx(expected)
    nothing = array.error_quantiles(values, valid & False)
    assert set(nothing.as_dict().values()) == {0.0}
