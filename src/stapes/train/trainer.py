"""The Trainer, fed by our mixture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer

from ..data.collator import IGNORE
from ..data.mixture import Draw, MixtureBatchSampler
from ..errors import StapesError
from .clipping import DynamicClipping


class StageTrainer(Trainer):
    """The Trainer with batches of like length in an order that can be resumed, and losses that mean the same.

    Training and validation losses are both means over target tokens. A loss or gradient that is no number ends the
    run; of gradients in fp16 it does not, because there the scaler skips such an update.
    """

    sampler: MixtureBatchSampler
    valid_draws: Sequence[Draw]

    def get_train_dataloader(self) -> DataLoader:
        """Return the loader over the mixture's batches, of which each process takes its part."""
        return self.accelerator.prepare(self._loader(self.train_dataset, self.sampler))

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Return the loader over this process's part of the validation samples."""
        size, rank = self.args.per_device_eval_batch_size, self.args.process_index
        draws = list(self.valid_draws[rank :: self.args.world_size])
        return self._loader(self.eval_dataset, [draws[start : start + size] for start in range(0, len(draws), size)])

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Measure the loss on the validation samples, as `eval_loss`.

        Returns:
            the mean over all their target tokens, however many batches and processes they are spread over; the sum
            where they have none, as clips to which CTC should hear nothing. The Trainer's own weights each batch's
            mean by its samples, which changes with the batches.
        """
        assert self.model is not None  # given when the Trainer is made
        self.model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in self.get_eval_dataloader():
                inputs = send_to_device(batch, self.args.device)
                total += self.model(**inputs, num_items_in_batch=1).loss.item()
                count += int((inputs["labels"][:, 1:] != IGNORE).sum())
        sums = gather_object([(total, count)])
        loss = math.fsum(part for part, _ in sums) / max(1, sum(part for _, part in sums))
        metrics = {f"{metric_key_prefix}_loss": loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the limit of dynamic clipping where there is one.

        Raises:
            StapesError: if the training loss or a gradient is no number.
        """
        if "loss" in logs:
            # Looked up each time: resuming puts a new callback in the place of the first.
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, DynamicClipping) and callback.clip_value is not None:
                    logs["clip_value"] = callback.clip_value
            for key in ("loss",) if self.args.fp16 else ("loss", "grad_norm"):
                if not math.isfinite(logs.get(key, 0.0)):
                    raise StapesError(
                        f"stage `{self.args.run_name}`: {key} is {logs[key]} at step {self.state.global_step}; "
                        "use a lower `learning_rate`, a longer warm-up (`trainer: {warmup_steps: …}`) or "
                        "`precision: fp32`"
                    )
        super().log(logs, start_time)

    def _loader(self, dataset: Any, batches: Any) -> DataLoader:
        workers = self.args.dataloader_num_workers
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            # Else each iteration takes a number from the generator that dropout draws from.
            generator=torch.Generator().manual_seed(self.args.seed),
        )
