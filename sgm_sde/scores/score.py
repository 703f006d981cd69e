"""Scores from networks of any prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

from sgm_sde._utils.autograd import is_transformed, require_asked
from sgm_sde._utils.cache import cached
from sgm_sde._utils.checks import (
    described,
    flag,
    float_dtype,
    function_name,
    instance_of,
    known_arguments,
    one_of,
    require_function,
)
from sgm_sde._utils.elsewhere import OF_SCORES
from sgm_sde._utils.inputs import network_inputs
from sgm_sde._utils.shapes import Time, batch_time
from sgm_sde._utils.tree import Path
from sgm_sde.engine.program import MATRIX_OUTPUTS, PREDICTIONS
from sgm_sde.engine.reverse import ScoreFn
from sgm_sde.engine.times import require_inside
from sgm_sde.identity import ReachesNetwork, Value, Writer, class_name, fields_of
from sgm_sde.processes.base import SDE, in_words_of_both, measuring_times, require_sde
from sgm_sde.processes.kinds import has_matrix_marginal, has_scalar_marginal
from sgm_sde.scores.calls import require_network, tell_call
from sgm_sde.scores.conditions import ROWS, bare
from sgm_sde.scores.time_labels import TimeLabel, require_label

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from sgm_sde.processes import LinearSDE


Network = Callable[..., Tensor]  # net(x, label, **kwargs): its output (B, *) at states (B, *) and labels (B,)
FADED = 0.5  # of alpha at eps, by which alpha at T is smaller where the signal fades
ROWS_SEEN = 16  # of the state, compared before and after the first call


class ScoreOptions(TypedDict, total=False):
    """Options of a network's interface; see `Score`."""

    time_label: TimeLabel | None
    input_scale: Callable[[Tensor], Tensor] | None
    dtype: torch.dtype | None


class DenoiserOptions(ScoreOptions, total=False):
    """Options of a denoiser's interface; see `from_denoiser`."""

    bare: bool | None


class FlowOptions(ScoreOptions, total=False):
    """Options of a flow network's interface; see `from_flow`."""

    coupled: bool


class Traits(TypedDict, total=False):
    """The traits of a score that the default solver depends on; see `sampling.defaults.default_setting`."""

    coupled: bool
    guided: bool
    tilted: bool
    bare: bool
    jumps: tuple[float, ...]


