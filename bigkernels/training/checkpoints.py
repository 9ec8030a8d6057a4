"""A Trainer that survives a kill at any moment and goes on as if nothing had happened.

A save is all or nothing: written into a hidden folder beside its target, forced to disk, then
renamed. ``transformers.Trainer`` writes in place, so a kill while it saves leaves a
``checkpoint-N`` that cannot be loaded but is the newest one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

_STAGING = ".partial-"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def complete_checkpoints(run_folder: str | Path) -> list[Path]:
    """The loadable ``checkpoint-N`` folders of a run, oldest step first."""
    found = []
    for path in Path(run_folder).glob("checkpoint-*"):
        match = _CHECKPOINT.fullmatch(path.name)
        if match and _is_complete(path):
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def remove_partial(run_folder: str | Path) -> None:
    """Deletes what killed saves left behind. Not to be called while another process saves there."""
    for path in Path(run_folder).glob(f"{_STAGING}*"):
        shutil.rmtree(path)


def discard_checkpoints(run_folder: str | Path) -> None:
    """Deletes every ``checkpoint-N`` of a run, loadable or not."""
    for path in Path(run_folder).glob("checkpoint-*"):
        if _CHECKPOINT.fullmatch(path.name):
            _remove(path)


class LengthGroupedByEpoch(LengthGroupedSampler):
    """transformers' length grouping with an order that depends on (seed, epoch) alone.

    The original draws from the global generator, so an epoch resumed half-way is shuffled anew:
    some of its rows are then seen twice and others never.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self._seed, self._epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next iteration."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(super().__iter__())  # type: ignore[no-untyped-call]


class AtomicTrainer(Trainer):
    """``transformers.Trainer`` with atomic saves, exact resumption and a rate for the head.

    head_learning_rate: rate of the pooler and of all outside the backbone; None = the same rate.
    """

    def __init__(self, *args: Any, head_learning_rate: float | None = None, **kwargs: Any) -> None:
        self._head_learning_rate = head_learning_rate
        self._staging: Path | None = None
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's optimizer, its groups split into backbone and head where the rates differ."""
        fresh = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if fresh and self._head_learning_rate is not None:
            assert self.model is not None
            named = self.model.named_parameters()
            head = {id(p) for name, p in named if self._in_head(name)}
            for group in list(optimizer.param_groups):
                moved = [p for p in group["params"] if id(p) in head]
                if moved:
                    group["params"] = [p for p in group["params"] if id(p) not in head]
                    settings = {"params": moved, "lr": self._head_learning_rate}
                    optimizer.add_param_group({**group, **settings})
        return optimizer

    def _in_head(self, name: str) -> bool:
        # A pooler sits in the backbone, but no sentence encoder has trained it.
        prefix = f"{getattr(self.model, 'base_model_prefix', '')}."
        return not name.startswith(prefix) or name.startswith(f"{prefix}pooler.")

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int] | None:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return LengthGroupedByEpoch(sampler.batch_size, sampler.lengths, seed)
        return sampler

    def _get_output_dir(self, trial: Any) -> str:
        if self._staging is not None:
            return str(self._staging)
        return str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        run_folder = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        with self._staged(run_folder) as staging:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                # The best checkpoint may be this one: name it by where it is going to be.
                if self.state.best_model_checkpoint == str(staging / name):
                    self.state.best_model_checkpoint = str(run_folder / name)
                    self.state.save_to_json(str(staging / name / "trainer_state.json"))
                _remove(run_folder / name)
                _publish(staging / name, run_folder / name)
        if self.args.should_save:
            self._drop_old_checkpoints(run_folder)
        self.accelerator.wait_for_everyone()

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        target = Path(output_dir or self.args.output_dir or "")
        if self._staging is not None or not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        with self._staged(target) as staging:
            super()._save(str(staging), state_dict)
            for path in sorted(staging.iterdir()):
                _publish(path, target / path.name)

    @contextmanager
    def _staged(self, folder: Path) -> Iterator[Path]:
        # One name per run, not per process: all ranks write their part into the same folder.
        self._staging = folder / f"{_STAGING}{self.state.global_step}"
        self._staging.mkdir(parents=True, exist_ok=True)
        try:
            yield self._staging
            if self.args.should_save:
                shutil.rmtree(self._staging)
        finally:
            self._staging = None

    def _drop_old_checkpoints(self, run_folder: Path) -> None:
        limit = self.args.save_total_limit
        if limit is None or limit <= 0:
            return
        checkpoints = complete_checkpoints(run_folder)
        kept = {checkpoints[-1], Path(self.state.best_model_checkpoint or checkpoints[-1])}
        surplus = len(checkpoints) - max(limit, len(kept))
        for path in [p for p in checkpoints if p not in kept][: max(surplus, 0)]:
            _remove(path)


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return any((checkpoint / name).is_file() for name in _WEIGHTS)


def _remove(path: Path) -> None:
    """Deletes a checkpoint so that a kill half-way leaves nothing that looks like one."""
    if path.exists():
        doomed = path.with_name(f"{_STAGING}old-{path.name}")
        os.replace(path, doomed)
        shutil.rmtree(doomed)


def _publish(source: Path, target: Path) -> None:
    """Forces a written file or folder to disk, then renames it into place."""
    inside = list(source.rglob("*")) if source.is_dir() else []
    for path in [*inside, source]:
        _force_to_disk(path)
    os.replace(source, target)
    _force_to_disk(target.parent)


def _force_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
