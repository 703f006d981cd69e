r"""Comparison of a network with data: whether it predicts what it was taken for.

Of data $x_0$ with the means m and variances v of their coordinates, $x = \alpha x_0 + \sigma\epsilon$ at a few noise
levels about the size of the data. The best estimate that is linear in each coordinate is a Gaussian's,

$$ G(x) = m + \frac{\alpha v}{\alpha^2 v + \sigma^2}\,(x - \alpha m), \qquad
   \rho = \exp\operatorname{mean}_{\sigma/\alpha} \log \frac{|D - x_0|}{|G - x_0|}, $$

and a network knows at least as much: $\rho$ is 1 or less. Most of an error is what nobody can know of $x_0$, so that a
wrong reading may be as good as a Gaussian too. So the same network is read otherwise, as the prediction of something
else, with other labels of the time, scales of the state and schedules. A reading that is better is compared with the
given one datum by datum, on more noises: if the difference is more than chance, that is what the network is.

Near pure noise, at larger levels, D says little, but the flow of $y = x/\alpha$ is $dy = \hat\epsilon\,ds$ on levels
$s = \sigma/\alpha$: a noise estimate that is off by $\delta(s)$ more than the Gaussian's displaces y by up to
$\int \delta\,ds$, in standard deviations of its noise by $\int \delta\,d\log s$.

What errs by little at each level adds up on the way from noise. Samples of the network itself are compared with those
of a Gaussian by the same steps from the same noises, so that neither the solver nor the start is in their ratio; and
its errors with those of the best linear estimate, with the covariances of one half of the data at the other half.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sgm_sde._utils.checks import check_integer, described, instance_of, not_finite, require_values
from sgm_sde._utils.elsewhere import OF_CHECKS, named_elsewhere
from sgm_sde._utils.warn import warn
from sgm_sde.engine.noise import NoiseStream, resolve_seeds
from sgm_sde.evaluation.score_check.comparisons import (
    WORSE_AT_A_LEVEL,
    compare_gradients,
    compare_near_noise,
    compare_spread,
    compare_with_gaussian,
    compare_with_itself,
    compare_with_linear,
    compare_with_own_data,
)
from sgm_sde.evaluation.score_check.readings import better_reading
from sgm_sde.evaluation.score_check.result import ScoreCheck
from sgm_sde.evaluation.score_check.states import Noises
from sgm_sde.processes.base import CheckError
from sgm_sde.processes.kinds import has_scalar_marginal
from sgm_sde.sampling.start import PriorWarning, words_if_data_off_prior
from sgm_sde.scores.conditions import require_rows
from sgm_sde.scores.model import BoundScore
from sgm_sde.scores.score import Score

FEWEST = 16  # data, for means and variances


@named_elsewhere(OF_CHECKS)
def check_score(
    score: Score, data: Tensor, *, seed: int = 0, model_kwargs: Mapping[str, object] | None = None
) -> ScoreCheck:
    r"""The denoising error of a network on data, against the mistakes that are made in telling what it predicts.

    A network that is read with another time label, prediction, sign, schedule or input scale than it was trained with
    gives samples of an ordinary size and of a wrong law. With some data that shows: some fifty calls on all of the
    data for it as it is, 350 for other readings, and for data of few numbers some hundred more, with other noises.

    Named is a reading that errs less by .7 % (another scale), 3 % (another label or schedule) or a tenth (another
    prediction, and flows), and by three and a half standard errors over the data; another label, schedule or scale that
    errs more at no noise level. Not found are mistakes that change
    the estimates by less, as of a scale or schedule where estimates hardly depend on the network, and with few data
    those that change them by little. Nor are schedules that are not DDPM's, Stable Diffusion's or the cosine, and
    classes that were mixed up. Data of another place or scale than in training are distinguished from other readings by
    samples of the network, where it errs more on the data than a Gaussian at some level. Of a flow of coupled pairs
    only the readings are compared, since its states are not data with independent noise.

    Args:
        score: of a network; its process is the one it was trained on.
        data: x_0 (n, *), as the network was trained on it: n at least 16, some 64 tell enough.
        seed: of the noise.
        model_kwargs: the network's further arguments, for these n data.

    Returns:
        the errors at seven noise levels.

    Raises:
        CheckError: if the network is worse than a Gaussian fitted to the data by half, another reading is better than
            the given one, or it knows data of another place or scale; with the errors, and the best reading or the
            place and scale.
        TypeError: for a process without alpha(t) and sigma(t), a function in place of a score, data of integers, and
            arguments that are no mapping.
        ValueError: for fewer data, data that are not finite or all the same, a seed below 0, another number of rows
            than of data in `sg.PerSample`, and a network that returns what is not finite.

    Warns:
        ScoreCheckWarning: if a second call on the same states moves its estimates; if its gradient is not that of its
            output, as where it rounds or detaches some of it; if it errs a quarter more than the
            Gaussian at some noise level, or its estimate of the noise near pure noise displaces samples by a quarter of
            the noise's standard deviation or more; if it errs a tenth more than the best linear estimate; and if
            samples of its own spread a tenth more or less than the data, by three standard errors. Of guided scores the
            last two are not asked.
        PriorWarning: if at T the process leaves so much of these data that samples, which start from noise alone, are
            off by a quarter of the data's standard deviation.

    Examples:
        >>> import torch
        >>> import sgm_sde as sg
        >>> sde, law = sg.VPSDE(), sg.oracles.GaussianMixture(torch.tensor([[-1.0], [1.0]]), 0.1)
        >>> data = torch.cat([torch.full((32, 1), -1.0), torch.full((32, 1), 1.0)])
        >>> check_score(sg.from_score(law.score(sde), sde), data).ratio < 1
        True
    """
    instance_of("score", score, Score, "a score, as from_noise makes it")
    sde = score.sde
    if not has_scalar_marginal(sde):
        raise TypeError(f"check_score needs a LinearSDE, got {described(sde)}")
    require_values("data", data, "(n, *)")
    if not data.ndim or len(data) < FEWEST or not data.numel():
        raise ValueError(f"data must be a tensor (n, *) of at least {FEWEST} data, got {described(data)}")
    for i in not_finite(data)[:1]:
        raise ValueError(f"data must be finite, sample {i} is not")

    model = BoundScore(score, sde, (sde.eps, sde.T), model_kwargs)
    require_rows(model.kwargs, len(data))
    seeds = resolve_seeds(check_integer("seed", seed, 0), None, len(data))
    x0 = data.detach().to(torch.promote_types(data.dtype, torch.float32))
    noises = Noises(sde, x0, NoiseStream(seeds, "check"))
    noised = noises.first
    with torch.no_grad():
        estimates = [noised.estimate_of(model, k) for k in range(len(noised.nodes))]
        compare_with_itself(noised, model, estimates)
        compare_gradients(noised, model, NoiseStream(seeds, "probe"))
        found = noised.check([noised.error(estimate) for estimate in estimates])
        better = better_reading(score, noises, model.kwargs, found) if type(score) is Score else None
        if not score.coupled and (better is not None or max(found.ratios) > WORSE_AT_A_LEVEL):
            compare_with_own_data(noises, model, found, better)

    if better is not None:
        raise CheckError(f"the network is better read as {better.words}:\n{found}")
    if not score.coupled:
        compare_with_gaussian(found)
        with torch.no_grad():
            compare_near_noise(noises.near_pure_noise(), model)
        if not score.guided:
            compare_with_linear(noised, estimates)
    if words := words_if_data_off_prior(x0, sde):
        warn(words, PriorWarning)
    elif not score.guided:
        with torch.no_grad():
            compare_spread(noises, model)
    return found