class Score(Value, ReachesNetwork):
    r"""A network with the knowledge of what it predicts: callable as the score $s(x, t)$.

    Made by `from_noise`, `from_denoiser`, `from_v`, `from_flow`, `from_score`. Solvers use the network's
    own output and fold the conversion into their coefficients, in double precision.

    Args:
        net: `net(x, label, **kwargs)` with x (B, *) and label (B,); returns (B, *).
        sde: the process that the network was trained on.
        prediction: `"noise"`, `"data"`, `"v"`, `"flow"` or `"score"`.
        time_label: from t (B,) to what the network expects; t itself if not given.
        input_scale: from t (B,) to the factor on x that the network expects, such as 1 / alpha for networks
            trained on x / alpha; 1 if not given.
        dtype: what x is cast to for the call; the dtype of the network's first floating-point parameter if it
            has one. The state stays as it is, at least float32.
        coupled: whether a flow was trained on pairs of data and noise that were coupled; see `from_flow`.
        bare: whether a network that predicts the data has no skip connection; see `from_denoiser`.

    Attributes:
        branches: rows of the network that one sample takes in a call, at most: more than 1 for guided scores.
        recordable: whether a call does the same at every time, so that a run can be one CUDA graph.
        parts: scores that it is made of, none for that of a network.

    Raises:
        ValueError: for a prediction of another name, pairs that were coupled for another prediction than a flow, and
            a `bare` for another than the data; at a call, if the output is not floating-point of the shape of x, or x
            was changed in place, or where coupled pairs give no score.
        TypeError: if the prediction needs a process with alpha(t) and sigma(t) and there is none; for a network that
            does not take state and time by position.

    Examples:
        >>> import sgm_sde as sg
        >>> score = Score(lambda x, t: x, sg.VPSDE(), "noise")
        >>> score.prediction, score(torch.ones(1, 2), 1.0)
        ('noise', tensor([[-1.0000, -1.0000]]))
    """

    _elsewhere = OF_SCORES

    branches: int = 1
    recordable: bool = True
    parts: tuple[Score, ...] = ()
    _seen: bool = False  # a call, and that the network left its input as it was

    def __init__(
        self,
        net: Network,
        sde: SDE,
        prediction: str,
        *,
        time_label: TimeLabel | None = None,
        input_scale: Callable[[Tensor], Tensor] | None = None,
        dtype: torch.dtype | None = None,
        coupled: bool = False,
        bare: bool | None = None,
    ) -> None:
        require_network(net)
        if isinstance(net, Score) and prediction != "score":
            raise TypeError(f"a network that predicts {prediction} is needed, got the score {described(net)}")
        require_sde(sde)
        instance_of("prediction", prediction, str, "a name")
        known = MATRIX_OUTPUTS if has_matrix_marginal(sde) else PREDICTIONS
        if prediction not in PREDICTIONS:
            one_of("prediction", prediction, known)
        if prediction not in known or (prediction != "score" and sde.marginal_kind == "unknown"):
            raise TypeError(f"a network that predicts {prediction} needs a LinearSDE, got {described(sde)}")
        require_label(time_label)
        require_function("input_scale", input_scale, "of t", 1, optional=True)

        self._coupled = flag("coupled", coupled)
        if coupled and prediction != "flow":
            raise ValueError(f"coupled=True is of flows, got a network that predicts {prediction}: leave it out")

        self._bare = None if bare is None else flag("bare", bare)
        if bare is not None and prediction != "data":
            raise ValueError(f"bare={bare} is of denoisers, got a network that predicts {prediction}: leave it out")

        self.net = net
        self.sde = sde
        self.prediction = prediction
        self.time_label = time_label
        self.input_scale = input_scale
        self._dtype = None if dtype is None else float_dtype("dtype", dtype)
        plain = time_label is None and input_scale is None and dtype is None
        self._as_it_is = plain and not isinstance(net, nn.Module)  # x and t go to the network as they are

    @property
    def parameter(self) -> Tensor | None:
        """The network's first floating-point parameter, which tells its device and dtype."""
        if not isinstance(self.net, nn.Module):
            return None
        return next((p for p in self.net.parameters() if p.is_floating_point()), None)

    @property
    def coupled(self) -> bool:
        """True for a flow of coupled pairs, which gives no score, and what is made of one."""
        return self._coupled or any(part.coupled for part in self.parts)

    @property
    def guided(self) -> bool:
        """True for a score that guidance has changed, and what is made of one."""
        return any(part.guided for part in self.parts)

    @property
    def follows_marginals(self) -> bool:
        """True if the flow is known to go along the process' marginals: an added gradient may be any function's."""
        return self.is_density and not self.tilted

    @property
    def tilted(self) -> bool:
        """True for a score that the gradient of a function of x has been added to, and what is made of one."""
        return any(part.tilted for part in self.parts)

    @property
    def bare(self) -> bool:
        """True for a network that predicts the data without a skip connection, and what is made of one."""
        if self.parts:
            return any(part.bare for part in self.parts)
        if self._bare is not None:
            return self._bare
        return self.input_scale is None and taken_for_bare(self.prediction, self.sde)

    @property
    def jumps(self) -> tuple[float, ...]:
        """Noise levels sigma / alpha at which it is known to jump: the ends of intervals of guidance, falling."""
        found = {level for part in self.parts for level in part.jumps}
        return tuple(sorted(found, reverse=True))

    @property
    def traits(self) -> Traits:
        """Those that the default solver depends on."""
        return {
            "coupled": self.coupled,
            "guided": self.guided,
            "tilted": self.tilted,
            "bare": self.bare,
            "jumps": self.jumps,
        }

    @property
    def null_label(self) -> object:
        """The label that stands for none, as the network declares it by `NULL_LABEL`; None where it does not."""
        return getattr(self.net, "NULL_LABEL", None)

    @property
    def conditions(self) -> frozenset[Path]:
        """Arguments known to have one row per sample, by their paths: `y` of a network that declares a `NULL_LABEL`."""
        return frozenset({("y",)} if self.null_label is not None else ())

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the network's input; None for no cast."""
        if self._dtype is not None:
            return self._dtype
        parameter = self.parameter
        return None if parameter is None else parameter.dtype

    def _held(self) -> dict[str, object]:
        held: dict[str, object] = {}
        if self._coupled:
            held["coupled"] = True
        if self._bare is not None:
            held["bare"] = self._bare
        return held

    def _written(self, writer: Writer, above: tuple[int, ...]) -> dict[str, object]:
        """Prediction, time label, scales, and the network or scores inside."""
        parts = fields_of(self)
        inner = [name for name, item in parts.items() if _holds_score(item)]
        known: dict[str, object] = {"class": class_name(type(self)), "sde": writer.write(self.sde, above)}
        if not inner:
            known["net"] = writer.network(self.net, above)

        done = {"sde"} if "net" in inner else {"sde", "net"}
        for name, item in parts.items():
            if name in done:
                continue
            if name in ("time_label", "input_scale") and callable(item):
                known[name] = writer.function_of_times(item, measuring_times(self.sde, 9), above)
            else:
                known[name] = writer.write(item, above)
        for name in inner:
            _drop_process(known[name])

        known["dtype"] = writer.write(self.dtype, above)
        return known | writer.code_elsewhere(self, above)

    def cast_to(self, dtype: torch.dtype) -> Score:
        """The same score with x cast to `dtype` for the call."""
        return self._with(self.net, dtype)

    def map_net(self, change: Callable[[Network], Network]) -> Score:
        """The same score from what `change` makes of its network."""
        return self._with(change(self.net), self._dtype)

    def _with(self, net: Network, dtype: torch.dtype | None) -> Score:
        options = {"time_label": self.time_label, "input_scale": self.input_scale}
        return Score(net, self.sde, self.prediction, dtype=dtype, coupled=self._coupled, bare=self._bare, **options)

    @property
    def is_density(self) -> bool:
        """True if it is the score of the process' marginals, so that likelihoods are defined."""
        return True

    def network_evals(self, t: Tensor) -> int:
        """Samples that the network sees in a call at t (B,)."""
        return t.shape[0] * self.branches

    def output(self, x: Tensor, t: Tensor, /, **kwargs: object) -> Tensor:
        """The network's own output at x (B, *) and t (B,), as it returns it; its type and shape are checked.

        Raises:
            ValueError: for an output that is no floating-point tensor of the shape of x, and a network that changes x
                in place.
        """
        kwargs.pop(ROWS, None)  # for a score around this one, or beside it
        kwargs = bare(kwargs) if kwargs else kwargs
        version = None if x.is_inference() else x._version
        first = None if self._seen else _first_rows(x)
        inputs = (x, t) if self._as_it_is else self._inputs(x, t)
        try:
            out = self.net(*inputs, **kwargs)
        except Exception as error:
            tell_call(error, *inputs, kwargs)
            raise

        if not isinstance(out, Tensor):
            raise ValueError(f"the network must return a tensor, got {type(out).__name__}{_tensor_inside(out)}")
        if out.shape != self._shape(x):
            raise ValueError(
                f"the network returned shape {tuple(out.shape)} for x of shape {tuple(x.shape)}{_halves(out, x)}"
            )
        if not out.is_floating_point():
            raise ValueError(f"the network must return floating-point numbers, got dtype {out.dtype}")
        counted = version is not None and x._version != version
        if counted or (first is not None and _differ(x, first)):
            raise ValueError(
                "the network changed its input in place, which is the state of the run: let it work on x.clone(), and "
                "give a first nn.ReLU no inplace=True"
            )
        self._seen = True

        state, *label = inputs
        require_asked(lambda x: self.net(x, *label, **kwargs), state, out, kwargs, self.net)
        return out

    def _inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """State and time label as the network takes them."""
        x, label = network_inputs(x, t, self.time_label, self.input_scale)
        dtype = self.dtype
        if dtype is None:
            return x, label

        if label.is_floating_point():
            label = label.to(torch.promote_types(dtype, torch.float32))  # bfloat16 merges neighbouring times
        return x.to(dtype), label

    def _shape(self, x: Tensor) -> torch.Size:
        """Shape of the network's output for an input x."""
        return x.shape

    def predict(self, target: str, x: Tensor, t: Time, /, **kwargs: object) -> Tensor:
        """A prediction (see `sgm_sde.processes.predictions`) at x (B, *) and t, () or (B,)."""
        if target == "score":
            require_score(self, "this call")
        t = batch_time(t, x, tokens=has_scalar_marginal(self.sde))
        return self.convert(target, x, t, self.output(x, t, **kwargs))

    def convert(self, target: str, x: Tensor, t: Tensor, out: Tensor) -> Tensor:
        """A prediction at x (B, *) and t (B,) from the network's output there.

        Raises:
            ValueError: for an unknown prediction.
            TypeError: where the process has no alpha(t) and sigma(t) to convert with.
        """
        return self.sde.convert(self.prediction, target, x, t, out.to(x.dtype))

    def __call__(self, x: Tensor, t: Time, **kwargs: object) -> Tensor:
        """The score at x (B, *) and t, () or (B,).

        Raises:
            ValueError: for a flow of coupled pairs, which gives none, times outside [0, T], and t = 0 where nothing
                there is noise; on another device than the CPU they are not looked at.
            TypeError: for a time that is True or False, and a state that is no tensor.
        """
        _require_state_first(x)
        self._require_noise(t)
        return self.predict("score", x, t, **kwargs)

    def denoised(self, x: Tensor, t: Time, **kwargs: object) -> Tensor:
        r"""Tweedie's estimate of the data, $D = E[x_0 \mid x_t] = (x + \sigma^2 s)/\alpha$.

        Raises:
            ValueError: for times outside [0, T], as for the score.
            TypeError: for a state that is no tensor.
        """
        _require_state_first(x)
        require_inside(self.sde, t)
        return self.predict("data", x, t, **kwargs)

    def _require_noise(self, t: Time) -> None:
        """Raise ValueError for times outside [0, T], and for t = 0 if sigma = 0 there: no prediction gives a score."""
        ends = require_inside(self.sde, t)
        if ends is None or ends[0] > 0 or self.prediction == "score" or not has_scalar_marginal(self.sde):
            return
        if float(self.sde.sigma(0.0)) == 0:
            raise ValueError(
                f"there is no score at t=0, where sigma = 0: take times from eps = {self.sde.eps:g} on, or "
                f"denoised(x, t)"
            )

    def __repr__(self) -> str:
        name = type(self.net).__name__ if isinstance(self.net, nn.Module) else function_name(self.net, "net")
        return f"Score({name} predicts {self.prediction}, {self.sde!r})"


