"""The one loop: runs any `Program` on any model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypedDict

import torch
from torch import Tensor

from sgm_sde.engine.lowering import Key, Needed, Plan
from sgm_sde.engine.memory import Memory, Summands, allocate_memory
from sgm_sde.engine.noise import NoiseSource
from sgm_sde.engine.program import Program

if TYPE_CHECKING:
    from typing_extensions import Unpack

AS_IT_IS = (0.0, 1.0)  # what is stored of (state, value): the value
WARM_UPS = 2  # runs before a graph is recorded: what a network does at its first calls does not belong into it


class Evaluator(Protocol):
    """A network bound to one run: whatever the executor evaluates."""

    def plan(self, program: Program) -> Plan:
        """The program made ready for what the network predicts."""

    def times(self, ts: Sequence[float], x: Tensor) -> Sequence[Tensor]:
        """Each of the times as a tensor (B,) on the state's device, before the loop."""

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """Output of the network at state x (B, *) and time t (B,)."""


class Hook(Protocol):
    """State-dependent callback at grid nodes: corrector, projection."""

    def __call__(self, x: Tensor, i: int) -> Tensor:
        """The state to continue with from node i."""


@dataclass(frozen=True, eq=False)
class Position:
    """Position of a run: a stage whose state is made, hooks of a node included, and is to be evaluated next.

    Attributes:
        node: number of the grid's node, or, inside a step, of the node that it left.
        x: the state there (B, *).
        history: what later stages need besides, by kind and number: a scale, and the value divided by it.
        stage: number of the stage in the table, where it is inside a step.
    """

    node: int
    x: Tensor
    history: Mapping[Key, tuple[float, Tensor]] = field(default_factory=dict, repr=False)
    stage: int | None = None

    def stage_in(self, plan: Plan) -> int:
        """Number of the stage in a plan."""
        return plan.node_stages[self.node] if self.stage is None else self.stage


def missing(plan: Plan, start: Position) -> list[Needed]:
    """Evaluations that a resumed run needs and its history does not have."""
    return [need for need in plan.needed[start.stage_in(plan)] if (need.kind, need.number) not in start.history]


@dataclass
class Run:
    """Result of a run.

    Attributes:
        x: the last state (B, *).
        nodes: number of nodes reached, the first one included.
        position: where it was stopped, None at the end.
    """

    x: Tensor
    nodes: int = 0
    position: Position | None = None


Stages = Generator[tuple[Tensor, Tensor], Tensor | None, Run]


class LoopOptions(TypedDict, total=False):
    """Options of a `Loop`, which `execute` passes on."""

    hooks: Sequence[Hook]
    on_node: Callable[[int, Tensor], bool] | None
    on_output: Callable[[Tensor, Tensor, float], None] | None
    grad: bool
    start: Position | None
    own: bool


