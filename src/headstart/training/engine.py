"""Training loop. The only module that calls `backward()` and `optimizer.step()`.

Everything random in a step follows from the seed, the epoch and the step. A training that was
killed and resumed therefore ends with the same bits as one that ran without a break.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.loader import map_bounded
from headstart.distributed.processes import (
    broadcast_tensors,
    is_main,
    local_rows,
    mean_gradients,
    rank,
    sum_scalar,
    world_size,
)
from headstart.errors import SetupError, TrainingError
from headstart.runtime import cores, use_one_thread
from headstart.training import checkpoint
from headstart.training.checkpoint import Checkpoint, flatten_optimiser, restore_optimiser
from headstart.training.divergence import (
    NOT_TRIED_AGAIN,
    RETRY_SCALE,
    TRIED_AGAIN,
    LossTrace,
    describe_divergence,
    explain_divergence,
)
from headstart.training.interruption import Interruption, capture, is_out_of_memory
from headstart.training.job import Epoch, History, Job, Rows, Score, Session
from headstart.training.optim import MIN_STEPS_TO_STOP, Training, make_optimiser, rate_at
from headstart.training.weight_averaging import ema, ema_decay, greedy_soup

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["train"]

State = dict[str, "Tensor"]

CHECKPOINT_SECONDS = 30.0
"""Seconds between two checkpoints: a kill loses at most this much. Ctrl-C and the last epoch save
one, too."""


def train(
    job: Job, settings: Training, *, seed: int = 0, session: Session | None = None
) -> History:
    """Train a module and leave it with the weights of its best epoch.

    A training that diverges begins once more, at a tenth of its learning rates, and notes it.

    Parameters
    ----------
    job : Job
    settings : Training
        With epochs and batch size decided (``for_images``).
    seed : int
        Seed of everything random in a step, such as dropout.
    session : Session, optional

    Returns
    -------
    History
        After Ctrl-C, too: the module then has the weights of the best epoch so far.

    Raises
    ------
    TrainingError
        If the loss is not a finite number, at the lower rates either; the batch is written to a
        file, the checkpoint stays.
    SetupError
        If a checkpoint cannot be written, or a single image does not fit into memory.
    KeyboardInterrupt
        If the session's ``stop`` is forced.
    """
    import torch

    device = job.groups[0]["params"][0].device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        run = _Run(job, settings, seed, session or Session())
        run.begin()
        try:
            with run.interruption:
                while run.has_epochs_left() or run.starts_again():
                    run.check_stop()
                    started_at = time.perf_counter()
                    job.start_epoch(run.epoch)
                    for rows, batch in run.batches():
                        with run.interruption.delayed():
                            run.step(rows, batch)
                        run.check_stop()
                        if run.is_stopped or run.diverges() or run.is_overdue():
                            break
                        run.report_step()
                        run.check_stop()  # a callback may have stopped the run
                    else:
                        run.finish_epoch(time.perf_counter() - started_at)
                if not run.is_stopped:
                    run.save()
        except KeyboardInterrupt:
            run.stop()
            if run.session.stop is not None and run.session.stop.is_forced:
                raise
        return run.end()


class _Run:
    """State of one training between two steps."""

    def __init__(self, job: Job, settings: Training, seed: int, session: Session) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        self.job, self.settings, self.seed, self.session = job, settings, seed, session
        precision = {"fp32": "no"}.get(settings.precision, settings.precision)
        # One process may train twice, in another precision: Accelerate would refuse.
        AcceleratorState._reset_state(reset_partial_state=False)
        on_cpu = job.groups[0]["params"][0].device.type == "cpu"
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision=precision)
        self.plain_optimiser = make_optimiser(settings, job.groups)
        self.optimiser = self.accelerator.prepare_optimizer(self.plain_optimiser)
        self.parameters = [p for group in job.groups for p in group["params"]]
        trainable = {id(p) for p in self.parameters}
        self.names = {name for name, p in job.module.named_parameters() if id(p) in trainable}
        self.names |= {name for name, _ in job.module.named_buffers()}
        self.per_epoch = settings.steps_per_epoch(job.n)
        self.parts = settings.accumulate
        self.history = History()
        self.epoch, self.skip, self.loss_sum = 1, 0, 0.0
        self.average: State = {}
        self.best: tuple[Score, State] | None = None
        self.top_states: list[tuple[Score, int, State]] = []
        self.saved_at = time.monotonic()
        self.interruption = Interruption()
        self.is_stopped = False  # by the job's watcher
        self.start: State = {}
        self.trace = LossTrace()
        self.failure = ""  # how the training diverged in a step

    # ------------------------------------------------------------------- start, epochs, end

    def begin(self) -> None:
        """Resume from a checkpoint, or score the start."""
        folder = self.session.folder
        saved = None
        if folder is not None and self.session.resume:
            saved = checkpoint.read(folder, identity=self.job.identity)
        if saved is not None:
            self.start = self._state()
            self._restore(saved)
            return
        # Each process has fitted its own head: the results may differ by rounding.
        broadcast_tensors(self._state(copies=False).values())
        if self.settings.ema:
            self.average = self._state()
        self._score_epoch(0, None, 0.0)
        self.start = self.best[1] if self.best else self._state()

    def has_epochs_left(self) -> bool:
        """Whether to train another epoch: not all are done, and the patience has not run out."""
        if self.is_stopped or self.failure or self.epoch > self.settings.epochs:
            return False
        if self._is_time_up():
            return False
        epochs_since_best = self.epoch - 1 - self.history.best
        return (
            not self.settings.patience
            or self.history.steps < MIN_STEPS_TO_STOP
            or epochs_since_best < self.settings.patience
        )

    def _is_time_up(self) -> bool:
        """Whether the session's deadline has passed; at least one epoch is trained."""
        deadline = self.session.deadline
        if deadline is None or self.epoch == 1:
            return False
        # An epoch that would end after the deadline is not begun.
        if time.perf_counter() + self.history.epochs[-1].seconds <= deadline:
            return False
        note = (
            f"The time budget was used up after {self.epoch - 1} of {self.settings.epochs} epochs; "
            "the best epoch so far is kept."
        )
        if note not in self.history.notes:
            self.history.notes.append(note)
        return True

    def is_overdue(self) -> bool:
        """Whether the deadline has passed within an epoch, which is then dropped; not the first."""
        deadline = self.session.deadline
        return deadline is not None and self.epoch > 1 and time.perf_counter() > deadline

    def diverges(self) -> bool:
        """Whether the last steps have diverged, so that the training must begin again."""
        if self._may_retry and self.trace.has_diverged:
            self.failure = self.trace.sentence(self.skip, self.epoch)
        return bool(self.failure)

    def starts_again(self) -> bool:
        """After a divergence, begin once more at lower learning rates, unless the time is up."""
        if not self._may_retry or self.is_stopped:
            return False
        epochs = self.history.epochs
        self.failure = self.failure or explain_divergence(epochs)
        deadline = self.session.deadline
        is_late = deadline is not None and time.perf_counter() + epochs[-1].seconds > deadline
        if not self.failure or is_late:
            return False
        self.history.notes.append(f"{self.failure} {TRIED_AGAIN}")
        with self.interruption.delayed():
            self._begin_again()
        return True

    def _begin_again(self) -> None:
        """Return to the start, with a new optimiser state and lower learning rates."""
        history, first = self.history, self.history.epochs[0]
        self._load(self.start)
        broadcast_tensors(self._state(copies=False).values())
        self.plain_optimiser.state.clear()
        self.average = self._state() if self.settings.ema else {}
        score = Score(first.score, -first.held_out_loss)
        self.best = score, self.start
        self.top_states = [(score, 0, self.start)] if self.settings.soup > 1 else []
        history.epochs, history.best, history.steps = [first], 0, 0
        history.rate_scale = RETRY_SCALE
        self.epoch, self.skip, self.loss_sum = 1, 0, 0.0
        self.trace, self.failure = LossTrace(), ""

    @property
    def _may_retry(self) -> bool:
        return self.job.watch is None and self.history.rate_scale == 1

    def check_stop(self) -> None:
        """After Ctrl-C in the whole run: stop here, where no step is in progress."""
        if self.session.stop is not None and self.session.stop.is_requested:
            raise KeyboardInterrupt

    def finish_epoch(self, seconds: float) -> None:
        """Score the epoch, and save a checkpoint when one is due."""
        self._score_epoch(self.epoch, self.loss_sum / self.job.n, seconds)
        self._save_in_time()

    def stop(self) -> None:
        """After Ctrl-C: save a checkpoint, if no step is in progress."""
        failure = ""
        if self.interruption.is_consistent:
            try:
                self.save()
            except SetupError as error:  # the model can still be saved elsewhere
                failure = str(error)
        self.history.interrupted = True
        stop = self.session.stop
        by = "a callback" if stop is not None and stop.is_by_callback else "hand"
        note = f"Stopped by {by} after {self.history.steps} steps; the best epoch so far is kept."
        self.history.notes += [note, failure] if failure else [note]

    def end(self) -> History:
        """Load the weights to keep: the last epoch's, the best one's, or an average of epochs."""
        diverged = ""
        if self.job.watch is None:  # a job with a watcher stops itself when it diverges
            diverged = describe_divergence(self.history.epochs, self.history.best)
        if self.failure and self._may_retry:
            self.history.notes.append(f"{self.failure} {NOT_TRIED_AGAIN}")
        elif diverged:
            self.history.notes.append(diverged)
        if self._keeps_last() and not diverged:
            if self.settings.ema:
                self._load(self.average)
            self.history.best = self.epoch - 1
        elif self.best is not None:
            self._load(self.best[1])
        if self.settings.soup > 1 and len(self.top_states) > 1:
            ranked = [(state, score.value) for score, _, state in self.top_states]
            average, used = greedy_soup(ranked, self._score_of)
            self._load(average)
            self.history.soup = len(used)
        return self.history

    def _keeps_last(self) -> bool:
        """Whether the last epoch is kept: only at the end of the schedule is it a good one."""
        has_ended = self.epoch > self.settings.epochs and not self.history.interrupted
        return has_ended and not (self.settings.patience or self.settings.soup or self.is_stopped)

    # ------------------------------------------------------------------------------- a step

    def batches(self) -> Iterator[tuple[Rows, NDArray[Any]]]:
        """Rows and their fetched arrays for the rest of the epoch; other threads fetch ahead."""
        order = self.job.order(self.epoch)
        remaining = [
            local_rows(rows) for rows in np.array_split(order, self.per_epoch)[self.skip :]
        ]
        workers = min(4, cores())

        def fetch(rows: Rows) -> tuple[Rows, NDArray[Any]]:
            return rows, self.job.fetch(self.epoch, rows)

        with ThreadPoolExecutor(workers, initializer=use_one_thread) as executor:
            yield from map_bounded(fetch, remaining, executor, 2 * workers)

    def step(self, rows: Rows, batch: NDArray[Any]) -> None:
        """Take a step; the job's watcher may end the training."""
        step, job = self.history.steps, self.job
        rate = job.rate(step) if job.rate else rate_at(self.settings, step, self.per_epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_lr"] * rate * self.history.rate_scale
        n_images = int(sum_scalar(len(rows)))  # before the retries: other processes do not retry
        while True:
            try:
                loss_sum = self._gradients(rows, batch, n_images)
                break
            except RuntimeError as error:  # torch.OutOfMemoryError is one, the CPU's is plain
                if not is_out_of_memory(error):
                    raise
                self._halve_parts(len(rows), error)
        mean_gradients(self.parameters)
        total = sum_scalar(loss_sum)
        self.trace.add(total / n_images)
        if np.isfinite(total) or not self._may_retry:
            self._move()
        self.plain_optimiser.zero_grad()
        self.history.steps += 1
        self.loss_sum += total
        self.skip += 1
        if self.settings.ema:
            decay = ema_decay(self.history.steps, self.settings.ema)
            self.average = ema(self.average, self._state(copies=False), decay)
        self.is_stopped = job.watch is not None and job.watch(step, total / n_images)

    def _move(self) -> None:
        """Change the parameters along their gradients."""
        from torch.nn.utils import clip_grad_norm_

        if self.settings.clip:
            if self.accelerator.scaler:
                self.accelerator.unscale_gradients(self.optimiser)
            clip_grad_norm_(self.parameters, self.settings.clip)
        (self.optimiser if self.accelerator.scaler else self.plain_optimiser).step()

    def _gradients(self, rows: Rows, batch: NDArray[Any], n_images: int) -> float:
        """Add up gradients of the global batch's mean loss; return the sum of the losses here."""
        total = 0.0
        for part, (chunk_rows, chunk) in enumerate(self._chunks(rows, batch)):
            self._set_seed(_generator_seed(self.seed, self.history.steps, part, rank()))
            with self.accelerator.autocast():
                loss = self.job.loss(chunk_rows, chunk, self.history.steps)
            value = float(loss.detach())
            if not (np.isfinite(value) or self._may_retry or self.job.watch):
                raise self._not_finite(value, chunk_rows, chunk)
            scaled = loss * (len(chunk_rows) * world_size() / n_images)
            # Accelerate's own backward and step look for packages in the file system every time.
            (
                self.accelerator.scaler.scale(scaled) if self.accelerator.scaler else scaled
            ).backward()
            total += value * len(chunk_rows)
        return total

    def _chunks(self, rows: Rows, batch: NDArray[Any]) -> list[tuple[Rows, NDArray[Any]]]:
        """Parts of a batch that fit into memory; none if this process has no image."""
        if self.parts == 1:
            return [(rows, batch)] if len(rows) else []
        parts = np.array_split(np.arange(len(rows)), min(self.parts, max(1, len(rows))))
        return [(rows[part], batch[part]) for part in parts if len(part)]

    def _set_seed(self, number: int) -> None:
        """Seed only the generator in use: seeding all of them takes as long as a step."""
        import torch

        device = self.parameters[0].device
        if device.type == "cpu":
            torch.default_generator.manual_seed(number)
        else:
            torch.manual_seed(number)

    def _halve_parts(self, size: int, error: RuntimeError) -> None:
        """After running out of memory: compute the same step in twice as many parts."""
        self.plain_optimiser.zero_grad()
        if self.parts >= size:
            raise SetupError(
                "Out of memory with a single image at a time. Train fewer stages (--train-from) "
                f"or use a smaller backbone (--backbone). The error was: {str(error)[:100]}"
            ) from error
        self.parts = min(2 * self.parts, size)
        self.history.notes.append(
            f"Out of memory at step {self.history.steps + 1}: batches of {size} images are now "
            f"computed in {self.parts} parts; the steps stay the same."
        )

    def _not_finite(self, value: float, rows: Rows, batch: NDArray[Any]) -> TrainingError:
        path = capture(self.session.folder, self._state(), rows, batch)
        return TrainingError(
            f"The loss became {value} at step {self.history.steps + 1} of epoch {self.epoch}, also "
            "at a tenth of the learning rates. "
            f"Lower --learning-rate. The batch and the weights are in {path}. No model was saved."
        )

    # ------------------------------------------------------------------------------ scoring

    def _score_epoch(self, number: int, loss: float | None, seconds: float) -> None:
        """Score an epoch, keep the best, report it and move on to the next."""
        # Each process has seen different images: all take the main one's running statistics.
        broadcast_tensors(self.job.module.buffers())
        broadcast_tensors(self.average.values())
        score, state = self._scored_state()
        with self.interruption.delayed():
            if self.best is None or score > self.best[0]:
                self.best, self.history.best = (score, state), number
            if self.settings.soup > 1:
                self.top_states.append((score, number, state))
                self.top_states = sorted(self.top_states, key=lambda entry: entry[:2], reverse=True)
                del self.top_states[self.settings.soup :]
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
        if self.session.on_epoch is not None:
            self._call(self.session.on_epoch, epoch, self.settings.epochs)

    def _call(self, callback: Callable[..., object], *values: object) -> None:
        """Call the user's code; if it fails, save a checkpoint first."""
        try:
            callback(*values)
        except Exception:
            with suppress(SetupError):  # the error of the callback is more important
                self.save()
            raise

    def _scored_state(self) -> tuple[Score, State]:
        """Score and weights of the running average, or of the module without one."""
        live = self._state()
        try:
            if self.settings.ema:
                self._load(self.average)
            score = _same_in_all_processes(self.job.score())
            return score, self._state() if self.settings.ema else live
        finally:
            with self.interruption.delayed():
                self._load(live)

    def _score_of(self, state: Mapping[str, Tensor]) -> float:
        self._load(state)
        score = self.job.score()
        # After Ctrl-C the other processes may be at any line: do not wait for them.
        return score.value if self.history.interrupted else _same_in_all_processes(score).value

    def report_step(self) -> None:
        """Report a step, and save a checkpoint when one is due."""
        if self.session.progress is not None:
            total = self.settings.epochs * self.per_epoch
            self._call(self.session.progress, "training", self.history.steps, total)
        self._save_in_time()

    # ------------------------------------------------------------------ states, checkpoints

    def _state(self, *, copies: bool = True) -> State:
        """Tensors that training can change, by name."""
        tensors = self.job.module.state_dict().items()
        state = {name: tensor.detach() for name, tensor in tensors if name in self.names}
        return {name: t.clone() for name, t in state.items()} if copies else state

    def _load(self, state: Mapping[str, Tensor]) -> None:
        self.job.module.load_state_dict(state, strict=False)

    def _save_in_time(self) -> None:
        if time.monotonic() - self.saved_at > CHECKPOINT_SECONDS:
            self.save()

    def save(self) -> None:
        """Save a checkpoint; only the main process does."""
        self.saved_at = time.monotonic()
        folder = self.session.folder
        if folder is None or not is_main():
            return
        moments, optimiser = flatten_optimiser(self.plain_optimiser.state_dict())
        states = {"live": self._state(copies=False), "average": self.average}
        states["best"] = self.best[1] if self.best else {}
        states |= {f"top{number}": state for _, number, state in self.top_states}
        tensors = {f"{k}/{name}": t for k, state in states.items() for name, t in state.items()}
        values = {
            "optimiser": optimiser,
            "history": asdict(self.history),
            "best": tuple(self.best[0]) if self.best else None,
            "tops": [(tuple(score), number) for score, number, _ in self.top_states],
            "loss_sum": self.loss_sum,
            "trace": asdict(self.trace),
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

    def _restore(self, saved: Checkpoint) -> None:
        values = saved.values
        states: dict[str, State] = {}
        for name, tensor in saved.tensors.items():
            prefix, slash, inner = name.partition("/")
            if slash:
                states.setdefault(prefix, {})[inner] = tensor.to(self.parameters[0].device)
        self._load(states["live"])
        restore_optimiser(self.plain_optimiser, saved.tensors, values["optimiser"])
        self.average = states.get("average", {})
        if values["best"] is not None:
            self.best = Score(*values["best"]), states["best"]
        self.top_states = [(Score(*score), n, states[f"top{n}"]) for score, n in values["tops"]]
        history = values["history"]
        self.history = History(**{**history, "epochs": [Epoch(**e) for e in history["epochs"]]})
        self.history.interrupted = False
        self.epoch, self.skip = saved.epoch, saved.step
        self.loss_sum, self.parts = values["loss_sum"], values["parts"]
        self.trace = LossTrace(**values.get("trace", {}))  # older checkpoints have none
        if self.accelerator.scaler:  # of fp16
            self.accelerator.scaler.load_state_dict(values["scaler"])


def _generator_seed(*parts: int) -> int:
    """Mix several numbers into one seed for torch's generators."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


def _same_in_all_processes(score: Score) -> Score:
    """Return the main process's score: with different scores one process would stop alone."""
    if world_size() == 1:
        return score
    import torch

    values = torch.tensor(score, dtype=torch.float64)
    broadcast_tensors([values])
    return Score(*values.tolist())