def taken_for_bare(prediction: str, sde: SDE) -> bool:
    """True for networks that mostly have no skip connection: that predict the data where the signal fades."""
    return prediction == "data" and has_scalar_marginal(sde) and _fades(sde)


@cached(maxsize=64)
def _fades(sde: LinearSDE) -> bool:
    """True where alpha falls, as on VP and rectified flow, and not the noise alone grows, as on EDM and VE."""
    start, end = sde.nodes((sde.T, sde.eps))
    return start.alpha < FADED * end.alpha


def _require_state_first(x: object) -> None:
    """Raise TypeError unless the state is a tensor of at least one dimension, as times in its place may not be."""
    if not isinstance(x, Tensor) or x.ndim == 0:
        raise TypeError(f"x must be a tensor (B, *), got {described(x)}: a score is called as score(x, t)")


def _tensor_inside(output: object) -> str:
    """The way to the first tensor in an output, as the end of an error message; empty without one."""
    if isinstance(output, Mapping):
        parts = {f"[{key!r}]": item for key, item in output.items()}
    elif isinstance(output, tuple | list):
        parts = {f"[{i}]": item for i, item in enumerate(output)}
    else:
        parts = {f".{name}": item for name, item in getattr(output, "__dict__", {}).items()}

    for where, item in parts.items():
        if isinstance(item, Tensor):
            return f": give lambda x, t: net(x, t){where}, or for a model of diffusers take from_diffusers"
    return ""