class Loop:
    """A run of a plan, as a generator of the states to evaluate, with its position.

    States are memory of the run: what is written to one before its output is sent is the state that the run continues
    with. No tensor decides a branch here, and nothing is read back from the device.

    Args:
        plan: the table, made ready for the network.
        x: initial state, at least float32; not changed, unless it is the run's own.
        times: those of the stages, (B,) each.
        noise: where noise comes from.
        hooks: called in order at each node with the state there, before it is evaluated.
        on_node: called with the node's number and its state (neither keep nor change it); True stops the run.
        on_output: called with (x, output, t) at the first evaluation after each node.
        grad: keep the graph for backpropagation, and with it every intermediate value.
        start: where to resume another run; its history must have what `missing` asks for.
        own: x may be overwritten: it is the memory of the first state.

    Attributes:
        memory: registers and history.
        stage: number of the stage that the run is at.
        run: the result so far.
    """

    def __init__(
        self,
        plan: Plan,
        x: Tensor,
        times: Sequence[Tensor],
        noise: NoiseSource,
        *,
        hooks: Sequence[Hook] = (),
        on_node: Callable[[int, Tensor], bool] | None = None,
        on_output: Callable[[Tensor, Tensor, float], None] | None = None,
        grad: bool = False,
        start: Position | None = None,
        own: bool = False,
    ) -> None:
        self.plan = plan
        self.times = times
        self.noise = noise
        self.hooks = hooks
        self.on_node = on_node
        self.on_output = on_output
        self.memory: Memory = allocate_memory(x, plan, grad, own=own)
        self.stage = 0
        self.run = Run(x)
        self._x = x
        self._output: Tensor | None = None  # on its way from `drive` to `stages`, and to the next stage
        self._start = start
        self._shape = tuple(x.shape)
        self._dtype = x.dtype
        self._device = x.device

    def stages(self) -> Stages:
        """The run: yields a state and its time, is sent the network's output there, and returns the result."""
        first = self._begin()
        memory = self.memory
        run = self.run
        reported = run.nodes
        for k, stage in enumerate(self.plan.program.stages[first:], first):
            self.stage = k
            new = k > first or self._start is None  # not seen by hooks and callback before
            if k > first:
                memory.combine(k, self.plan.instructions[k], self._terms(k))
            if stage.node and self._stops_at_node(new):
                break

            if stage.evaluate:
                output = yield self.state, self.times[k]
                if output is None:
                    output, self._output = self._output, None
                assert output is not None
                if self.on_output is not None and run.nodes > reported:
                    self.on_output(self.state, output, stage.t)
                    reported = run.nodes
                self._output = self._take(output)
                del output  # what the next stage takes of it is freed before noise is drawn
        return run

    def drive(self, evaluate: Callable[[Tensor, Tensor], Tensor]) -> Run:
        """The result, with outputs from a function of state and time."""
        loop = self.stages()
        while True:
            try:
                asked = next(loop)
            except StopIteration as end:
                run: Run = end.value
                return run
            except RuntimeError as error:
                if isinstance(error.__cause__, StopIteration):  # which a generator does not let a hook raise
                    raise error.__cause__ from None
                raise

            # Outside of the generator: a StopIteration of the network's is no end of the run. Left here and not sent,
            # since what is sent lives on until the next state is there.
            self._output = evaluate(*asked)
            del asked

    @property
    def state(self) -> Tensor:
        """The state at the stage: memory of the run."""
        return self.memory.registers[self.plan.instructions[self.stage].target]

    def position(self) -> Position:
        """Position of the run, with copies of its history; the state in it is memory of the run."""
        history = {}
        for need in self.plan.needed[self.stage]:
            values = self.memory.registers if need.kind == "state" else self.memory.slots
            history[need.kind, need.number] = need.scale, values[need.place].clone()
        inside = not self.plan.program.stages[self.stage].node
        return Position(self.run.nodes - 1, self.state, history, self.stage if inside else None)

    def _begin(self) -> int:
        """Fill the memory for the first stage; returns its number."""
        start = self._start
        stages = self.plan.program.stages
        self.stage = 0 if start is None else start.stage_in(self.plan)
        reached = sum(stage.node for stage in stages[: self.stage])
        self.run = Run(self._x, reached)

        target = self.plan.instructions[self.stage].target
        if start is None:
            self.memory.replace(target, self._x)
            return 0
        self.memory.replace(target, start.x)
        self._load(start.history)
        return self.stage

    def _load(self, history: Mapping[Key, tuple[float, Tensor]]) -> None:
        """Put what later stages need into memory."""
        for need in self.plan.needed[self.stage]:
            scale, value = history[need.kind, need.number]
            if need.kind == "state":
                self.memory.replace(need.place, value)
                continue

            # Another network's table may store the same evaluation in another scale.
            self.memory.load(need.place, value if scale == need.scale else scale / need.scale * value)

    def _terms(self, k: int) -> Summands:
        """The network's last output and new noises, as far as stage k needs them, with their coefficients.

        A term that is not held on to is gone when the next one is made.
        """
        ins = self.plan.instructions[k]
        output, self._output = self._output, None
        if ins.output is not None and output is not None:
            yield output, ins.output
        del output

        for c, slot in ins.noises:
            z = self.noise.normal(self._shape, self._dtype, self._device)
            if slot is not None:
                self.memory.store(slot, z, z, AS_IT_IS)
            yield z, c
            del z

    def _stops_at_node(self, new: bool) -> bool:
        """Hooks and callback at a node, if they have not seen it; True if the run stops there."""
        run = self.run
        if new:
            target = self.plan.instructions[self.stage].target
            for hook in self.hooks:
                self.memory.replace(target, hook(self.state, run.nodes))
        run.nodes += 1
        run.x = self.state
        if not new or self.on_node is None or not self.on_node(run.nodes - 1, run.x):
            return False

        run.position = self.position()
        return True

    def _take(self, output: Tensor) -> Tensor | None:
        """The output in the run's dtype; None if it is stored, from where the next stage takes it, too."""
        ins = self.plan.instructions[self.stage]
        if output.dtype is not self._dtype:
            output = output.to(self._dtype)
        if ins.store is not None:
            self.memory.store(ins.store, self.state, output, ins.mix)
            return None
        if self.memory.holds(ins.target, output):
            return output.clone()  # a network that returns its input, which is about to be overwritten
        return output


