"""A trajectory on the device: the host decides which step comes, and launches it; nothing else crosses over.

A step with a network call is one captured CUDA graph for each bucket of tokens: selection, the engines, what the
scores change, the solver's update with its noise. It reads tables and noise behind the device's own step counter,
so that the same graph serves every step of every trajectory of that batch size. Steps without the network are one
kernel for the whole run of them.

Keys and values are two sets that change places at every network call, so every graph is captured twice, once
for either direction. A step runs plainly the first time, is captured the second, and replayed from then on; where
a capture fails (an engine that cannot be captured), it goes on running plainly. What a fitted plan holds after a
refresh is one more launch behind it, since it differs from refresh to refresh.

The host keeps what follows from its own decisions (ages, counts). The surprise of a refresh, which the guard of a
plan looks at, is on its way to the host as soon as it is known, and waited for only when the policy looks at it: half
way to the next refresh, with the steps up to there on the stream already. Where samples of a batch are to do different
things, the network runs on all of them, and a mask keeps the others as they were.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.manifest import Graph, Manifest, Tensor
from runtime.backends.cuda import Block, Context, DeviceArray, Driver, Event, bytes_of, room_for, shape_of
from runtime.backends.cuda_kernels import FRAME, SCALARS
from runtime.cache.hold import Hold, LinearHold
from runtime.cache.policy import Decision
from runtime.cache.policy import Event as What
from runtime.cache.state import Floats, Ints, ModelFacts, Trajectory, Work, padded
from runtime.errors import BackendError, BackendWarning
from runtime.noise import NoiseStream
from runtime.schedule import Schedule

if TYPE_CHECKING:
    from runtime.backends.tensorrt import TensorrtBackend

_HOLDS = 256  # functions whose tables are kept on the device
_TIMED = 8  # network calls of a kind that are timed; the others are taken to be as long
_FIRST = 4  # of these: in either direction one runs plainly, and one is captured


@dataclass(frozen=True)
class Part:
    """One engine of a step, and what its tensors are called among all of them where that is not their name."""

    graph: str
    signature: Graph
    names: dict[str, str]

    def name(self, tensor: Tensor) -> str:
        """The name among all engines of the step."""
        return self.names.get(tensor.name, tensor.name)


@dataclass
class Call:
    """The network for one bucket of tokens: its buffers, and its contexts for either direction of the caches."""

    tokens: int
    blocks: dict[str, Block]  # by tensor; contexts and captured graphs know their addresses, so all of them are held
    contexts: tuple[list[Context], ...]
    selected: Ints  # what `token` holds, [B, S]

    def __getitem__(self, tensor: str) -> int:
        """The address of a tensor."""
        return self.blocks[tensor].address


class Lane:
    """The device memory of one batch size, its contexts and captured graphs; one trajectory at a time uses it."""

    def __init__(
        self, driver: Driver, manifest: Manifest, parts: list[Part], batch: int, backend: "TensorrtBackend"
    ) -> None:
        self.driver, self.batch, self._parts, self._backend = driver, batch, parts, backend
        network = manifest.network
        self.num_tokens, self.num_channels = network.num_tokens, network.num_channels
        self.is_busy, self.direction = False, 0
        caches = {
            part.name(tensor).removeprefix("past_"): tensor
            for part in parts
            for tensor in part.signature.inputs
            if tensor.name.startswith("past_")
        }
        self.cache_bytes = sum(bytes_of(tensor, {"B": batch}) for tensor in caches.values())
        width = batch * self.num_tokens * self.num_channels
        self.state_bytes = 4 * 6 * width + 8 * batch * self.num_tokens
        self._require_room(2 * self.cache_bytes + 2 * self.state_bytes)
        with room_for(batch):
            self.caches: tuple[dict[str, Block], dict[str, Block]] = tuple(  # type: ignore[assignment]
                {name: driver.allocate(bytes_of(tensor, {"B": batch})) for name, tensor in caches.items()}
                for _ in range(2)
            )
            for block in self.caches[0].values():
                driver.zero(block.address, block.size)
            shape = (batch, self.num_tokens, self.num_channels)
            self.z = DeviceArray(driver, shape, "float32")
            self._state = {name: driver.allocate(4 * width) for name in ("data", "before", "value", "slope", "unheld")}
            self._state |= {name: driver.allocate(8 * batch) for name in ("surprise", "mask", "prior", "sample")}
            self._state |= {"made": driver.allocate(8 * batch * self.num_tokens), "control": driver.allocate(16)}
            self.frame = driver.allocate(FRAME.itemsize)
            self.surprise = driver.mirror(self._state["surprise"].address, batch)
        self._calls: dict[tuple[int, bool], Call] = {}
        self._launches: dict[tuple[Any, ...], Callable[[], None] | None] = {}  # None: has run once, to be captured
        self._tables: dict[str, Block] = {}
        self._holds: dict[LinearHold, Block] = {}
        self._schedule: Schedule | None = None

    def _require_room(self, needed: int) -> None:
        free = self.driver.free_memory()
        if needed > free:
            fits = self.batch * free // needed
            remedy = f"take --batch-size {fits}" if fits else "end what else uses it, or take a larger one"
            raise BackendError(
                f"a batch of {self.batch} needs {needed / 2**20:,.0f} MiB of the GPU and {free / 2**20:,.0f} MiB are "
                f"free; {remedy}"
            )

    def begin(
        self, facts: ModelFacts, schedule: Schedule, noise: NoiseStream, *, linear: bool, keeps_surprise: bool
    ) -> None:
        """Make ready for a trajectory: tables, counters, the prior. Its first network step writes all of the caches."""
        driver, state = self.driver, self._state
        self.is_busy, self.keeps_surprise = True, keeps_surprise
        if self._schedule is not schedule:
            with room_for(self.batch):
                self._upload_tables(facts, schedule)
            self._schedule = schedule
        driver.upload(state["sample"].address, np.ascontiguousarray(noise.samples, np.int64))
        frame = np.zeros((), FRAME)
        counts = {
            "batch": self.batch, "tokens": self.num_tokens, "channels": self.num_channels, "is_linear": linear,
            "is_multistep": schedule.is_multistep, "is_stochastic": schedule.is_stochastic,
            "keeps_surprise": keeps_surprise, "seed": noise.seed,
        }  # fmt: skip
        for name, value in counts.items():
            frame[name] = int(value)
        for name, block in (state | self._tables).items():
            frame[name] = block.address
        frame["z"] = self.z.address
        driver.upload(self.frame.address, frame)
        driver.launch("start", self.size, self.frame.address)

    @property
    def size(self) -> int:
        """B N C."""
        return self.batch * self.num_tokens * self.num_channels

    def _upload_tables(self, facts: ModelFacts, schedule: Schedule) -> None:
        num_steps, width = schedule.num_steps, (self.num_tokens, self.num_channels)
        full = (num_steps, *width)
        tables: dict[str, NDArray[Any]] = {
            "times": np.asarray(schedule.times, np.float64),
            "prior_scale": schedule.prior_scale,
            "weight": np.broadcast_to(facts.weight, width),
            "scalars": np.stack([getattr(schedule, name) for name in SCALARS], axis=1),
            "gaussian": np.broadcast_to(schedule.gaussian, full),
            "from_latent": np.broadcast_to(schedule.from_latent, full),
            "score_to_data": schedule.score_to_data[..., 0],
            "from_value": schedule.from_value[..., 0],
            "step_noise": schedule.step_noise[..., 0],
            "fresh_score": schedule.fresh_score[..., 0],
        }
        self._tables = {}
        for name, table in tables.items():
            values = np.ascontiguousarray(table, np.float64 if name == "times" else np.float32)
            self._tables[name] = self.driver.allocate(values.nbytes)
            self.driver.upload(self._tables[name].address, values)

    def bucket(self, size: int) -> int:
        """The number of tokens that a set of `size` is padded to."""
        return self._backend.bucket([part.graph for part in self._parts], self.batch, size)

    # --- steps -----------------------------------------------------------------------------------------

    def coast(self, i: int, j: int, *, is_prior: bool) -> None:
        """Steps i .. j - 1 without the network."""
        self.driver.launch("coast", self.size, self.frame.address, i, j, int(is_prior))

    def network_step(self, tokens: Ints | None, hold: Hold | None = None) -> None:
        """A step that asks the network for all tokens, or for a set [S] of every sample; and what is held then."""
        is_full = tokens is None
        call = self._call(tokens if tokens is None else np.tile(tokens, (self.batch, 1)))
        key = (call.tokens, is_full, self.keeps_surprise, self.direction)

        def work() -> None:
            self._ask(call, is_full=is_full)
            self.driver.launch("advance", self.size, self.frame.address, call["score"] if is_full else 0)

        if key not in self._launches:
            self._launches[key] = None
            work()
        else:
            if (replay := self._launches[key]) is None:
                replay = self._launches[key] = self._captured(work)
            replay()
        if hold is not None:
            self._hold(hold)
        self._swap()

    def _captured(self, work: Callable[[], None]) -> Callable[[], None]:
        try:
            return self.driver.capture(work)
        except Exception as error:  # an engine that cannot be captured; each library has errors of its own
            warnings.warn("a step cannot be captured as a CUDA graph, its kernels are launched one by one: "
                          f"{' '.join(str(error).split())[:200]}", BackendWarning, stacklevel=2)  # fmt: skip
            return work

    @contextmanager
    def by_prior(self, samples: NDArray[np.bool_]) -> Iterator[None]:
        """These samples [B] predict their data by the prior meanwhile."""
        address = self._state["prior"].address
        if samples.any():
            self.driver.upload(address, samples.astype(np.int64))
        yield
        if samples.any():
            self.driver.upload(address, np.zeros(self.batch, np.int64))

    def masked_step(self, calls: Sequence[tuple[NDArray[np.bool_], Ints | None, Hold | None]]) -> None:
        """A step whose samples go their own ways: each call asks for tokens [B, S] of the samples under its mask."""
        driver, mask_at = self.driver, self._state["mask"].address
        fresh, score = np.zeros(self.batch, np.bool_), 0  # whose score of all tokens is new, and where it lies
        for mask, tokens, _ in calls:
            call = self._call(tokens)
            driver.upload(mask_at, mask.astype(np.int64))
            self._ask(call, is_full=tokens is None)
            if tokens is None:  # of every sample, under whatever mask
                fresh, score = fresh | mask, call["score"]
            for name, after in self.caches[1 - self.direction].items():
                words = after.size // self.batch // 2
                before = self.caches[self.direction][name].address
                driver.launch("restore", self.batch * words, self.frame.address, words, before, after.address)
            self._swap()
        for mask, _, hold in calls:  # only now: every call predicts the data of all samples from what is held
            if hold is not None:
                driver.upload(mask_at, mask.astype(np.int64))
                self._hold(hold)
        driver.upload(mask_at, fresh.astype(np.int64))
        driver.launch("advance", self.size, self.frame.address, score)
        driver.upload(mask_at, np.ones(self.batch, np.int64))

    def _ask(self, call: Call, *, is_full: bool) -> None:
        """Ask the network and renew what is cached, as far as the mask goes."""
        launch, frame, rows = self.driver.launch, self.frame.address, self.batch * call.tokens
        launch("gather", self.size, frame, call.tokens, call["token"], call["z"], call["t"])
        for context in call.contexts[self.direction]:
            context.enqueue()
        if is_full and self.keeps_surprise:
            launch("surprise", self.batch, frame, call["z"], call["score"])
        launch("settle", rows, frame, call.tokens, call["token"], call["z"], call["score"])

    def _hold(self, hold: Hold) -> None:
        """Hold what a decision says instead of what a full refresh made; its call still has the z of that step."""
        if not isinstance(hold, LinearHold):
            raise BackendError(f"a GPU holds linear functions, found {type(hold).__name__}; sample on the CPU")
        if hold not in self._holds:
            if len(self._holds) >= _HOLDS:
                self._holds.clear()
            with room_for(self.batch):
                self._holds[hold] = self.driver.allocate(hold.tables.nbytes)
            self.driver.upload(self._holds[hold].address, hold.tables)
        self.driver.launch("hold", self.size, self.frame.address, self._call(None)["z"], self._holds[hold].address)

    def _swap(self) -> None:
        if self.caches[0]:
            self.direction = 1 - self.direction

    def _call(self, tokens: Ints | None) -> Call:
        """The call for tokens [B, S] or all of them (None), with these selected."""
        is_full = tokens is None
        size = self.num_tokens if tokens is None else self.bucket(tokens.shape[1])
        key = (size, is_full)
        if key not in self._calls:
            with room_for(self.batch):
                self._calls[key] = self._prepare(size)
        call = self._calls[key]
        wanted = np.tile(np.arange(size), (self.batch, 1)) if tokens is None else tokens
        if wanted.shape[1] < size:
            wanted = np.stack([padded(own, size) for own in wanted])
        if not np.array_equal(call.selected, wanted):
            call.selected = np.ascontiguousarray(wanted, np.int64)
            self.driver.upload(call["token"], call.selected)
        return call

    def _prepare(self, tokens: int) -> Call:
        blocks: dict[str, Block] = {}
        for part in self._parts:
            for tensor in (*part.signature.inputs, *part.signature.outputs):
                name = part.name(tensor)
                if not name.startswith(("past_", "present_")) and name not in blocks:
                    blocks[name] = self.driver.allocate(bytes_of(tensor, {"B": self.batch, "S": tokens}))
        if "token" not in blocks:  # a network that always takes all of them
            blocks["token"] = self.driver.allocate(8 * self.batch * tokens)
        contexts = tuple(
            [self._context(part, tokens, blocks, direction) for part in self._parts]
            for direction in range(2 if self.caches[0] else 1)
        )
        return Call(tokens, blocks, contexts, selected=np.empty((0, 0), np.int64))

    def _context(self, part: Part, tokens: int, blocks: dict[str, Block], direction: int) -> Context:
        context = self._backend.context(part.graph, self.batch, tokens)
        past, present = self.caches[direction], self.caches[1 - direction]
        for tensor in part.signature.inputs:
            context.set_shape(tensor.name, shape_of(tensor, {"B": self.batch, "S": tokens}))
        for tensor in (*part.signature.inputs, *part.signature.outputs):
            name = part.name(tensor)
            if name.startswith("past_"):
                block = past[name.removeprefix("past_")]
            elif name.startswith("present_"):
                block = present[name.removeprefix("present_")]
            else:
                block = blocks[name]
            context.set_address(tensor.name, block.address)
        return context

    def read_data(self) -> Floats:
        """The data prediction, [B, N, C]."""
        data = np.empty(self.z.shape, np.float32)
        self.driver.download(data, self._state["data"].address)
        return data


class DeviceTrajectory(Trajectory):
    """A batch on its way, on the device; the signals that follow from decisions alone are the base class's."""

    def __init__(
        self, lane: Lane, facts: ModelFacts, schedule: Schedule, noise: NoiseStream,
        *, linear: bool, keeps_surprise: bool,
    ) -> None:  # fmt: skip
        self._facts, self._schedule, self._noise, self._lane = facts, schedule, noise, lane
        self._keep_ages(lane.batch, lane.num_tokens)
        self._work = Work()
        self._timed: dict[bool, list[tuple[Event, Event]]] = {True: [], False: []}  # by whether all tokens
        self._made_z, self._features, self._sums_impact = None, None, False  # of its signals only the surprise is kept
        self._keeps_surprise = keeps_surprise
        self._surprise, self._is_fetched = np.zeros(lane.batch, np.float32), False
        lane.begin(facts, schedule, noise, linear=linear, keeps_surprise=keeps_surprise)

    @property
    def z(self) -> Floats:  # type: ignore[override]
        """The latents, [B, N, C], copied from the device."""
        return self._lane.z.numpy()

    @property
    def data(self) -> Floats:  # type: ignore[override]
        """The data prediction, [B, N, C], copied from the device."""
        return self._lane.read_data()

    @property
    def state_bytes(self) -> int:
        """Bytes of the arrays of one trajectory."""
        return self._lane.state_bytes

    @property
    def cache_bytes(self) -> int:
        """Bytes of one set of keys and values; the device holds two."""
        return self._lane.cache_bytes

    @property
    def surprise(self) -> Floats:
        """How far the prediction was off at the last full refresh, in data std of z0, [B]; 0 before the second."""
        if self._is_fetched:
            self._surprise, self._is_fetched = self._lane.surprise.numpy(), False
        return super().surprise

    @property
    def work(self) -> Work:  # type: ignore[override]
        """What the network ran; seconds by device events, of a few calls of each kind, taken for all of them."""
        work, total = self._work, dict.fromkeys((True, False), 0.0)
        calls = {True: work.full_calls, False: work.calls - work.full_calls}
        for is_full, timed in self._timed.items():
            if usual := timed[_FIRST:] or timed[-1:]:
                total[is_full] = float(np.median([end.since(start) for start, end in usual])) * calls[is_full]
        return Work(work.calls, work.tokens, sum(total.values()), work.full_calls, work.full_tokens, total[True])

    def can_coast(self, decision: Decision) -> bool:
        """Whether the steps up to `decision.until` may be taken at once."""
        return decision.until > self._i + 1 and not decision.asks_network

    def coast(self, i: int, j: int, event: What) -> None:
        """Take steps i .. j - 1 without a network call."""
        self._lane.coast(i, j, is_prior=event is What.PRIOR)
        self._lane.is_busy = j < self._schedule.num_steps

    def carry_out(self, i: int, decisions: Decision | Sequence[Decision]) -> None:
        """Take step i as decided, the solver's update with it."""
        self._i, lane = i, self._lane
        if not isinstance(decisions, Decision):
            self._carry_out_apart(i, decisions)
        elif not decisions.event.is_full and decisions.tokens is None:
            lane.coast(i, i + 1, is_prior=decisions.event is What.PRIOR)
        else:
            self._timed_call(decisions.tokens, lambda: lane.network_step(decisions.tokens, decisions.hold))
            self._keep(i, slice(None), decisions)
        if lane.keeps_surprise and (self._refreshed == i).any():
            lane.surprise.fetch()
            self._is_fetched = True
        lane.is_busy = i + 1 < self._schedule.num_steps

    def advance(self, i: int) -> None:
        """Nothing is left to do: the update of step i was part of the launch."""

    def _carry_out_apart(self, i: int, decisions: Sequence[Decision]) -> None:
        """Samples that do different things: one call for those that ask for all tokens, one for sets of some."""
        full = np.array([decision.event.is_full for decision in decisions])
        some = np.array([not decision.event.is_full and decision.tokens is not None for decision in decisions])
        holds = dict.fromkeys(decision.hold for decision in decisions if decision.event.is_full)
        calls: list[tuple[NDArray[np.bool_], Ints | None, Hold | None]] = [
            (full & [decision.hold is hold for decision in decisions], None, hold) for hold in holds
        ]
        if some.any():
            sets = [np.zeros(1, np.int64) if d.tokens is None else d.tokens for d in decisions]
            size = max(len(own) for own in sets)
            calls.append((some, np.stack([padded(own, size) for own in sets]), None))
        with self._lane.by_prior(np.array([decision.event is What.PRIOR for decision in decisions])):
            if not calls:
                self._lane.coast(i, i + 1, is_prior=False)
                return
            self._lane.masked_step(calls)
        for _, tokens, _ in calls:
            self._count(None if tokens is None else tokens[0])
        for sample, decision in enumerate(decisions):
            self._keep(i, slice(sample, sample + 1), decision)

    def _timed_call(self, tokens: Ints | None, call: Callable[[], None]) -> None:
        """Run a call of the whole batch; the first few of each kind are timed."""
        timed, driver = self._timed[tokens is None], self._lane.driver
        if len(timed) < _TIMED:
            start = driver.record()
            call()
            timed.append((start, driver.record()))
        else:
            call()
        self._count(tokens)

    def _count(self, tokens: Ints | None) -> None:
        size = self._lane.num_tokens if tokens is None else self._lane.bucket(len(tokens))
        self._work.add(self.batch * size, 0.0, is_full=tokens is None)

    def _keep(self, i: int, here: slice, decision: Decision) -> None:
        """Keep the ages that follow from a decision carried out for some samples."""
        if decision.event.is_full:
            self.made[here] = self._refreshed[here] = i
            self._oldest_refresh = int(self._refreshed.min())
        elif decision.tokens is not None:
            self.made[here, decision.tokens] = i