def _halves(output: Tensor, x: Tensor) -> str:
    """The way to cut twice as many channels, as the end of an error message; empty for another shape."""
    if x.ndim < 2 or output.shape != (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
        return ""
    return (
        ": of twice the channels, as with a learned variance, give the first half, "
        "lambda x, t: net(x, t).chunk(2, dim=1)[0], or for a model of diffusers take from_diffusers"
    )


def from_noise(net: Network, sde: SDE, **options: Unpack[ScoreOptions]) -> Score:
    r"""A score from a network that predicts the noise: $s = -\epsilon/\sigma$.

    Args:
        net: `net(x, label, **kwargs)`.
        sde: the process it was trained on.
        options: `time_label`, `input_scale`, `dtype`; see `Score`.

    Raises:
        TypeError, ValueError: as `Score` does.

    Source: Ho et al., 2020, arXiv:2006.11239.

    Examples:
        >>> import sgm_sde as sg
        >>> score = sg.from_noise(lambda x, i: x, sg.presets.ddpm(), time_label=sg.time_labels.ddpm(1000))
        >>> score(torch.ones(1, 2), 1.0)
        tensor([[-1.0000, -1.0000]])
    """
    known_arguments("from_noise", options, ScoreOptions.__annotations__, OF_SCORES)
    return Score(net, sde, "noise", **options)


def from_denoiser(net: Network, sde: SDE, **options: Unpack[DenoiserOptions]) -> Score:
    r"""A score from a network that predicts the data: $s = (\alpha D - x)/\sigma^2$.

    A bare network makes its estimate anew at every noise level. Near the data it is off by more than the noise there,
    and samples still change down to the least level. With a skip connection, as EDM's preconditioning has, its estimate
    is the state itself there, up to the noise, and so is an exact mean of the data. The default solver depends on it.

    Args:
        net: `net(x, label, **kwargs)`.
        sde: the process to run. A network trained in EDM's coordinates runs on any linear process with
            `time_label=time_labels.noise_level(sde)` and `input_scale=lambda t: 1 / sde.alpha(t)`.
        options: `time_label`, `input_scale`, `dtype`; see `Score`; and `bare`, whether it has no skip connection. If
            not given, it is bare where alpha falls (VP, rectified flow), unless it has an `input_scale`, and not on EDM
            and VE.

    Raises:
        TypeError, ValueError: as `Score` does.

    Source: Karras et al., 2022, arXiv:2206.00364.

    Examples:
        >>> import sgm_sde as sg
        >>> score = sg.from_denoiser(lambda x, sigma: x / (1 + sigma[:, None] ** 2), sg.EDMSDE())
        >>> score(torch.ones(1, 2), 2.0)
        tensor([[-0.2000, -0.2000]])
    """
    known_arguments("from_denoiser", options, DenoiserOptions.__annotations__, OF_SCORES)
    return Score(net, sde, "data", **options)


def from_v(net: Network, sde: SDE, **options: Unpack[ScoreOptions]) -> Score:
    r"""A score from a network that predicts $v = \alpha\epsilon - \sigma x_0$ (v-prediction).

    Args:
        net: `net(x, label, **kwargs)`.
        sde: the process it was trained on.
        options: `time_label`, `input_scale`, `dtype`; see `Score`.

    Raises:
        TypeError, ValueError: as `Score` does.

    Source: Salimans & Ho, 2022, arXiv:2202.00512.

    Examples:
        >>> import sgm_sde as sg
        >>> sg.from_v(lambda x, t: 0 * x, sg.VPSDE()).denoised(torch.ones(1, 1), 1.0)
        tensor([[0.0066]])
    """
    known_arguments("from_v", options, ScoreOptions.__annotations__, OF_SCORES)
    return Score(net, sde, "v", **options)


def from_flow(net: Network, sde: SDE, **options: Unpack[FlowOptions]) -> Score:
    r"""A score from a network that predicts the time derivative of the path, $\alpha' x_0 + \sigma'\epsilon$.

    For rectified flow that is noise minus data. A network whose time runs from noise to data predicts the
    negative of it: pass `lambda x, t: -net(x, t)` with `time_label=time_labels.flow_from_noise()`.

    The score follows from it where data and noise were drawn independently in training. Where they were coupled, by
    optimal transport within a batch (OT-CFM) or by an earlier flow (reflow), the velocity is that of a flow from noise
    to data all the same, and $-E[\epsilon \mid x_t]/\sigma$ is no score. Say so by `coupled=True`: deterministic
    solvers, codes and densities are then as ever, and what needs the score is refused: stochastic solvers, correctors,
    guidance by a gradient, posteriors given a measurement, and bounds by denoising.

    Args:
        net: `net(x, label, **kwargs)`.
        sde: the process it was trained on.
        options: `time_label`, `input_scale`, `dtype`; see `Score`; and `coupled`, whether the pairs of data and noise
            that it was trained on were coupled.

    Raises:
        TypeError, ValueError: as `Score` does.

    Source: Lipman et al., 2022, arXiv:2210.02747; Liu et al., 2022, arXiv:2209.03003; coupled pairs: Tong et al., 2023,
    arXiv:2302.00482.

    Examples:
        >>> import sgm_sde as sg
        >>> sg.from_flow(lambda x, t: x, sg.RectifiedFlowSDE()).denoised(torch.ones(1, 1), 0.25)
        tensor([[0.7500]])
    """
    known_arguments("from_flow", options, FlowOptions.__annotations__, OF_SCORES)
    return Score(net, sde, "flow", **options)


def from_score(net: Network, sde: SDE, **options: Unpack[ScoreOptions]) -> Score:
    """A score from a network that predicts the score itself; for its time label, input scale and dtype.

    Args:
        net: `net(x, label, **kwargs)`.
        sde: the process it was trained on, linear or not.
        options: `time_label`, `input_scale`, `dtype`; see `Score`.

    Raises:
        TypeError, ValueError: as `Score` does.

    Source: Song & Ermon, 2019, arXiv:1907.05600.

    Examples:
        >>> import sgm_sde as sg
        >>> sg.from_score(lambda x, t: -x, sg.VPSDE())(torch.ones(1, 1), 0.5)
        tensor([[-1.]])
    """
    known_arguments("from_score", options, ScoreOptions.__annotations__, OF_SCORES)
    return Score(net, sde, "score", **options)


def as_score(score_fn: ScoreFn, sde: SDE) -> Score:
    """`score_fn` as a `Score` on `sde`.

    Raises:
        ValueError: if it is a `Score` made for another process.
        TypeError: if it is not callable, or `sde` is no process.
    """
    require_sde(sde)
    if isinstance(score_fn, Value) and not isinstance(score_fn, Score):
        raise TypeError(f"score_fn must be a function of state and time, or a score, got {described(score_fn)}")
    if not isinstance(score_fn, Score):
        return from_score(score_fn, sde)
    if score_fn.sde != sde:
        raise ValueError(
            f"the score was made for another process than the call is on: {in_words_of_both(score_fn.sde, sde)}"
        )
    return score_fn


def require_score(score: Score, what: str) -> Score:
    """The score, where something needs it.

    Raises:
        ValueError: for a flow of coupled pairs.
    """
    if score.coupled:
        raise ValueError(
            f"{what} needs the score, which a flow trained on coupled pairs (coupled=True) does not give: its velocity "
            f"is for deterministic solvers, encode, decode and log_prob"
        )
    return score


def as_density(score_fn: ScoreFn, sde: SDE) -> Score:
    """`score_fn` as a `Score` on `sde` whose likelihoods mean something.

    Raises:
        ValueError: as `as_score`, and for a score guided beyond the process' marginals.
    """
    score = as_score(score_fn, sde)
    if not score.is_density:
        raise ValueError(
            f"{score!r} is not the score of the forward process' marginals for any data, as guidance at a scale other "
            f"than 1 or in an interval is not: a likelihood under it would be that of nothing"
        )
    return score


def _first_rows(x: Tensor) -> Tensor | None:
    """A copy of the first rows of x where NumPy could write into it, None where not, or where it has no values."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or is_transformed():
        return None
    return x[:ROWS_SEEN].clone()  # with its gradient: whoever looks for networks that cut theirs sees this, too


def _differ(x: Tensor, first: Tensor) -> bool:
    """True if the first rows of x are no longer those: `x.numpy()` and `x.data` write past the version counter."""
    rows = x[: len(first)]
    return not torch.equal(rows.nan_to_num(), first.nan_to_num())


def _holds_score(value: object) -> bool:
    return isinstance(value, Score) or (isinstance(value, tuple) and bool(value) and isinstance(value[0], Score))


def _drop_process(known: object) -> None:
    """Take the process out of the spec of a score, or of a list of such, that is inside of one on the same process."""
    for score in known if isinstance(known, list) else [known]:
        if isinstance(score, dict):
            score.pop("sde", None)