def prepare(program: Program, x: Tensor, model: Evaluator, noise: NoiseSource, **options: Unpack[LoopOptions]) -> Loop:
    """The run of a program from x (B, *) on a model, with options as `Loop` takes them.

    For callers who evaluate the network themselves: `prepare(...).stages()` yields each state and is sent the output.
    """
    plan = model.plan(program)
    return Loop(plan, x, model.times([stage.t for stage in program.stages], x), noise, **options)


def execute(
    program: Program,
    x: Tensor,
    model: Evaluator,
    noise: NoiseSource,
    **options: Unpack[LoopOptions],
) -> Run:
    """Run a program from the initial state x (B, *), or from where another run of it was stopped.

    Args:
        program: the table.
        x: initial state, at least float32; not changed, unless it is the run's own.
        model: what to evaluate.
        noise: where noise comes from.
        options: `hooks`, `on_node`, `on_output`, `grad`, `start` and `own`, as `Loop` takes them.

    Returns:
        the last state, how many nodes were reached and, if `on_node` stopped the run, where it stands.
    """
    return prepare(program, x, model, noise, **options).drive(model.evaluate)


class Recording:
    """A run on a CUDA device, recorded once as a graph and replayed: no Python and no launches in the loop.

    It owns its memory, that of the run's noises included; a replay returns copies.

    Args:
        program: the table.
        x: a state of the shape, dtype and device of all runs to come.
        model: what to evaluate; its network must not wait for the device.
    """

    def __init__(self, program: Program, x: Tensor, model: Evaluator) -> None:
        self.model = model
        self.x = x.detach().clone()
        noises = {m for stage in program.stages for m, _ in stage.noises}
        self.z = [torch.zeros_like(self.x) for _ in noises]
        self.loop = prepare(program, self.x, model, PreDrawnNoise(self.z))

        # Graphs are warmed up on another stream than the one in use.
        current = torch.cuda.current_stream(x.device)
        side = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._run()
        current.wait_stream(side)

        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.run = self._run()

    def _run(self) -> Run:
        self.loop.noise = PreDrawnNoise(self.z)
        return self.loop.drive(self.model.evaluate)

    def replay(self, x: Tensor, noise: NoiseSource) -> Run:
        """The run from another state x with other noise."""
        self.x.copy_(x)
        for z in self.z:
            z.copy_(noise.normal(tuple(x.shape), x.dtype, x.device))
        self.graph.replay()
        return Run(self.run.x.clone(), self.run.nodes)


class PreDrawnNoise:
    """Noise drawn before."""

    def __init__(self, z: Sequence[Tensor]) -> None:
        self._z = iter(z)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        return next(self._z)
