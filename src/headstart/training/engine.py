"""THE loop: the only place where a gradient is computed and a step is taken.

Everything random in a step follows from the seed, the epoch and the step, so that a training that
was killed and taken up again ends with the same bits as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.loader import map_bounded
from headstart.distributed import (
    broadcast_tensors,
    is_main,
    mean_gradients,
    rank,
    share,
    sum_scalar,
    world,
)
from headstart.errors import SetupError, TrainingError
from headstart.runtime import cores, one_thread_each
from headstart.training import checkpoint
from headstart.training.checkpoint import Checkpoint, flatten_optimiser, restore_optimiser
from headstart.training.interruption import Interruption, capture, is_out_of_memory
from headstart.training.job import Epoch, History, Job, Rows, Score, Session
from headstart.training.optim import PATIENCE_FROM, Training, make_optimiser, rate_at
from headstart.training.weight_averaging import ema, ema_decay, greedy_soup

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["train"]

State = dict[str, "Tensor"]

CHECKPOINT_SECONDS = 30.0
"""Between two checkpoints: what a kill can cost. Ctrl-C and the last epoch leave one as well."""


def train(
    job: Job, settings: Training, *, seed: int = 0, session: Session | None = None
) -> History:
    """Move a module's parameters and leave it as it was in its best epoch.

    Parameters
    ----------
    job : Job
    settings : Training
        With epochs and batch size decided (``for_images``).
    seed : int
        Of everything that is random in a step, such as dropout.
    session : Session, optional

    Returns
    -------
    History
        After Ctrl-C too: the module is then as in the best epoch so far.

    Raises
    ------
    TrainingError
        If the loss is not a finite number; the batch is in a file, the checkpoint stays.
    SetupError
        If a checkpoint cannot be written, or one image is too large for the memory.
    """
    import torch

    device = job.groups[0]["params"][0].device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        run = _Run(job, settings, seed, session or Session())
        run.begin()
        try:
            with run.interruption:
                run.go()
        except KeyboardInterrupt:
            run.stop()
        return run.end()


class _Run:
    """One training's state between steps."""

    def __init__(self, job: Job, settings: Training, seed: int, session: Session) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        self.job, self.settings, self.seed, self.session = job, settings, seed, session
        precision = {"fp32": "no"}.get(settings.precision, settings.precision)
        # One process may train twice, in another precision: Accelerate would refuse.
        AcceleratorState._reset_state(reset_partial_state=False)
        on_cpu = job.groups[0]["params"][0].device.type == "cpu"
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision=precision)
        self.plain = make_optimiser(settings, job.groups)
        self.optimiser = self.accelerator.prepare_optimizer(self.plain)
        self.parameters = [p for group in job.groups for p in group["params"]]
        moving = {id(p) for p in self.parameters}
        self.names = {name for name, p in job.module.named_parameters() if id(p) in moving}
        self.names |= {name for name, _ in job.module.named_buffers()}
        self.per_epoch = settings.steps_per_epoch(job.n)
        self.parts = settings.accumulate
        self.history = History()
        self.epoch, self.skip, self.loss_sum = 1, 0, 0.0
        self.average: State = {}
        self.best: tuple[Score, State] | None = None
        self.tops: list[tuple[Score, int, State]] = []
        self.saved = time.monotonic()
        self.interruption = Interruption()

    # ------------------------------------------------------------------ the order of things

    def begin(self) -> None:
        """Take up a checkpoint, or judge the start."""
        folder = self.session.folder
        found = None
        if folder is not None and self.session.resume:
            found = checkpoint.read(folder, identity=self.job.identity)
        if found is not None:
            self._restore(found)
            return
        broadcast_tensors(self._state(copies=False).values())  # solved in each, they may round
        if self.settings.ema:
            self.average = self._state()
        self._judge(0, None, 0.0)

    def go(self) -> None:
        """Run the epochs that are left."""
        while self.epoch <= self.settings.epochs and not self._is_enough():
            begin = time.perf_counter()
            self.job.enter(self.epoch)
            for rows, batch in self._batches():
                with self.interruption.held():
                    is_enough = self._step(rows, batch)
                    self.skip += 1
                if is_enough:
                    return
                self._progress()
                self._save_in_time()
            self._judge(self.epoch, self.loss_sum / self.job.n, time.perf_counter() - begin)
            self._save_in_time()
        self._save()

    def stop(self) -> None:
        """Obey Ctrl-C: keep where the training stands, if that is between two steps."""
        failed = ""
        if self.interruption.whole:
            try:
                self._save()
            except SetupError as error:  # the model can still be saved, elsewhere
                failed = str(error)
        self.history.interrupted = True
        told = f"Stopped by hand after {self.history.steps} steps; the best epoch so far is kept."
        self.history.notes += [told, failed] if failed else [told]

    def end(self) -> History:
        """Leave the module as it was judged best, or as the average that is no worse."""
        if self.best is not None:
            self._load(self.best[1])
        if self.settings.soup > 1 and len(self.tops) > 1:
            ranked = [(state, score.value) for score, _, state in self.tops]
            mixed, used = greedy_soup(ranked, self._score_of)
            self._load(mixed)
            self.history.soup = len(used)
        return self.history

    def _is_enough(self) -> bool:
        if self.history.steps < PATIENCE_FROM:
            return False
        return self.epoch - 1 - self.history.best >= self.settings.patience

    # ------------------------------------------------------------------------------- a step

    def _batches(self) -> Iterator[tuple[Rows, NDArray[Any]]]:
        """Rows and what was fetched for them, fetched ahead in other threads."""
        order = self.job.order(self.epoch)
        left = [share(rows) for rows in np.array_split(order, self.per_epoch)[self.skip :]]
        workers = min(4, cores())

        def fetch(rows: Rows) -> tuple[Rows, NDArray[Any]]:
            return rows, self.job.fetch(self.epoch, rows)

        with ThreadPoolExecutor(workers, initializer=one_thread_each) as executor:
            yield from map_bounded(fetch, left, executor, 2 * workers)

    def _step(self, rows: Rows, batch: NDArray[Any]) -> bool:
        """Take a step; whether whoever watches has seen enough."""
        step, job = self.history.steps, self.job
        rate = job.rate(step) if job.rate else rate_at(self.settings, step, self.per_epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_lr"] * rate
        whole = int(sum_scalar(len(rows)))  # once: whoever tries again asks nobody
        while True:
            try:
                local = self._gradients(rows, batch, whole)
                break
            except RuntimeError as error:  # torch.OutOfMemoryError is one, the CPU's is plain
                if not is_out_of_memory(error):
                    raise
                self._halve(len(rows), error)
        mean_gradients(self.parameters)
        if self.settings.clip:
            self.accelerator.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.history.steps += 1
        total = sum_scalar(local)
        self.loss_sum += total
        if self.settings.ema:
            decay = ema_decay(self.history.steps, self.settings.ema)
            self.average = ema(self.average, self._state(copies=False), decay)
        return job.watch is not None and job.watch(step, total / whole)

    def _gradients(self, rows: Rows, batch: NDArray[Any], whole: int) -> float:
        """Gradients of this process's share of the global batch's mean loss; their sum."""
        total = 0.0
        places = np.array_split(np.arange(len(rows)), min(self.parts, max(1, len(rows))))
        for part, place in enumerate(places):
            if not len(place):
                continue
            self._seed(_number(self.seed, self.history.steps, part, rank()))
            with self.accelerator.autocast():
                loss = self.job.loss(rows[place], batch[place], self.history.steps)
            value = float(loss.detach())
            if not np.isfinite(value) and self.job.watch is None:
                raise self._not_finite(value, rows[place], batch[place])
            self.accelerator.backward(loss * (len(place) * world() / whole))
            total += value * len(place)
        return total

    def _seed(self, number: int) -> None:
        """Seed the one generator that is drawn from; all of them would take as long as a step."""
        import torch

        device = self.parameters[0].device
        if device.type == "cpu":
            torch.default_generator.manual_seed(number)
        else:
            torch.manual_seed(number)

    def _halve(self, size: int, error: RuntimeError) -> None:
        """After running out of memory: the same step in twice as many parts."""
        self.optimiser.zero_grad()
        if self.parts >= size:
            raise SetupError(
                "Expected memory for one image at a time, got none; do train fewer stages, or "
                f"use a smaller backbone ({str(error)[:100]})."
            ) from error
        self.parts = min(2 * self.parts, size)
        self.history.notes.append(
            f"Out of memory at step {self.history.steps + 1}: batches of {size} images are now "
            f"computed in {self.parts} parts; the steps stay the same."
        )

    def _not_finite(self, value: float, rows: Rows, batch: NDArray[Any]) -> TrainingError:
        path = capture(self.session.folder, self._state(), rows, batch)
        return TrainingError(
            f"Expected a finite loss, got {value} at step {self.history.steps + 1} of epoch "
            f"{self.epoch}; do lower the learning rates. The batch and the weights are in {path}; "
            "no model was changed."
        )

    # ------------------------------------------------------------------------------ judging

    def _judge(self, number: int, loss: float | None, seconds: float) -> None:
        """Judge an epoch, keep the best, go on to the next and tell."""
        # Every process has seen other images: the main one's running statistics hold for all.
        broadcast_tensors(self.job.module.buffers())
        broadcast_tensors(self.average.values())
        score, state = self._judged()
        with self.interruption.held():
            if self.best is None or score > self.best[0]:
                self.best, self.history.best = (score, state), number
            if self.settings.soup > 1:
                self.tops.append((score, number, state))
                self.tops = sorted(self.tops, key=lambda top: top[:2], reverse=True)
                del self.tops[self.settings.soup :]
            epoch = Epoch(
                number=number,
                loss=loss,
                score=score.value,
                held_out_loss=-score.gain,
                seconds=seconds,
                best=self.history.best,
            )
            self.history.epochs.append(epoch)
            self.epoch, self.skip, self.loss_sum = number + 1, 0, 0.0
        if self.session.told is not None:
            self.session.told(epoch, self.settings.epochs)

    def _judged(self) -> tuple[Score, State]:
        """Score and state of what is judged, the average if there is one; the module stays."""
        live = self._state()
        try:
            if self.settings.ema:
                self._load(self.average)
            score = _agreed(self.job.score())
            return score, self._state() if self.settings.ema else live
        finally:
            with self.interruption.held():
                self._load(live)

    def _score_of(self, state: Mapping[str, Tensor]) -> float:
        self._load(state)
        score = self.job.score()
        # After Ctrl-C the others may be anywhere: nobody is asked.
        return score.value if self.history.interrupted else _agreed(score).value

    def _progress(self) -> None:
        if self.session.progress is not None:
            total = self.settings.epochs * self.per_epoch
            self.session.progress("training", self.history.steps, total)

    # ------------------------------------------------------------------ states, checkpoints

    def _state(self, *, copies: bool = True) -> State:
        """What training can change, by name."""
        found = {k: v.detach() for k, v in self.job.module.state_dict().items() if k in self.names}
        return {k: v.clone() for k, v in found.items()} if copies else found

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self.job.module.load_state_dict(state, strict=False)

    def _save_in_time(self) -> None:
        if time.monotonic() - self.saved > CHECKPOINT_SECONDS:
            self._save()

    def _save(self) -> None:
        self.saved = time.monotonic()
        folder = self.session.folder
        if folder is None or not is_main():
            return
        moments, optimiser = flatten_optimiser(self.plain.state_dict())
        states = {"live": self._state(copies=False), "average": self.average}
        states["best"] = self.best[1] if self.best else {}
        states |= {f"top{number}": state for _, number, state in self.tops}
        tensors = {f"{k}/{name}": t for k, state in states.items() for name, t in state.items()}
        values = {
            "optimiser": optimiser,
            "history": asdict(self.history),
            "best": tuple(self.best[0]) if self.best else None,
            "tops": [(tuple(score), number) for score, number, _ in self.tops],
            "loss_sum": self.loss_sum,
            "parts": self.parts,
            "scaler": scaler.state_dict() if (scaler := self.accelerator.scaler) else None,
        }
        checkpoint.write(
            folder,
            Checkpoint(
                identity=self.job.identity,
                epoch=self.epoch,
                step=self.skip,
                tensors={**tensors, **moments},
                values=values,
            ),
        )

    def _restore(self, found: Checkpoint) -> None:
        values = found.values
        states: dict[str, State] = {}
        for name, tensor in found.tensors.items():
            place, slash, inner = name.partition("/")
            if slash:
                states.setdefault(place, {})[inner] = tensor.to(self.parameters[0].device)
        self._load(states["live"])
        restore_optimiser(self.plain, found.tensors, values["optimiser"])
        self.average = states.get("average", {})
        if values["best"] is not None:
            self.best = Score(*values["best"]), states["best"]
        self.tops = [(Score(*score), n, states[f"top{n}"]) for score, n in values["tops"]]
        kept = values["history"]
        self.history = History(**{**kept, "epochs": [Epoch(**e) for e in kept["epochs"]]})
        self.history.interrupted = False
        self.epoch, self.skip = found.epoch, found.step
        self.loss_sum, self.parts = values["loss_sum"], values["parts"]
        if self.accelerator.scaler:  # of fp16
            self.accelerator.scaler.load_state_dict(values["scaler"])


def _number(*parts: int) -> int:
    """A number for torch's generators that follows from others."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def _agreed(score: Score) -> Score:
    """Give all processes the main one's score: if they disagreed, one would stop alone."""
    if world() == 1:
        return score
    import torch

    told = torch.tensor(score, dtype=torch.float64)
    broadcast_tensors([told])
    return Score(*told.tolist())
