"""Critically damped Langevin diffusion: the covariance's digits, and digits sampled beside VP and VE.

    python -m benchmarks.cld [--n 1000] [--seed 0] [--out out/bench]

The first table has, over the integrated rate B, the largest error of the kernel's covariance in float32, entry by entry
in units of its own standard deviations, against Van Loan's matrix exponential in float64: of the form that `CLD` uses,
and of the form in which it is usually printed. The second has Frechet distances of samples to the held-out digits, by
network calls, with labels: the shipped denoiser on VP and VE, the same denoiser on CLD
(`from_joint_denoiser`), and a network of the velocity's noise trained on CLD.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import scipy.linalg
import torch
from torch import Tensor
from tqdm import tqdm

import sgm_sde as sg
from benchmarks import command
from sgm_sde.evaluation.demo import FEATURES
from sgm_sde.evaluation.metrics.frechet import frechet_distance
from sgm_sde.nn.digits import digits_data, load_digits_classifier, load_digits_denoiser, load_digits_velocity
from sgm_sde.zoo.shipped import digits_score

BUDGETS = (5, 10, 20, 50, 100)


def printed_covariance(sde: sg.CLD, B: Tensor) -> Tensor:
    """The critically damped covariance as the paper prints it, with powers of B beside one."""
    g = 1 / sde.friction
    M, v0 = sde.mass, sde.gamma * sde.mass
    e = torch.exp(4 * B * g)
    xx = (e - 1 - 4 * B * g - 8 * B**2 * g**2) + 16 * B**2 * g**4 * v0
    xv = 4 * B**2 * g + 4 * B * g**2 * v0 * (1 - 2 * B * g)
    vv = M * (e - 1 + 4 * B * g - 8 * B**2 * g**2) + v0 * (1 - 2 * B * g) ** 2
    return torch.stack([xx, xv, xv, vv]).reshape(2, 2) / e


def kernel_by_scipy(sde: sg.CLD, B: float) -> tuple[np.ndarray, np.ndarray]:
    """Transition matrix and covariance over the integrated rate B, by SciPy's exponential of one block matrix.

    Taken over a part of B that keeps its entries tame, and doubled.

    Source: Van Loan, 1978, doi:10.1109/TAC.1978.1101743.
    """
    A, Q = sde.A.array, sde.D.array @ sde.D.array.T
    n = max(0, math.ceil(math.log2(B * np.abs(A).sum(1).max())))
    V = scipy.linalg.expm(np.block([[A, Q], [np.zeros((2, 2)), -A.T]]) * B / 2**n)
    phi, N = V[:2, :2], V[:2, 2:] @ V[:2, :2].T
    for _ in range(n):
        N, phi = N + phi @ N @ phi.T, phi @ phi
    return phi, N


def exact_covariance(sde: sg.CLD, B: float) -> np.ndarray:
    """Covariance of the state given the data, whose velocity starts with a variance of its own."""
    phi, N = kernel_by_scipy(sde, B)
    return np.asarray(phi @ sde.initial_covariance.array @ phi.T + N)


def covariance_table() -> list[str]:
    """Rows: B; columns: damping, and the printed form of the critical one."""
    kinds = {"critical": sg.CLD(), "overdamped (3x)": sg.CLD(friction=3.0), "underdamped (0.3x)": sg.CLD(friction=0.3)}
    lines = ["| B | " + " | ".join(kinds) + " | critical, as printed |", "|---|" + "---:|" * (len(kinds) + 1)]
    for B in np.geomspace(1e-5, 10, 7):
        rate = torch.tensor(B, dtype=torch.float32)
        cells = []
        for sde in [*kinds.values(), None]:
            own = sg.CLD() if sde is None else sde
            phi, N = own.transition_of_rate(rate)
            covariance = printed_covariance(own, rate) if sde is None else (
                phi @ own.initial_covariance_like(phi) @ phi.mT + N
            )  # fmt: skip
            exact = exact_covariance(own, float(rate))
            scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
            cells.append(f"{np.abs((covariance.double().numpy() - exact) / scale).max():.1e}")
        lines.append(f"| {B:.0e} | {' | '.join(cells)} |")
    return lines


def entries() -> list[tuple[str, sg.Score, sg.SDE, sg.Solver | str, str]]:
    """Name, score, process, solver, grid."""
    vp, ve, cld = sg.VPSDE(), sg.VESDE(), sg.CLD()
    net = load_digits_velocity()
    trained = sg.scores.from_velocity_noise(net, cld, mixed=float(net.sigma_data))
    joint = sg.scores.from_joint_denoiser(load_digits_denoiser(), cld)
    em, rk = sg.EulerMaruyama(), "heun2"
    return [
        ("VP: Euler-Maruyama", digits_score(vp), vp, em, "quadratic"),
        ("VP: DPM-Solver++(2M)", digits_score(vp), vp, "dpm++2m", "log-snr"),
        ("VE: Euler-Maruyama", digits_score(ve), ve, em, "uniform"),
        ("VE: DPM-Solver++(2M)", digits_score(ve), ve, "dpm++2m", "log-snr"),
        ("CLD, trained: Euler-Maruyama, quadratic steps", trained, cld, em, "quadratic"),
        ("CLD, trained: SSCS", trained, cld, sg.schemes.SSCS(), "quadratic"),
        ("CLD, trained: Heun in time", trained, cld, rk, "quadratic"),
        ("CLD, trained: gDDIM, 2 evaluations", trained, cld, sg.schemes.GDDIM(2), "quadratic"),
        ("CLD, trained: gDDIM, 3 evaluations", trained, cld, sg.schemes.GDDIM(3), "quadratic"),
        ("CLD, the denoiser: SSCS", joint, cld, sg.schemes.SSCS(), "quadratic"),
        ("CLD, the denoiser: gDDIM, 3 evaluations", joint, cld, sg.schemes.GDDIM(3), "quadratic"),
    ]


def digits_table(n: int, seed: int) -> list[str]:
    """Rows: samplers; columns: network calls."""
    classifier, labels = load_digits_classifier(), torch.arange(n) % 10
    held_out = classifier.features(digits_data("held_out")[0])
    lines = ["| sampler | " + " | ".join(f"{nfe} NFE" for nfe in BUDGETS) + " |", "|---|" + "---:|" * len(BUDGETS)]
    for name, score, sde, solver, grid in tqdm(entries(), desc="samplers"):
        cells = []
        for nfe in BUDGETS:
            shape = (n, 1, 8, 8) if sde.marginal_kind == "scalar" else (n, 2, 1, 8, 8)
            kwargs = {"y": labels}
            res = sg.sample(score, sde, shape, solver=solver, grid=grid, nfe=nfe, seed=seed, model_kwargs=kwargs)
            x = res.x if sde.marginal_kind == "scalar" else res.x[:, 0]
            distance = frechet_distance(classifier.features(x), held_out, features=FEATURES).value
            cells.append(f"{distance:.2f}" if distance < 1000 else f"{distance:.0e}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    """Print both tables and write them to cld.md."""
    parser = command.parser(__doc__, out="out/bench")
    parser.add_argument("--n", type=int, default=1000, help="samples for each entry")
    parser.add_argument("--seed", type=int, default=0)
    args = command.begin(parser)
    text = "\n".join(
        ["Largest error of the covariance in float32", "", *covariance_table(), "",
         f"Frechet distance of {args.n} digits to the held-out ones ({FEATURES})", "", *digits_table(args.n, args.seed)]
    )  # fmt: skip
    (args.out / "cld.md").write_text(text + "\n")
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
